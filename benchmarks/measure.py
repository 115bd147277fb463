"""Timing of peers in turns, calibration of the machine, and the resulting least times."""

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from points import GATES, Point

LEAST_ROUNDS, MOST_ROUNDS = 5, 30
LONG_ROUNDS = 3  # number of rounds, if they are longer than `LONG_ROUND`
SAMPLE = 2e-3  # least seconds of a sample; shorter calls are repeated and averaged
WARM = 20e-3  # seconds of untimed calls before a sample
LONG_ROUND = 2.0  # seconds; the trial of a longer round counts as its first round
# Transcendental evaluations of a cell for each unit and step.
TRANSCENDENTALS = {"rnn": 1, "lstm": 5, "gru": 3}


class _Compilations:
    """Count XLA's compilations in this process."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def during(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """Result of the call, and the number of compilations that it caused."""
        before = self.count
        result = call()
        return result, self.count - before


compilations = _Compilations()


def seconds(call: Callable[[], Any], repeats: int = 1) -> float:
    """Mean wall time of a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _trial(call: Callable[[], Any]) -> float:
    first = seconds(call)
    return first if first > 0.1 else min(first, seconds(call), seconds(call))


def interleaved(calls: Mapping[str, Callable[[], Any]], budget: float) -> dict[str, list[float]]:
    """Times every call once in each round, in rotating order, until the budget is spent.

    Short calls are repeated within a sample, after some untimed calls. The latter refill the caches
    after another peer has run, and let its threads go idle: OpenMP threads, which PyTorch uses,
    spin for about 10 ms after a call and would occupy a core of the next peer.

    Args:
        calls: calls by the name of the peer; each has been called before, so it is compiled.
        budget: seconds after which no further round begins, once the minimum is done.

    Returns:
        Seconds of a call in each round, by name.
    """
    gc.collect()
    trial = {name: _trial(call) for name, call in calls.items()}
    repeats = {name: max(1, round(SAMPLE / taken)) for name, taken in trial.items()}
    long = sum(trial.values()) > LONG_ROUND
    least = LONG_ROUNDS if long else LEAST_ROUNDS
    times = {name: [taken] if long else [] for name, taken in trial.items()}
    order = list(calls)
    start = time.perf_counter()
    for done in range(int(long), MOST_ROUNDS):
        if done >= least and time.perf_counter() - start >= budget:
            break
        for name in order:
            warm_until = time.perf_counter() + WARM
            while trial[name] < 0.1 and time.perf_counter() < warm_until:
                calls[name]()
            times[name].append(seconds(calls[name], repeats[name]))
        order = order[1:] + order[:1]
    return times


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Speed of the machine: `peak` in flop/s on all cores, `tau` in seconds on one core."""

    peak: float
    tau: float
    cores: int


def calibrate(cores: int, budget: float, size: int = 2048) -> Calibration:
    """The best of several large float32 matrix products, and of several vectorised tanh.

    The products are PyTorch's or XLA's, whichever is faster. The tanh is PyTorch's, on an array
    that stays in the cache and is too small to be split over threads.
    """
    import torch

    torch.set_num_threads(cores)
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    theirs, ours = torch.from_numpy(a), jax.numpy.asarray(a)
    product = jax.jit(jax.numpy.matmul)
    calls = {
        "torch": lambda: torch.mm(theirs, theirs),
        "jax": lambda: jax.block_until_ready(product(ours, ours)),
    }
    for call in calls.values():
        call()
    best = min(min(times) for times in interleaved(calls, budget).values())

    x = torch.linspace(-4, 4, 8192)
    y = torch.empty_like(x)
    with torch.inference_mode():
        tau = min(seconds(lambda: torch.tanh(x, out=y), 50) for _ in range(40)) / x.numel()
    return Calibration(2 * size**3 / best, tau, cores)


def floor(point: Point, calibration: Calibration) -> float:
    """Least seconds of a point: its products at peak speed, then its functions.

    Over the true steps n of all rows, with G gates and n_t transcendental functions, the time is n
    (2 (I + H) G H / peak + H n_t tau / cores) for each layer and direction. Training takes 3 times
    the products and 2.5 times the rest.
    """
    hidden = point.hidden
    products, functions = (3.0, 2.5) if point.mode == "training" else (1.0, 1.0)
    total = 0.0
    for layer in range(point.layers):
        inputs = point.directions * hidden if layer else point.inputs
        flops = 2 * (inputs + hidden) * GATES[point.cell] * hidden
        total += products * flops / calibration.peak
        evaluations = hidden * TRANSCENDENTALS[point.cell]
        total += functions * evaluations * calibration.tau / calibration.cores
    return total * point.directions * int(point.row_lengths().sum())
