"""Random masks in training: dropout of several kinds and zoneout, drawn or given.

The keys are drawn outside of the compiled call, where Flax's streams can count, and the masks are
made inside. `nnx.Dropout` would do both at once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from jaxrnn.cells import Weights


class Rates(NamedTuple):
    """Probabilities, 0 for none, and whether dropout has one mask for all steps."""

    between: float = 0.0
    input: float = 0.0
    recurrent: float = 0.0
    weight: float = 0.0
    zoneout: tuple[float, ...] = ()
    variational: bool = False

    def keys(self, layers: int, directions: int) -> dict[str, int]:
        """The number of random keys by field, in the order in which they are drawn."""
        rows = layers * directions
        wanted = {
            "between": (self.between, layers - 1),
            "input": (self.input, 1),
            "recurrent": (self.recurrent, rows),
            "weight": (self.weight, rows),
            "zoneout": (max(self.zoneout, default=0.0), rows * len(self.zoneout)),
        }
        return {key: n for key, (rate, n) in wanted.items() if rate > 0 and n > 0}


class Masks(NamedTuple):
    """The random decisions of one call, as booleans; None for kinds that the layer does not use.

    Of the dropouts True means that the element stays, of zoneout that the state keeps its value.
    Time is the first axis, also with `batch_first`, and T is 1 where one mask holds for all steps.
    The last axis is that of what is dropped.

    Attributes:
        between: of the outputs of each layer but the last, (L-1, T or 1, B, D*P).
        input: of the inputs, (T or 1, B, I).
        recurrent: of h in the product W_hh h, (L*D, B, P), the same at every step.
        weight: of W_hh, (L*D, G*H, P), the same for all rows and steps.
        zoneout: of each state whose rate is not 0, in the order of the states, (L*D, T, B, ·).

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> masks = jaxrnn.GRU(3, 5, input_dropout=0.5, rngs=nnx.Rngs(0)).draw_masks(7, 4)
        >>> masks.input.shape, masks.between
        ((7, 4, 3), None)
    """

    between: Array | None = None
    input: Array | None = None
    recurrent: Array | None = None
    weight: Array | None = None
    zoneout: tuple[Array | None, ...] | None = None


def draw_keys(name: str, layer: nnx.Dropout, rngs: Any, count: int) -> tuple[Array, ...]:
    """`count` keys from the call's `rngs`, or else from the layer's own.

    Args:
        name: of the module, for the message.
        layer: holds the stream's name and the stream itself.
        rngs: `nnx.Rngs`, a stream, or a key, which is split if it must serve several times; None
            for the layer's stream.
        count: the number of keys.

    Raises:
        TypeError: `rngs` is none of these.
    """
    source = layer.rngs if rngs is None else rngs
    if isinstance(source, nnx.Rngs):
        source = source[layer.rng_collection]
    if isinstance(source, nnx.RngStream):
        return tuple(source() for _ in range(count))
    if isinstance(source, jax.Array):
        return (source,) if count == 1 else tuple(jax.random.split(source, count))
    raise TypeError(
        f"`{name}` with dropout needs `rngs` of an `nnx.Rngs`, a stream or a key, got {source!r}."
    )


def mask_shapes(
    rates: Rates,
    counts: dict[str, int],
    steps: int,
    batch: int,
    *,
    inputs: int,
    layers: int,
    directions: int,
    rows: int,
    sizes: Sequence[int],
) -> Masks:
    """The shapes of the masks of a call, in the place of the arrays; `sizes` are the states'."""
    some, sides = 1 if rates.variational else steps, layers * directions
    shapes: dict[str, Any] = {
        "between": (layers - 1, some, batch, directions * sizes[0]),
        "input": (some, batch, inputs),
        "recurrent": (sides, batch, sizes[0]),
        "weight": (sides, rows, sizes[0]),
        "zoneout": tuple(
            (sides, steps, batch, size) if rate else None
            for rate, size in zip(rates.zoneout, sizes, strict=False)
        ),
    }
    return Masks(**{key: shapes[key] for key in counts})


def count_draws(shapes: Masks) -> int:
    """The number of keys that `draw_masks` needs."""
    *single, zoneout = shapes
    return sum(s is not None for s in (*single, *(zoneout or ())))


def draw_masks(rates: Rates, shapes: Masks, keys: Sequence[Array]) -> Masks:
    """Masks of these shapes, drawn independently."""
    left = iter(keys)
    found: dict[str, Any] = {}
    for kind, shape in shapes._asdict().items():
        if shape is None:
            continue
        if kind == "zoneout":
            found[kind] = tuple(
                None if s is None else jax.random.bernoulli(next(left), rate, s)
                for rate, s in zip(rates.zoneout, shape, strict=True)
            )
        else:
            found[kind] = jax.random.bernoulli(next(left), 1 - getattr(rates, kind), shape)
    return Masks(**found)


def mask_like(y: Array, key: Array, rate: float, variational: bool) -> Array:
    """m ~ Bernoulli(1 - rate) for every element of y (T, B, ·), or the same for all its steps."""
    if variational:
        y = y[:1]
    return jax.random.bernoulli(key, 1 - rate, y.shape, out_sharding=jax.typeof(y).sharding)


def drop(y: Array, mask: Array, rate: float) -> Array:
    """y m / (1 - rate): `nnx.Dropout` with a mask that is given."""
    if rate == 1:
        return jnp.zeros_like(y)  # 0 / 0 in the other formula
    return lax.select(jnp.broadcast_to(mask, y.shape), y / (1 - rate), jnp.zeros_like(y))


class Noise:
    """The random masks of one call, drawn from keys or given by the caller."""

    def __init__(self, rates: Rates, counts: dict[str, int], keys: Sequence[Array], given: Any):
        self.rates, self.given = rates, given
        self.keys: dict[str, Sequence[Array]] = {}
        for key, count in counts.items():
            self.keys[key], keys = keys[:count], keys[count:]

    def input(self, x: Array) -> Array:
        return self._drop("input", 0, x) if self.rates.input else x

    def between(self, y: Array, gap: int) -> Array:
        return self._drop("between", gap, y)

    def weights(self, weights: Weights, number: int, batch: int, dtype: Any) -> Weights:
        """The weights of one direction of a layer, with what is dropped of W_hh, or of h."""
        hh, rate = weights.hh, self.rates.weight
        if rate and hh is not None:
            weights = weights._replace(hh=drop(hh, self._mask("weight", number, hh.shape), rate))
        rate = self.rates.recurrent
        if rate and hh is not None:
            mask = self._mask("recurrent", number, (batch, hh.shape[1]))
            weights = weights._replace(mask=drop(jnp.ones(mask.shape, dtype), mask, rate))
        return weights

    def zoneout(self, number: int, steps: int, batch: int, sizes: Sequence[int]) -> list[Array]:
        """The masks (T, B, ·) of the states whose rate is not 0."""
        rates = self.rates.zoneout
        found = []
        for k, (rate, size) in enumerate(zip(rates, sizes, strict=True)):
            if rate == 0:
                continue
            if self.given is not None:
                found.append(self.given.zoneout[k][number])
                continue
            key = self.keys["zoneout"][number * len(rates) + k]
            found.append(jax.random.bernoulli(key, rate, (steps, batch, size)))
        return found

    def _drop(self, kind: str, number: int, y: Array) -> Array:
        rate = getattr(self.rates, kind)
        if self.given is None:
            mask = mask_like(y, self.keys[kind][number], rate, self.rates.variational)
        else:
            mask = getattr(self.given, kind)
            mask = mask[number] if kind == "between" else mask
        return drop(y, mask, rate)

    def _mask(self, kind: str, number: int, shape: tuple[int, ...]) -> Array:
        if self.given is not None:
            return getattr(self.given, kind)[number]
        return jax.random.bernoulli(self.keys[kind][number], 1 - getattr(self.rates, kind), shape)
