# %% [markdown]
# # Your PyTorch LSTM in JAX in 10 lines
#
# A PyTorch model with an LSTM, its twin in Flax, and the same numbers from both. Then the twin is
# trained further in JAX on sequences of different lengths, run step by step, and written back.
#
# The PyTorch model is the one that you have already. Here it is a classifier of sequences.

# %%
import torch


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 16, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x):
        output, (h_n, c_n) = self.lstm(x)
        return self.head(h_n[-1])


torch.manual_seed(0)
theirs = Theirs()

# %% [markdown]
# ## The twin, and its weights
#
# Arguments and attribute names are PyTorch's. Two things are new: `rngs`, and `lengths`, the true
# number of steps in each row.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import data, training
from jaxrnn.testing import assert_parity


class Ours(nnx.Module):
    def __init__(self, rngs):
        self.lstm = jaxrnn.LSTM(4, 16, num_layers=2, batch_first=True, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x, lengths=None):
        output, (h_n, c_n) = self.lstm(x, lengths=lengths)
        return self.head(h_n[-1])


ours = Ours(nnx.Rngs(0))
jaxrnn.load_state_dict(ours, theirs.state_dict())

# %% [markdown]
# ## Verify
#
# `assert_parity` runs copies of both models with the same weights and compares every output, the
# loss and every gradient. It raises an error with this table where they disagree.

# %%
x = np.random.default_rng(0).normal(size=(5, 12, 4))
print(assert_parity(theirs, ours, x))

# %% [markdown]
# ## Fine-tune on sequences of different lengths
#
# `data.batches` pads the sequences and keeps their lengths; what stands in the padding has no
# effect on outputs, states or gradients. With a folder, `fit` also writes checkpoints and can be
# resumed after a crash.

# %%
rng = np.random.default_rng(1)
labels = np.arange(96) % 3
slopes = np.array([-1.0, 0.0, 1.0])
sequences = [
    (slopes[label] * np.linspace(0, 1, n)[:, None] + rng.normal(0, 0.3, (n, 4))).astype(np.float32)
    for label, n in zip(labels, rng.integers(6, 25, len(labels)))
]
optimizer = nnx.Optimizer(ours, optax.adam(1e-2), wrt=nnx.Param)
history = training.fit(
    ours,
    optimizer,
    lambda epoch: data.batches(sequences, labels, 32, seed=(0, epoch)),
    epochs=30,
    metrics={"accuracy": training.accuracy},
)
print(f"loss {history['loss'][0]:.2f} at first, {history['loss'][-3:].mean():.2f} at the end")
print(f"accuracy {history['accuracy'][-3:].mean():.2f}")

# %% [markdown]
# ## Stream
#
# `step` takes one step of a stream, and the state goes from call to call. No call compiles anew,
# and the last state is that of the whole sequence. [Streaming](guides/streaming.md) gives the
# cost of a step.

# %%
ours.eval()
graph, weights = nnx.split(ours.lstm)


@jax.jit
def step(weights, x, state):
    return nnx.merge(graph, weights).step(x, state)


sequence = jnp.asarray(sequences[0])[None]  # (1, T, 4)
state = ours.lstm.initial_state(1)
for t in range(sequence.shape[1]):
    y, state = step(weights, sequence[:, t], state)
whole, _ = ours.lstm(sequence)
print(f"difference from the whole sequence: {abs(y - whole[:, -1]).max():.0e}")

# %% [markdown]
# ## Write back
#
# The trained weights return to PyTorch by name, in memory or through a file that both read
# (`save_safetensors`).

# %%
theirs.load_state_dict({k: torch.from_numpy(v) for k, v in jaxrnn.state_dict(ours).items()})
with torch.no_grad():
    logits = theirs(torch.from_numpy(np.array(sequence)))
print(f"difference in the logits: {abs(logits.numpy() - ours(sequence)).max():.0e}")
