"""Argument checks of the modules, and their error messages.

If PyTorch checks the same condition, its message comes first, verbatim.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrnn.cells import Size


class InputError(ValueError, RuntimeError):
    """Invalid input: a ValueError for JAX users and a RuntimeError for PyTorch users."""


def number(name: str, value: Any, *, whole: bool) -> None:
    """Require a number that is not a bool."""
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        wanted = "an int" if whole else "a number"
        raise TypeError(f"`{name}` needs {wanted}, got {value!r}.")


def strategy(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, type) or not callable(value)):
        raise TypeError(
            f"`{name}` needs a strategy, such as strategies.Scan(), or None, got {value!r}."
        )


def array(name: str, value: Any) -> Array:
    """Convert the input of a module to one array."""
    if type(value).__name__ == "PackedSequence":
        raise TypeError(
            f"`{name}` needs a padded array and its lengths, got a PackedSequence: "
            "`x, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)`, then pass "
            "`jnp.asarray(x)` and `lengths=jnp.asarray(lengths)`."
        )
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        if isinstance(value, tuple):
            said = f"a tuple of {len(value)}: pass lengths as `lengths=` and states as `hx=`"
        elif isinstance(value, list):
            said = (
                "a ragged list: pad sequences of several lengths with `jaxrnn.data.pad`"
                " and pass their `lengths=`"
            )
        else:
            said = type(value).__name__
        raise TypeError(f"`{name}` needs one array as input, got {said}.") from error


def sequence(name: str, call: str, x: Array, input_size: int, batch_first: bool) -> None:
    """Require the input of a layer: (T, B, I), (B, T, I) or (T, I)."""
    wanted = f"(B, T, {input_size})" if batch_first else f"(T, B, {input_size})"
    needs = f"`{call}` needs inputs of shape {wanted} or (T, {input_size}), got {_shape(x)}."
    if x.ndim not in (2, 3):
        noun = "D tensor" if name == "RNN" else "D"
        raise InputError(
            f"{name}: Expected input to be 2D or 3D, got {x.ndim}{noun} instead. {needs}"
        )
    if x.shape[-1] != input_size:
        raise InputError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {input_size}, got {x.shape[-1]}. {needs}"
        )


def step_input(name: str, x: Array, input_size: int) -> None:
    """Require the input of a cell: (B, I) or (I,)."""
    wanted = f"(B, {input_size}) or ({input_size},)"
    needs = f"`{name}(input_size={input_size})` needs inputs of shape {wanted}, got {_shape(x)}."
    if x.ndim not in (1, 2):
        raise InputError(f"{name}: Expected input to be 1D or 2D, got {x.ndim}D instead. {needs}")
    if x.shape[-1] != input_size:
        raise InputError(
            f"input has inconsistent input_size: got {x.shape[-1]} expected {input_size}. {needs}"
        )


def dtype(name: str, x: Array, param_dtype: Any) -> None:
    """Require inputs of the parameters' dtype: as in PyTorch, nothing is converted implicitly."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({param_dtype}). "
            f"`{name}` needs floating inputs: `x.astype('{param_dtype}')`."
        )
    if x.dtype != param_dtype:
        raise InputError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({param_dtype}). "
            f"Convert input: input.to({param_dtype}), or convert model: model.to({x.dtype}). "
            f"In JAX: `x.astype('{param_dtype}')`, or `{name}(..., param_dtype='{x.dtype}')`, or "
            f"`{name}(..., dtype=...)`, which converts both to the dtype that it names."
        )


def convertible(name: str, x: Array, what: str) -> None:
    """Require real numbers, which `dtype=` can convert."""
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"`{name}` needs {what} of real numbers, got {x.dtype}.")


def state_dtypes(
    name: str, arrays: Sequence[Array], names: tuple[str, ...], allowed: Sequence[Any] | None
) -> None:
    """Require states of an allowed dtype, or of any real dtype if `allowed` is None."""
    for a, key in zip(arrays, names, strict=True):
        if allowed is None:
            convertible(name, a, key)
        elif a.dtype not in allowed:
            wanted = " or ".join(dict.fromkeys(str(d) for d in allowed))
            raise InputError(f"`{name}` needs {key} of dtype {wanted}, got {a.dtype}.")


def states(
    name: str, hx: Any, names: tuple[str, ...], batched: bool, shapes: Sequence[tuple]
) -> tuple[Array, ...]:
    """Initial states of a layer as arrays (L*D, B, ·), or (L*D, ·) unbatched."""
    if _like_lengths(hx):
        raise TypeError(
            f"`{name}` got integers in place of {' and '.join(names)}: pass lengths by name, "
            "`lengths=`."
        )
    arrays = _as_states(name, hx, names)
    ndim = 3 if batched else 2
    if any(a.ndim != ndim for a in arrays):
        kind = "batched 3-D" if batched else "unbatched 2-D"
        got = ", ".join(f"{a.ndim}-D" for a in arrays)
        if len(arrays) == 1:
            said = f"For {kind} input, hx should also be {ndim}-D but got {got} tensor"
        else:
            said = f"For {kind} input, hx and cx should also be {ndim}-D but got ({got}) tensors"
        raise InputError(f"{said}. `{name}` needs {_wanted(names, shapes, batched)}.")
    for a, key, shape in zip(arrays, names, shapes, strict=True):
        size = a.shape if batched else (a.shape[0], 1, a.shape[1])
        if size != shape:
            index = f"[{names.index(key)}]" if len(names) > 1 else ""
            raise InputError(
                f"Expected hidden{index} size {shape}, got {list(size)}. "
                f"`{name}` needs {_wanted(names, shapes, batched)}."
            )
    return arrays


def step_states(
    name: str, hx: Any, names: tuple[str, ...], batched: bool, shapes: Sequence[tuple]
) -> tuple[Array, ...]:
    """States of a cell as arrays (B, H), or (H,) unbatched."""
    arrays = _as_states(name, hx, names)
    for index, (a, (batch, hidden)) in enumerate(zip(arrays, shapes, strict=True)):
        what = "hidden" if len(names) == 1 else f"hx[{index}]"
        if a.ndim not in (1, 2):
            raise InputError(
                f"{name}: Expected {what} to be 1D or 2D, got {a.ndim}D instead. "
                f"`{name}` needs {_wanted(names, shapes, batched)}."
            )
        if a.ndim != (2 if batched else 1):
            raise InputError(
                f"`{name}` needs {what} of the input's rank: "
                f"{_wanted(names, shapes, batched)}, got {_shape(a)}."
            )
        if batched and a.shape[0] != batch:
            raise InputError(
                f"Input batch size {batch} doesn't match hidden{index} batch size {a.shape[0]}: "
                f"`{name}` needs {_wanted(names, shapes, batched)}."
            )
        if a.shape[-1] != hidden:
            raise InputError(
                f"hidden{index} has inconsistent hidden_size: got {a.shape[-1]}, expected {hidden}."
                f" `{name}` needs {_wanted(names, shapes, batched)}."
            )
    return arrays


def lengths(value: Any, batch: Size, steps: Size, batched: bool) -> Array | None:
    """`lengths` as an integer array (B,), or None if all rows are known to have T steps.

    Known values outside [0, T] are rejected. Traced ones are clipped by `layers.step_mask`.
    """
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if isinstance(value, list | tuple) and not value:
        array = np.zeros(0, np.int32)  # NumPy converts an empty list to floats
    shape = (batch,) if batched else ()
    wanted = f"(B,) = ({batch},)" if batched else "() for unbatched input"
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"`lengths` must be integers of shape {wanted}, got {array.dtype} of shape "
            f"{_shape(array)}."
        )
    if array.shape != shape:
        raise ValueError(
            f"`lengths` must be integers of shape {wanted}, got {array.dtype} of shape "
            f"{_shape(array)}."
        )
    if isinstance(steps, int) and not isinstance(array, jax.core.Tracer):
        known = np.asarray(array)
        wrong = (known < 0) | (known > steps)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"`lengths` must be in [0, T] = [0, {steps}], got {known.flat[row]} in row {row}."
            )
        if (known == steps).all():
            return None
        return jnp.asarray(known.astype(np.int32).reshape(batch))
    return jnp.asarray(array).reshape(batch)


def resets(call: str, value: Any, shape: tuple[Size, ...]) -> Array:
    """Require resets as booleans in the layout of the inputs, without the axis of features."""
    array = jnp.asarray(value)
    if array.dtype != bool or array.shape != tuple(shape):
        raise InputError(
            f"`{call}` needs boolean resets in the input's layout, {tuple(shape)}, got "
            f"{array.dtype} of shape {_shape(array)}."
        )
    return array


def _like_lengths(hx: Any) -> bool:
    """True if a state looks like lengths: one integer, or a row of integers."""
    try:
        arrays = [jnp.asarray(a) for a in (hx if isinstance(hx, tuple | list) else [hx])]
    except (TypeError, ValueError):
        return False
    return bool(arrays) and all(
        jnp.issubdtype(a.dtype, jnp.integer) and a.ndim <= 1 for a in arrays
    )


def _as_states(name: str, hx: Any, names: tuple[str, ...]) -> tuple[Array, ...]:
    if len(names) == 1:
        if isinstance(hx, tuple | list):
            raise TypeError(f"`{name}` needs one state, {names[0]}, got a {type(hx).__name__}.")
        return (_as_state(name, names[0], hx),)
    if not isinstance(hx, tuple | list) or len(hx) != len(names):
        got = f"{len(hx)} of them" if isinstance(hx, tuple | list) else type(hx).__name__
        raise TypeError(f"`{name}` needs the states ({', '.join(names)}), got {got}.")
    return tuple(_as_state(name, key, s) for key, s in zip(names, hx, strict=True))


def _as_state(name: str, key: str, value: Any) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        got = type(value).__name__
        raise TypeError(
            f"`{name}` needs an array as {key}, got {got}; leave `hx` out for zeros."
        ) from error


def _wanted(names: tuple[str, ...], shapes: Sequence[tuple], batched: bool) -> str:
    def text(shape: tuple) -> str:
        kept = shape if batched else (*shape[:-2], shape[-1])
        return str(tuple(kept))

    return " and ".join(f"{key} of shape {text(s)}" for key, s in zip(names, shapes, strict=True))


def _shape(x: Any) -> str:
    return str(tuple(x.shape))
