"""Refusal of `nnx.Sequential`, which would unpack a recurrent layer's output and state.

`nnx.Sequential` unpacks a tuple, so it calls the layer after a recurrent one as `layer(*outputs)`:
the state of one layer would silently become the initial state of the next, or the slope of an
activation. The arguments do not tell who called, so the call stack is read, as far as it consists
of the frames of libraries: what a user's own function passes on is meant.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from flax import nnx

P = ParamSpec("P")
Result = TypeVar("Result")

LIBRARIES = frozenset(
    ["beartype", "contextlib", "flax", "functools", "jax", "jaxlib", "jaxrnn", "jaxtyping"]
)
_SEQUENTIAL = inspect.unwrap(nnx.Sequential.__call__).__code__


def refuse_unpacked(call: Callable[P, Result]) -> Callable[P, Result]:
    """Decorate `__call__(self, input, hx=None, ...)`; the state by name, `hx=`, is always taken.

    Raises:
        TypeError: `nnx.Sequential` unpacked a pair into this call, or would unpack the pair that it
            returns into another layer's call; or the arguments do not fit the signature.
    """
    signature = inspect.signature(call)

    @functools.wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Result:
        name = type(args[0]).__name__
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"`{name}` takes its input and `hx`, and all else by name: {error}."
            ) from None
        if len(args) == 3 and any(place.position > 0 for place in _places()):
            raise TypeError(
                f"`{name}` got both results of the layer before it, unpacked by `nnx.Sequential`, "
                f"and would start from that layer's state. {_advice(name)}"
            )
        result = call(*args, **kwargs)
        if isinstance(result, tuple):
            layers = (place.following for place in _places())
            following = next((layer for layer in layers if layer is not None), None)
            if following is not None and _is_of_libraries(following):
                after = getattr(following, "__name__", type(following).__name__)
                raise TypeError(
                    f"`{name}` returns its output and its state, which `nnx.Sequential` would "
                    f"unpack into two arguments of `{after}`. {_advice(after)}"
                )
        return result

    return checked


def _advice(name: str) -> str:
    return (
        "To pass only the output on, put `lambda y, h: y` between the layers; to start from that "
        f"state, write a function that names it, `hx=h`, in place of `{name}`."
    )


class _Place(NamedTuple):
    """A position in a running `nnx.Sequential`, and the layer after it if there is one."""

    position: int
    following: Any


def _places() -> Iterator[_Place]:
    """The positions of the running call, the innermost first, up to the first user's function."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not _is_library(module) or module.startswith("jaxrnn.models"):
            return
        if frame.f_code is _SEQUENTIAL:
            position, layers = frame.f_locals["i"], list(frame.f_locals["self"].layers)
            yield _Place(position, layers[position + 1] if position + 1 < len(layers) else None)
        frame = frame.f_back


def _is_of_libraries(layer: Any) -> bool:
    """Return True if a library defines the layer: only a user's own layer may take a pair."""
    while True:
        if isinstance(layer, functools.partial):
            inner = layer.func
        elif isinstance(layer, nnx.Sequential) and len(layer.layers):
            inner = layer.layers[0]
        else:
            inner = inspect.unwrap(layer)
        if inner is layer:
            return _is_library(getattr(layer, "__module__", None) or "")
        layer = inner


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES
