"""`state_dict` and `load_state_dict`: parameters and gradients by PyTorch's names."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jaxrnn.interchange.arguments import check_mapping, check_module
from jaxrnn.interchange.arrays import cast, equal, exported, imported, placed
from jaxrnn.interchange.entry import Entry, identity
from jaxrnn.interchange.problems import IncompatibleKeys, check, raise_if, select
from jaxrnn.interchange.torch_names import entries, entries_like


def state_dict(module: nnx.Module | Any, *, like: nnx.Module | None = None) -> dict[str, Any]:
    """Map PyTorch's names to NumPy arrays in PyTorch's layouts: parameters or gradients.

    The arrays are copies, C-contiguous and writable, ready for `torch.from_numpy` (except for
    bfloat16, which only files support). Inside a JAX transformation they are the traced arrays.

    Gradients are passed as a module (from `jax.grad`) or as an `nnx.State` (from `nnx.grad`). A
    state does not record its layers' types, so pass `like=model`. Without it, a group of parameters
    is taken for a Flax layer if its names match that layer exactly: `kernel` (two dimensions:
    `nnx.Linear`, more: `nnx.Conv`), `embedding` or `scale`, each with or without `bias`; the names
    of `nnx.BatchNorm`; or `negative_slope` (`nnx.PReLU`).

    `nnx.BatchNorm` has no `num_batches_tracked`. It is 0 here; PyTorch uses it only with
    `momentum=None`.

    Raises:
        TypeError: for anything but a module or a state.
        ValueError: for a layer that cannot be translated, or a state that needs `like`.

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
        found = entries(check_module(module))
    else:
        found = entries(module) if like is None else entries_like(check_module(like), module)
    return {entry.name: exported(entry) for entry in found if entry.dtype != jax.dtypes.float0}


def load_state_dict(
    module: nnx.Module,
    mapping: Mapping[str, Any],
    *,
    strict: bool = True,
    prefix: str = "",
    rename: Callable[[str], str | None] | None = None,
) -> IncompatibleKeys:
    """Copy named arrays in PyTorch's layouts into a module's parameters, in place.

    The arrays may be NumPy, JAX or PyTorch arrays (on any device, with or without gradients). Each
    is cast to the dtype of its parameter, as in PyTorch, and placed on its device; float16 and
    bfloat16 become float32 without loss. The names must match the model's exactly, with two
    exceptions: one name of a shared parameter is enough, and `num_batches_tracked` is ignored.

    Args:
        module: the module, changed in place.
        mapping: a PyTorch model's `state_dict()`, or any mapping from names to arrays.
        strict: if False, parameters without a given value keep their values, and names that the
            model lacks are ignored. Shapes must still match, as in PyTorch.
        prefix: load only the names that start with this prefix, and remove it: `"module."` for a
            model that was wrapped in `DataParallel`, `"_orig_mod."` for a compiled model,
            `"encoder."` for a part of a larger model.
        rename: function from a name in the mapping, without `prefix`, to the model's name, or to
            None to skip it.

    Returns:
        (missing_keys, unexpected_keys), both empty if `strict`. The former are names of the model,
        the latter names of the mapping.

    Raises:
        TypeError: for an argument that is not a module or not a mapping, with what to pass instead.
        ValueError: for missing or unexpected names, wrong shapes, dtypes of another kind (complex
            to real, real to integer), or unequal values for a shared parameter. The message lists
            up to ten of them, or names the prefix that all names have or the key of a training
            checkpoint that holds them. The module is unchanged.

    Example:
        >>> import numpy as np
        >>> from flax import nnx
        >>> from jaxrnn import interchange
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> given = {"module.weight": np.ones((2, 3)), "module.bias": np.zeros(2)}
        >>> interchange.load_state_dict(model, given, prefix="module.")
        IncompatibleKeys(missing_keys=[], unexpected_keys=[])
        >>> interchange.load_state_dict(model, given)
        Traceback (most recent call last):
        ValueError: Nothing was loaded: every name in the given state starts with `module.`. Pass
        `prefix="module."`.
        >>> interchange.load_state_dict(model, {"weight": np.ones((2, 3)), "w": 1}, strict=False)
        IncompatibleKeys(missing_keys=['bias'], unexpected_keys=['w'])
        >>> interchange.load_state_dict(model, {"weight": np.ones((3, 2)), "bias": np.zeros(2)})
        Traceback (most recent call last):
        ValueError: Nothing was loaded:
        `weight` has shape (3, 2) in the given state but (2, 3) in the model.
    """
    check_mapping(module, mapping)
    targets = entries(module)
    given = select(targets, {k: imported(v) for k, v in mapping.items()}, prefix, rename)
    keys = check(targets, given, strict)
    new: dict[Any, tuple[Entry, Any, Any]] = {}
    problems = []
    for entry in targets:
        if entry.ignored_on_load or entry.name not in given.values:
            continue
        shapes = [value.shape for value in entry.values]
        parts = entry.layout.from_torch(given.values[entry.name], shapes)
        differ = None
        for leaf, part, old in zip(entry.leaves, parts, entry.values, strict=True):
            value = cast(part, old.dtype)
            first, _, other = new.setdefault(identity(leaf), (entry, leaf, value))
            if other is not value and not equal(other, value):
                differ = first
        if differ is not None:
            problems.append(
                f"`{differ.name}` and `{entry.name}` are one parameter in the model "
                "but not equal in the given state."
            )
    raise_if(problems)
    for leaf, value in [(leaf, placed(v, leaf.get_value())) for _, leaf, v in new.values()]:
        leaf.set_value(value)
    return keys
