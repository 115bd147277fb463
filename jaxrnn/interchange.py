"""Weights and gradients under PyTorch's names and in PyTorch's layouts, in memory and in files.

Our recurrent modules hold PyTorch's names and layouts already; what Flax's own layers hold
otherwise is in the table `jaxrnn.names.RULES`. Names of nested modules are joined by dots,
`nnx.Sequential` counts its layers as `torch.nn.Sequential` does (`net.0.weight`), and a parameter
of a user's own module is copied under its attribute's name. Layers that PyTorch lays out in
another way (`nnx.MultiHeadAttention`, `nnx.ConvTranspose`, Flax's recurrent cells, ...) are
refused.

What has a name: every `nnx.Variable` but random states, caches and sown values. Plain arrays have
none, as in PyTorch. A parameter held under two names has both.

Weights move, settings do not. Where the defaults differ, the twins must be built to agree:
`nnx.LayerNorm` and `nnx.GroupNorm` have `epsilon=1e-6` where PyTorch has `eps=1e-5`;
`nnx.BatchNorm(momentum=0.9)` is PyTorch's `momentum=0.1`, and its running variance is the biased
one where PyTorch's is unbiased; `nnx.Conv` pads by default and has its channels last.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import files
from jaxrnn.names import Entry, entries, entries_like, is_array


def state_dict(module: nnx.Module | Any, *, like: nnx.Module | None = None) -> dict[str, Any]:
    """PyTorch's name -> NumPy array in PyTorch's layout, for a module's parameters or gradients.

    The arrays are copies, C-contiguous and writable, ready for `torch.from_numpy` (which knows no
    bfloat16; a file does). Inside a JAX transformation they are the traced arrays.

    Gradients come as a module (from `jax.grad`) or as an `nnx.State` (from `nnx.grad`). A state
    does not say which layers it is of: pass `like=model`. Without it, a group of parameters is
    taken for a Flax layer when its names are exactly those of one: `kernel` (two dimensions:
    `nnx.Linear`, more: `nnx.Conv`), `embedding`, `scale`, each with or without `bias`, or those of
    `nnx.BatchNorm`.

    `nnx.BatchNorm` has no `num_batches_tracked`: it is 0 here, which PyTorch reads only with
    `momentum=None`.

    Raises:
        TypeError: neither a module nor a state.
        ValueError: a layer that cannot be translated, or a state that needs `like`.

    Example:
        >>> from flax import nnx
        >>> from jaxrnn import interchange
        >>> model = nnx.Sequential(nnx.Embed(10, 3, rngs=nnx.Rngs(0)),
        ...     nnx.Linear(3, 4, rngs=nnx.Rngs(1)))
        >>> {name: array.shape for name, array in interchange.state_dict(model).items()}
        {'0.weight': (10, 3), '1.weight': (4, 3), '1.bias': (4,)}
        >>> grads = nnx.grad(lambda model: model.layers[1].bias[...].sum())(model)
        >>> interchange.state_dict(grads, like=model)["1.bias"]
        array([1., 1., 1., 1.], dtype=float32)
    """
    if not isinstance(module, nnx.State):
        found = entries(_checked(module))
    else:
        found = entries(module) if like is None else entries_like(_checked(like), module)
    return {e.name: _exported(e) for e in found if e.value.dtype != jax.dtypes.float0}


def load_state_dict(module: nnx.Module, mapping: Mapping[str, Any]) -> None:
    """Copy named arrays in PyTorch's layout into a module's parameters, in place.

    The arrays may be of NumPy, JAX or PyTorch (on any device, with or without gradients). Each is
    cast to its parameter's own dtype, as PyTorch casts, and put where the parameter is. All names
    must be there and no others, but for two: of the names of one shared parameter one is enough,
    and `num_batches_tracked` is ignored.

    Raises:
        TypeError: not a module, or not a mapping.
        ValueError: names that are missing, unexpected, misshapen, of a dtype that cannot be cast
            without loss of kind (complex to real, real to integer), or that differ for a shared
            parameter. The message lists all of them, and nothing has changed.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxrnn import interchange
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> interchange.load_state_dict(model, {"weight": np.ones((2, 3)), "bias": np.zeros(2)})
        >>> model.kernel.shape
        (3, 2)
        >>> interchange.load_state_dict(model, {"weight": np.ones((3, 2)), "bias": np.zeros(2)})
        Traceback (most recent call last):
        ValueError: Nothing was loaded:
        `weight` has shape (3, 2) in the given state but (2, 3) in the model.
    """
    targets = entries(_checked(module))
    if not isinstance(mapping, Mapping):
        raise TypeError(
            "`load_state_dict(module, mapping)` needs a mapping of names to arrays, "
            f"got {type(mapping).__name__}. A model's mapping is its `state_dict()`."
        )
    given = {name: _imported(value) for name, value in mapping.items()}
    _raise_if(_problems(targets, given))
    new: dict[int, tuple[Entry, Any]] = {}
    problems = []
    for entry in targets:
        if entry.ignored_on_load or entry.name not in given:
            continue
        value = _cast(entry.rule.from_torch(given[entry.name]), entry.value.dtype)
        first, other = new.setdefault(id(entry.leaf), (entry, value))
        if other is not value and not _equal(other, value):
            problems.append(
                f"`{first.name}` and `{entry.name}` are one parameter in the model "
                "but not equal in the given state."
            )
    _raise_if(problems)
    placed = [(entry.leaf, _placed(value, entry.value)) for entry, value in new.values()]
    for variable, value in placed:
        variable.set_value(value)


def save_safetensors(module: nnx.Module, path: str | os.PathLike[str]) -> None:
    """Write a module's `state_dict` to a safetensors file that PyTorch reads too, all or nothing.

    Raises:
        TypeError: not a module.
        ValueError: as `state_dict`; a dtype that safetensors lacks; `path` is no regular file.
        OSError: as the system says. What was at `path` is then still there.

    Example:
        >>> import os, tempfile
        >>> from flax import nnx
        >>> from jaxrnn import interchange
        >>> model, twin = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> interchange.save_safetensors(model, path)
        >>> interchange.load_safetensors(twin, path)
        >>> bool((twin.kernel[...] == model.kernel[...]).all())
        True
    """
    arrays = {entry.name: _exported(entry) for entry in entries(_checked(module))}
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer):
            raise ValueError(f"`{name}` is traced: a file cannot be written inside `jax.jit`.")
    files.write(path, arrays)


def load_safetensors(module: nnx.Module, path: str | os.PathLike[str]) -> None:
    """Read a safetensors file, ours or PyTorch's, into a module: `load_state_dict` from a file.

    A file of ours carries a digest, and is refused if one bit of it has changed. Files of others
    carry none, so damage to their data cannot be seen. Pickles (`.pt`, `.pth`) are never opened.

    Raises:
        TypeError: not a module.
        ValueError: as `load_state_dict`; or not a whole safetensors file. Nothing has changed.
        OSError: the file cannot be opened.

    Example:
        >>> import os, tempfile
        >>> from flax import nnx
        >>> from jaxrnn import interchange
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> interchange.save_safetensors(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), path)
        >>> interchange.load_safetensors(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), path)
        Traceback (most recent call last):
        ValueError: Nothing was loaded:
        `weight` has shape (2, 3) in the given state but (4, 3) in the model.
        `bias` has shape (2,) in the given state but (4,) in the model.
    """
    targets = entries(_checked(module))
    arrays = files.read(path, lambda specs: _raise_if(_problems(targets, specs)))
    load_state_dict(module, arrays)


def _checked(module: Any) -> nnx.Module:
    if not isinstance(module, nnx.Module):
        raise TypeError(f"An nnx.Module is needed (or its gradient), got {type(module).__name__}.")
    return module


def _problems(targets: list[Entry], given: Mapping[str, Any]) -> list[str]:
    """One sentence for each name that does not fit, in the order of the model."""
    problems = []
    present = {id(entry.leaf) for entry in targets if entry.name in given}
    for entry in targets:
        name, value = entry.name, given.get(entry.name)
        if entry.ignored_on_load:
            continue
        if name not in given:
            if id(entry.leaf) not in present:
                problems.append(f"`{name}` is missing from the given state.")
        elif not isinstance(value, np.ndarray | jax.Array | files.Spec):
            kind = type(value).__name__
            problems.append(f"`{name}` is a {kind} in the given state, not an array to be read.")
        elif tuple(value.shape) != entry.shape:
            problems.append(
                f"`{name}` has shape {tuple(value.shape)} in the given state "
                f"but {entry.shape} in the model."
            )
        elif not _castable(value.dtype, entry.value.dtype):
            problems.append(
                f"`{name}` has dtype {value.dtype} in the given state "
                f"but {entry.value.dtype} in the model."
            )
    unexpected = given.keys() - {entry.name for entry in targets}
    texts = [f"`{name}` is in the given state but not in the model." for name in unexpected]
    return problems + sorted(texts)


def _raise_if(problems: list[str]) -> None:
    if problems:
        raise ValueError("\n".join(["Nothing was loaded:", *problems]))


def _castable(source: Any, target: Any) -> bool:
    """Whether no kind is lost: booleans become integers, real and complex numbers, never back."""
    kinds = [jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating]
    found = [[i for i, k in enumerate(kinds) if jnp.issubdtype(d, k)] for d in (source, target)]
    return all(found) and found[0] <= found[1]


def _exported(entry: Entry) -> Any:
    value = entry.value
    if isinstance(value, jax.ShapeDtypeStruct):
        raise ValueError(f"`{entry.name}` has a shape but no values yet: load some first.")
    if isinstance(value, jax.core.Tracer):
        return entry.rule.to_torch(value)
    return np.array(entry.rule.to_torch(np.asarray(value)), order="C")


def _imported(value: Any) -> Any:
    """A NumPy array for an array of NumPy, JAX or PyTorch (without a copy if possible).

    Traced arrays stay as they are, and so does what is no array.
    """
    if isinstance(value, jax.core.Tracer) or not is_array(value):
        return value
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().resolve_conj().resolve_neg()
            if "float" in str(value.dtype):
                # NumPy has no bfloat16 and no float8, and float32 holds both.
                return value.numpy() if value.itemsize > 2 else value.float().numpy()
            return value.numpy()
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def _cast(value: Any, dtype: np.dtype) -> Any:
    """A copy of one's own, so that no later change to the given array reaches the model."""
    if isinstance(value, jax.core.Tracer):
        return value.astype(dtype)
    # PyTorch too turns what is too large into infinity without a word.
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(dtype, order="C", copy=True)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return False
    return a.tobytes() == b.tobytes()


def _placed(value: Any, old: Any) -> Any:
    """The new value as the old one is kept: by NumPy, or by JAX on the same devices."""
    if isinstance(value, jax.core.Tracer) or isinstance(old, np.ndarray):
        return value
    if isinstance(old, jax.core.Tracer) or not getattr(old, "committed", True):
        return jnp.asarray(value)
    return jnp.asarray(value) if old.sharding is None else jax.device_put(value, old.sharding)
