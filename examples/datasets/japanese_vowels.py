"""JapaneseVowels recordings as minibatches: split, scaled, with noise.

Nine men say the vowels /ae/; each utterance is 7 to 29 steps of 12 coefficients of its spectrum
(Kudo, Toyama and Shimbo, 1999, "Multidimensional curve classification using passing-through
regions"). The recordings come with the package sktime: nothing is downloaded.
"""

from dataclasses import dataclass

import numpy as np

from jaxrnn import data
from jaxrnn.data import Batch

SPEAKERS = 9
CHANNELS = 12


@dataclass(frozen=True)
class Utterances:
    """Recordings (T_n, 12), each with its speaker's number, 0 to 8."""

    sequences: list[np.ndarray]
    speakers: np.ndarray

    @classmethod
    def load(cls, part: str) -> "Utterances":
        """The "train" or the "test" recordings, in float32."""
        from sktime.datasets import load_japanese_vowels  # takes seconds: not for --help

        frames, names = load_japanese_vowels(part, return_type="df-list")
        return cls([frame.to_numpy(np.float32) for frame in frames], names.astype(np.int32) - 1)

    def __len__(self) -> int:
        return len(self.sequences)

    def __str__(self) -> str:
        lengths = [len(sequence) for sequence in self.sequences]
        return f"{len(self)} utterances of {min(lengths)} to {max(lengths)} steps"

    def take(self, items: np.ndarray) -> "Utterances":
        return Utterances([self.sequences[n] for n in items], self.speakers[items])

    def scale(self, mean: np.ndarray, deviation: np.ndarray) -> "Utterances":
        """Each channel less `mean`, over `deviation`, both (12,)."""
        return Utterances([(x - mean) / deviation for x in self.sequences], self.speakers)

    def disturb(self, noise: float, offset: float, seed: data.Seed) -> "Utterances":
        """With noise at every step, and an offset that is the same at all steps."""
        rng = np.random.default_rng(seed)
        disturbed = []
        for x in self.sequences:
            change = noise * rng.standard_normal(x.shape)
            change += offset * rng.standard_normal((1, CHANNELS))
            disturbed.append(x + change.astype(x.dtype))
        return Utterances(disturbed, self.speakers)

    def batches(self, size: int, seed: data.Seed | None = None) -> list[Batch]:
        return data.batches(self.sequences, self.speakers, size, seed=seed)


class Task:
    """Training, validation and test sets of one seed, scaled by the training set."""

    def __init__(
        self, recordings: Utterances, tests: Utterances, *, validation: float, seed: int
    ) -> None:
        kept, aside = data.split(recordings.speakers, validation, seed=seed)
        steps = np.concatenate(recordings.take(kept).sequences)
        mean, deviation = steps.mean(axis=0), steps.std(axis=0)
        self.seed = seed
        self.training = recordings.take(kept).scale(mean, deviation)
        self.validation = recordings.take(aside).scale(mean, deviation)
        self.tests = tests.scale(mean, deviation)

    def epoch(self, epoch: int, batch_size: int, *, noise: float, offset: float) -> list[Batch]:
        """The batches of one epoch, disturbed and shuffled anew in each."""
        disturbed = self.training.disturb(noise, offset, (self.seed, epoch, 1))
        return disturbed.batches(batch_size, (self.seed, epoch, 2))
