"""Conversion of a model's or optimizer's state to named NumPy arrays, and back."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from jaxrnn import sharding


def weights(model: nnx.Module) -> Any:
    """State of a model except for its dropout counters, which early stopping does not restore."""
    return jax.tree.map(lambda array: array, nnx.state(model, nnx.Not(nnx.RngState)))


def named(tree: Any) -> dict[str, Any]:
    """Arrays of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in leaves
    }
    if len(named) < len(leaves):
        raise ValueError("Two arrays of the state have the same name: rename an attribute.")
    return named


def host(tree: Any) -> dict[str, Any]:
    """Arrays of a tree in NumPy; those divided over processes stay as they are."""
    arrays = {name: numbers(leaf) for name, leaf in named(tree).items()}
    return {name: a if sharding.is_divided(a) else np.asarray(a) for name, a in arrays.items()}


def numbers(leaf: Any) -> Any:
    """The array itself, or the words of random keys."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def device(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """The tree with the given arrays, each on the devices of the array that it replaces."""

    def replace(old: Any, new: Any) -> Any:
        if isinstance(old, np.ndarray):
            return new
        return place(old, new, old.sharding if old.committed else None)

    leaves = [replace(old, arrays[name]) for name, old in named(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def place(like: Any, new: Any, placement: Sharding | None) -> jax.Array:
    """A new array with the kind of another, random keys included, at a placement."""
    if sharding.is_divided(new):
        return new.astype(new.dtype)  # without JAX's weak type
    array = jnp.asarray(new) if placement is None else sharding.put(new, placement)
    return (
        jax.random.wrap_key_data(array, impl=jax.random.key_impl(like)) if _is_key(like) else array
    )


def divided(tree: Any) -> dict[str, Sharding]:
    """Placements of the arrays of a tree that are divided over processes, by their paths."""
    arrays = named(tree).items()
    return {name: leaf.sharding for name, leaf in arrays if sharding.is_divided(leaf)}


def check_layout(path: Path, wanted: dict[str, list[Any]], found: dict[str, list[Any]]) -> None:
    def text(entry: list[Any] | None) -> str:
        return "absent" if entry is None else f"{entry[0]} of {tuple(entry[1:])}"

    problems = [
        f"`{name}` is {text(found.get(name))} in the checkpoint, {text(wanted.get(name))} here."
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if problems:
        sentence = f"The checkpoint `{path}` is of another model or optimizer. Nothing was loaded:"
        raise ValueError("\n".join([sentence, *problems]))


def digest(batch: Any) -> str:
    """SHA-256 of all arrays of a batch, with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for name, value in named(batch).items():
        array = np.asarray(sharding.fetch(numbers(value)), order="C")
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def learning_rate(optimizer: nnx.Optimizer) -> Any | None:
    """Last rate of `optax.inject_hyperparams`, times the scale of `reduce_on_plateau`.

    None if the optimizer's state holds no rate, or several.
    """
    arrays = named(nnx.state(optimizer))
    rates = [array for name, array in arrays.items() if name.endswith(".hyperparams.learning_rate")]
    if len(rates) != 1:
        return None
    (rate,) = rates
    for name in arrays:
        if name.endswith(".plateau_count"):
            rate = rate * arrays[name.removesuffix("plateau_count") + "scale"].astype(rate.dtype)
    return rate
