"""Refusal of an unpacked pair: an output and a state that one call returned together.

`nnx.Sequential` unpacks a tuple, so it calls the layer after a recurrent one as `layer(*outputs)`.
The state of one layer would silently become the initial state of the next. No argument tells who
called, but the two objects themselves do: each call remembers what it returned, weakly, and the
next call refuses exactly these two objects by position. A layer that is itself transformed,
`nnx.Sequential(nnx.jit(a), nnx.jit(b))`, sees other objects; transform the whole instead.
"""

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

_returned: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}
"""Pairs that are alive, by the `id` of the first; an entry ends with its first object."""


def refuse_unpacked(call: Callable[P, Result]) -> Callable[P, Result]:
    """Decorates `__call__(self, input, hx=None, ...)`; the state by name, `hx=`, is always taken.

    Raises:
        TypeError: the call was `layer(*outputs)` with the outputs of another call, or its
            arguments do not fit the signature.
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
        if len(args) == 3 and came_together(*args[1:]):
            raise TypeError(
                f"`{name}` got both results of one call, unpacked as `nnx.Sequential` does, and "
                "would start from the other layer's state. To pass only the output on, put "
                "`lambda y, h: y` between the layers; to start from that state, name it: `hx=h`."
            )
        result = call(*args, **kwargs)
        if isinstance(result, tuple):
            remember(*result)
        return result

    return checked


def remember(output: Any, state: Any) -> None:
    """Notes that one call returned both; neither is kept alive."""
    key = id(output)
    entry = weakref.ref(output, lambda _: _returned.pop(key, None)), weakref.ref(_array(state))
    _returned[key] = entry


def came_together(output: Any, state: Any) -> bool:
    """Return whether these very objects are the results of one call."""
    known = _returned.get(id(output))
    return known is not None and known[0]() is output and known[1]() is _array(state)


def _array(state: Any) -> Any:
    """The array that stands for a state: of the LSTM's pair, the first."""
    return state[0] if isinstance(state, tuple) else state
