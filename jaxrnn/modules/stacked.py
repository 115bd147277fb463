"""The common part of `RNN`, `GRU` and `LSTM`: whole sequences, stacked layers, both directions."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxrnn import checks, layers
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.modules import arguments, dropout
from jaxrnn.modules.base import Module, State, as_state, carry_dtype, cast_weights, warn
from jaxrnn.modules.pairs import refuse_unpacked
from jaxrnn.strategies import Strategy


class Layers(Module, Generic[State]):
    """A cell over time: the constructor's arguments, the parameters, and the call."""

    _states: tuple[str, ...] = ("h_0",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        precision: lax.PrecisionLike,
        strategy: Strategy | None,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        arguments.dtypes(name, dtype, param_dtype)
        arguments.rngs(name, rngs)
        checks.strategy(f"{name}(strategy=...)", strategy)
        arguments.constructor(
            name,
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
        )
        if dropout > 0 and num_layers == 1:
            warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={num_layers}"
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.strategy = strategy
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                self._create_weights(suffix, self._inputs(layer), rngs)
        if dropout > 0 and num_layers > 1:
            self._between = nnx.Dropout(self.dropout, rngs=rngs)

    @refuse_unpacked
    def __call__(
        self, input: Any, hx: Any = None, *, lengths: Any = None, rngs: Any = None
    ) -> tuple[Array, State]:
        """Runs over a sequence.

        Args:
            input: (T, B, I), or (B, T, I) with `batch_first`, or (T, I) unbatched.
            hx: initial state h_0, (L*D, B, P), or for the LSTM the pair of it and c_0,
                (L*D, B, H); unbatched without B. None for zeros.
            lengths: steps in each row, integers (B,) in [0, T], or () unbatched; None for T.
            rngs: in place of the constructor's for dropout: `nnx.Rngs`, a stream or a key.

        Returns:
            output: (T, B, D*P) in the input's layout, exactly 0 past each length.
            h_n, or (h_n, c_n): each row's state after its last step, shaped as `hx`.

        Raises:
            TypeError: for `layer(*outputs)`, the output and the state of one call by position, as
                `nnx.Sequential` passes them. `hx=` by name takes any state.
        """
        x = checks.array(self._name, input)
        checks.sequence(type(self).__name__, self._name, x, self.input_size, self.batch_first)
        dtype = self._compute_dtype(x, self.weight_ih_l0)
        batched = x.ndim == 3
        steps, batch = x.shape[:-1] if batched else (x.shape[0], 1)
        if batched and self.batch_first:
            steps, batch = batch, steps
        sizes = (self._outputs, self.hidden_size)[: len(self._states)]
        states = None
        if hx is not None:
            rows = self.num_layers * self._directions
            shapes = [(rows, batch, size) for size in sizes]
            states = checks.states(self._name, hx, self._states, batched, shapes)
            self._check_state_dtypes(self._name, states, self._states, dtype)
        if lengths is not None:
            lengths = checks.lengths(lengths, batch, steps, batched)
        rate, keys = self._draw_dropout(rngs)
        form = _Form(
            self._cell,
            sizes,
            dtype,
            batch_first=batched and self.batch_first,
            dropout=rate,
            strategy=self.strategy,
            precision=self.precision,
        )
        weights = [
            [self._weights(suffix, self._inputs(layer)) for suffix in self._suffixes(layer)]
            for layer in range(self.num_layers)
        ]
        output, last = _runner(self.strategy)(form, weights, x, states, lengths, keys)
        return output, as_state(last)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _outputs(self) -> int:
        return self.proj_size or self.hidden_size

    def _inputs(self, layer: int) -> int:
        return self.input_size if layer == 0 else self._outputs * self._directions

    def _suffixes(self, layer: int) -> list[str]:
        """Of the parameters' names, one for each direction."""
        return [f"_l{layer}{end}" for end in ("", "_reverse")[: self._directions]]

    def _draw_dropout(self, rngs: Any) -> tuple[float, tuple[Array, ...]]:
        """The rate of dropout in this call, 0 for none, and a key for each gap between layers."""
        layer = getattr(self, "_between", None)
        if layer is None or layer.deterministic:
            return 0.0, ()
        return layer.rate, dropout.draw_keys(self._name, layer, rngs, self.num_layers - 1)


class _Form(NamedTuple):
    """Everything about a call that is no array."""

    cell: Cell
    sizes: tuple[int, ...]
    dtype: jnp.dtype
    batch_first: bool
    dropout: float
    strategy: Strategy | None
    precision: lax.PrecisionLike


def _run_layers(
    form: _Form,
    weights: Sequence[Sequence[Weights]],
    x: Array,
    states: Carry | None,
    lengths: Array | None,
    keys: tuple[Array, ...],
) -> tuple[Array, Carry]:
    """`layers.stack` in PyTorch's layouts, with the casts and zeros around it."""
    batched = x.ndim == 3
    x = x.astype(form.dtype)
    if not batched:
        x = x[:, None]
    elif form.batch_first:
        x = x.swapaxes(0, 1)
    wide = carry_dtype(form.dtype)
    if states is None:
        rows = sum(len(directions) for directions in weights)
        carry = tuple(jnp.zeros((rows, x.shape[1], size), wide) for size in form.sizes)
    else:
        carry = tuple((s if batched else s[:, None]).astype(wide) for s in states)
    remaining = iter(keys)

    def between(y: Array) -> Array:
        return dropout.drop(y, next(remaining), form.dropout)

    ys, last = layers.stack(
        form.cell,
        [[cast_weights(w, form.dtype) for w in directions] for directions in weights],
        x,
        carry,
        lengths,
        strategy=form.strategy,
        precision=form.precision,
        between=between if form.dropout else None,
    )
    ys = ys.astype(form.dtype)
    if not batched:
        return ys[:, 0], tuple(s[:, 0] for s in last)
    return (ys.swapaxes(0, 1) if form.batch_first else ys), last


_compiled = jax.jit(_run_layers, static_argnames="form")
"""One program for the whole call, so that a new T or B compiles once outside `jax.jit` too."""


def _runner(strategy: Strategy | None) -> Callable[..., tuple[Array, Carry]]:
    """`_compiled` for a strategy that is a value, a frozen dataclass.

    A function may close over what changes between calls, so it is called every time.
    """
    value = dataclasses.is_dataclass(strategy) and isinstance(strategy, Hashable)
    return _compiled if strategy is None or value else _run_layers
