"""`save_safetensors` and `load_safetensors`: `state_dict` in a file that PyTorch reads."""

import os
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxrnn import files, sharding
from jaxrnn.interchange import arguments
from jaxrnn.interchange.arrays import equal, exported
from jaxrnn.interchange.entry import identity
from jaxrnn.interchange.mapping import load_state_dict
from jaxrnn.interchange.problems import IncompatibleKeys, check, select
from jaxrnn.interchange.torch_names import entries


def save_safetensors(module: nnx.Module, path: str | os.PathLike[str]) -> None:
    """Write a module's `state_dict` to a safetensors file, atomically; PyTorch can read it.

    A shared parameter is written once, under its first name, as `safetensors.torch.save_model`
    does. `safetensors.torch.load_model` reads such a file into a model that shares the parameter
    too. If parameters are divided over several processes, each must call this function, and the
    first one writes the file.

    Raises:
        TypeError: not a module, or not a path.
        ValueError: as `state_dict`; for a dtype that safetensors lacks; if `path` exists and is not
            a regular file.
        OSError: the file cannot be written. An existing file at `path` is unchanged.

    Example:
        >>> import os, tempfile
        >>> from flax import nnx
        >>> from jaxrnn import interchange
        >>> model, other = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Linear(3, 2, rngs=nnx.Rngs(1))
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> interchange.save_safetensors(model, path)
        >>> names = interchange.load_safetensors(other, path)
        >>> bool((other.kernel[...] == model.kernel[...]).all())
        True
    """
    arguments.check_path("save_safetensors", module, path)
    arrays: dict[str, Any] = {}
    first: dict[Any, str] = {}
    found = entries(module)
    for entry in found:
        array = exported(entry)
        if isinstance(array, jax.core.Tracer):
            raise ValueError(
                f"`{entry.name}` is traced: a file cannot be written inside `jax.jit`."
            )
        if not entry.ignored_on_load:
            name = first.setdefault(tuple(map(identity, entry.leaves)), entry.name)
            if name in arrays and equal(arrays[name], array):
                continue
        arrays[entry.name] = array
    divided = any(sharding.is_divided(value) for entry in found for value in entry.values)
    if not divided or jax.process_index() == 0:
        files.write(path, arrays)


def load_safetensors(
    module: nnx.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    prefix: str = "",
    rename: Callable[[str], str | None] | None = None,
) -> IncompatibleKeys:
    """Load a safetensors file, from jaxrnn or PyTorch, into a module, as `load_state_dict` does.

    Files from `save_safetensors` contain a digest, and are rejected if a single bit has changed.
    Other files contain none, so damage to their data goes unnoticed. Pickles (`.pt`, `.pth`) are
    never opened.

    Args:
        module: the module, changed in place.
        path: path of the file.
        strict, prefix, rename: as in `load_state_dict`.

    Returns:
        As `load_state_dict`.

    Raises:
        TypeError: not a module, or not a path.
        ValueError: as `load_state_dict`; for an invalid or incomplete safetensors file. The module
            is unchanged.
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
    arguments.check_path("load_safetensors", module, path)
    targets = entries(module)

    def accept(specs: dict[str, files.Spec]) -> None:
        check(targets, select(targets, specs, prefix, rename), strict)

    arrays = files.read(path, accept)
    return load_state_dict(module, arrays, strict=strict, prefix=prefix, rename=rename)
