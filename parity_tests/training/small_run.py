"""A small run of `fit`: a model with all kinds of state, data, and what its tests compare."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import data
from jaxrnn.training import checkpoints

CLASSES = 3


class Tiny(nnx.Module):
    """All kinds of state: parameters, dropout, statistics, an empty array, bfloat16."""

    def __init__(self, seed=0, hidden=4, dtype=jnp.float32):
        rngs = nnx.Rngs(seed)
        self.inner = nnx.Linear(2, hidden, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.fc = nnx.Linear(hidden, CLASSES, param_dtype=dtype, dtype=jnp.float32, rngs=rngs)
        self.empty = nnx.Param(jnp.zeros((0, 3)))

    def __call__(self, x, *, lengths):
        with jax.numpy_dtype_promotion("standard"):
            mean = x.sum(1) / lengths[:, None]
            return self.fc(self.dropout(self.norm(jnp.tanh(self.inner(mean)))))


def sequences():
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((n, 2)).astype(np.float32) for n in rng.integers(1, 9, 30)]
    return made, np.array([int(np.abs(s.sum())) % CLASSES for s in made])


def epoch(number, seed=0):
    return data.batches(*sequences(), 8, seed=(seed, number), buckets=[4, 8])


TX = optax.adam(3e-2)


def start(tx=TX, **options):
    model = Tiny(**options)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def arrays(*nodes):
    """All arrays of modules and optimizers, as bytes."""
    leaves = jax.tree.leaves([nnx.state(node) for node in nodes])
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()
        for leaf, key in zip(leaves, keys, strict=True)
    ]


def timeless(history):
    """Records without the seconds, which differ from run to run."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


def contents(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def newest(run):
    return run / "checkpoints" / str(max(checkpoints.steps(run / "checkpoints")))
