"""Calls of a stack of layers: over sequences and step by step, with its states and masks."""

from typing import Any, Generic

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxrnn import checks
from jaxrnn.cells import Cell
from jaxrnn.cells import zoneout as zoneouts
from jaxrnn.modules import noise
from jaxrnn.modules.base import Module, State, as_state, carry_dtype, state_names
from jaxrnn.modules.call import CallArrays, Form, runner
from jaxrnn.modules.noise import Masks, Rates
from jaxrnn.modules.sequential import refuse_unpacked
from jaxrnn.strategies import Strategy


class Stack(Module, Generic[State]):
    """The methods of `Recurrent`, whose constructor makes the attributes."""

    num_layers: int
    batch_first: bool
    bidirectional: bool
    strategy: Strategy | None
    _cell: Cell
    _rates: Rates
    _learned: bool
    _dropout: nnx.Dropout

    @refuse_unpacked
    def __call__(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        rngs: Any = None,
        masks: Masks | None = None,
    ) -> tuple[Array, State]:
        """Run over a sequence.

        Args:
            input: (T, B, I), or (B, T, I) with `batch_first`, or (T, I) unbatched.
            hx: initial state h_0, (L*D, B, P), or for the LSTM the pair of it and c_0,
                (L*D, B, H); unbatched without B. None for `initial_state()`.
            lengths: steps in each row, integers (B,) in [0, T], or () unbatched; None for T.
            resets: booleans in the input's layout, (T, B), (B, T) or (T,): True where a new
                sequence begins. The state before that step is `initial_state()`, not what came
                before and not `hx`, and no gradient flows across; the reverse direction ends there
                and begins anew.
            rngs: in place of the constructor's for dropout: `nnx.Rngs`, a stream or a key.
            masks: in place of random ones in training, as `draw_masks` returns them.

        Returns:
            output: (T, B, D*P) in the input's layout, exactly 0 past each length.
            h_n, or (h_n, c_n): each row's state after its last step, shaped as `hx`.

        Raises:
            TypeError: in `nnx.Sequential`, where the pair of one layer would be unpacked into the
                arguments of the next. `hx=` by name takes any state.
        """
        x = checks.array(self._name, input)
        checks.sequence(type(self).__name__, self._name, x, self.input_size, self.batch_first)
        dtype = self._compute_dtype(x, self.weight_ih_l0)
        batched = x.ndim == 3
        steps, batch = x.shape[:-1] if batched else (x.shape[0], 1)
        if batched and self.batch_first:
            steps, batch = batch, steps
        states = None
        if hx is not None:
            rows = self.num_layers * self._directions
            shapes = [(rows, batch, size) for size in self._sizes]
            states = checks.states(self._name, hx, self._states, batched, shapes)
            self._check_state_dtypes(self._name, states, self._states, dtype)
        if lengths is not None:
            lengths = checks.lengths(lengths, batch, steps, batched)
        if resets is not None:
            resets = checks.resets(self._name, resets, x.shape[:-1])
        rates, cell = self._mode()
        keys: tuple[Array, ...] = ()
        if masks is not None:
            self._check_masks(masks, steps, batch)
        elif rates != Rates():
            keys = noise.draw_keys(self._name, self._dropout, rngs, sum(self._counts.values()))
        form = Form(
            cell,
            self._sizes,
            dtype,
            batch_first=batched and self.batch_first,
            rates=rates,
            strategy=self.strategy,
            precision=self.precision,
        )
        weights = [
            [self._weights(suffix, self._inputs(layer)) for suffix in self._suffixes(layer)]
            for layer in range(self.num_layers)
        ]
        given = CallArrays(states, lengths, resets, keys, masks)
        output, last = runner(cell, self.strategy)(form, weights, x, given)
        return output, as_state(last)

    def step(self, input: Any, hx: Any = None, *, reset: Any = None) -> tuple[Array, State]:
        """One step of a stream, from the state of the step before: the output and the new state.

        Equal to the call over the whole sequence, step by step. `input` is (B, I) or (I,), the
        output (B, P) or (P,); `hx` and the state returned are as in the call. `reset`, one boolean
        or (B,), is True where a sequence begins with this step.

        For the shortest latency compile it once with the module in the closure,
        `jax.jit(lambda x, state: layer.step(x, state))`, which treats the weights as constants;
        `nnx.jit` takes the module apart and puts it together again at every call.

        Raises:
            ValueError: the layer is bidirectional, so no output is known before the last step.

        Example:
            >>> import jax, jax.numpy as jnp, jaxrnn
            >>> from flax import nnx
            >>> lstm = jaxrnn.LSTM(3, 5, num_layers=2, rngs=nnx.Rngs(0))
            >>> step, state = jax.jit(lambda x, state: lstm.step(x, state)), lstm.initial_state(4)
            >>> x = jax.random.normal(jax.random.key(0), (7, 4, 3))
            >>> for x_t in x:
            ...     y_t, state = step(x_t, state)
            >>> bool(jnp.allclose(y_t, lstm(x)[0][-1], atol=1e-6))
            True
        """
        if self.bidirectional:
            raise ValueError(
                f"`{self._name}.step` needs bidirectional=False: the reverse direction begins at "
                "the last step."
            )
        x = checks.array(self._name, input)
        checks.step_input(type(self).__name__, x, self.input_size)
        axis = 1 if self.batch_first and x.ndim == 2 else 0
        if reset is not None:
            reset = jnp.broadcast_to(jnp.asarray(reset), x.shape[:-1])
            reset = jnp.expand_dims(reset, axis)
        output, state = self(jnp.expand_dims(x, axis), hx=hx, resets=reset)
        return output.squeeze(axis), state

    def initial_state(self, batch_size: int | None = None) -> State:
        """The state that a sequence begins with, shaped as `hx`: zeros, or what was learned.

        Args:
            batch_size: B; None for unbatched inputs.

        Example:
            >>> import jaxrnn
            >>> from flax import nnx
            >>> gru = jaxrnn.GRU(3, 5, num_layers=2, initial_state="learned", rngs=nnx.Rngs(0))
            >>> gru.initial_state(4).shape, gru.h_0_l1.shape
            ((2, 4, 5), (5,))
        """
        dtype = carry_dtype(self.param_dtype if self.dtype is None else self.dtype)
        suffixes = [s for layer in range(self.num_layers) for s in self._suffixes(layer)]
        states = []
        for name, size in zip(self._states, self._sizes, strict=True):
            rows = jnp.zeros((len(suffixes), size), dtype)
            if self._learned:
                rows = jnp.stack([getattr(self, name + s)[...] for s in suffixes]).astype(dtype)
            if batch_size is not None:
                rows = jnp.broadcast_to(rows[:, None], (len(suffixes), batch_size, size))
            states.append(rows)
        return as_state(tuple(states))

    def draw_masks(self, steps: int, batch_size: int, rngs: Any = None) -> Masks:
        """Random masks for one call in training, in the form in which a call takes them.

        Args:
            steps, batch_size: T and B of the call; B is 1 for unbatched inputs.
            rngs: as in the call.

        Example:
            >>> import jax.numpy as jnp, jaxrnn
            >>> from flax import nnx
            >>> lstm = jaxrnn.LSTM(3, 5, recurrent_dropout=0.2, rngs=nnx.Rngs(0))
            >>> masks = lstm.draw_masks(7, 4)
            >>> masks.recurrent.shape, masks.zoneout
            ((1, 4, 5), None)
            >>> one, two = (lstm(jnp.ones((7, 4, 3)), masks=masks)[0] for _ in range(2))
            >>> bool((one == two).all())
            True
        """
        shapes = self._mask_shapes(steps, batch_size)
        count = noise.count_draws(shapes)
        keys = noise.draw_keys(self._name, self._dropout, rngs, count) if count else ()
        return noise.draw_masks(self._rates, shapes, keys)

    def _mask_shapes(self, steps: int, batch: int) -> Masks:
        return noise.mask_shapes(
            self._rates,
            self._counts,
            steps,
            batch,
            inputs=self.input_size,
            layers=self.num_layers,
            directions=self._directions,
            rows=self.cell.gates * self.hidden_size,
            sizes=self._sizes,
        )

    def _check_masks(self, masks: Masks, steps: int, batch: int) -> None:
        if self._mode()[0] == Rates():
            raise ValueError(
                f"`{self._name}` takes masks in training, where it has dropout or zoneout: "
                "`module.train()`."
            )
        found = jax.tree.map(lambda a: tuple(a.shape), masks)
        wanted = self._mask_shapes(steps, batch)
        if found != wanted:
            raise ValueError(
                f"`{self._name}` needs masks as `draw_masks({steps}, {batch})` makes them, of "
                f"shapes {wanted}, got {found}."
            )

    def _mode(self) -> tuple[Rates, Cell]:
        """The rates of this call, all 0 in evaluation, and the cell that it runs."""
        layer = getattr(self, "_dropout", None)
        if layer is None:
            return Rates(), self.cell
        if not layer.deterministic:
            return self._rates, self.cell
        if any(self._rates.zoneout):
            return Rates(), zoneouts.in_expectation(self.cell, self._rates.zoneout)
        return Rates(), self.cell

    @property
    def cell(self) -> Cell:  # type: ignore[override]
        """The step."""
        return self._cell

    @property
    def _counts(self) -> dict[str, int]:
        """The number of random keys that a call in training needs, by kind."""
        return self._rates.keys(self.num_layers, self._directions)

    @property
    def _states(self) -> tuple[str, ...]:
        """The names of the initial states, h_0 first."""
        return state_names(self.cell)

    @property
    def _sizes(self) -> tuple[int, ...]:
        """The features of each state."""
        return (self._outputs, *(self.hidden_size,) * (self.cell.states - 1))

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _outputs(self) -> int:
        return self.proj_size or self.hidden_size

    def _inputs(self, layer: int) -> int:
        return self.input_size if layer == 0 else self._outputs * self._directions

    def _suffixes(self, layer: int) -> list[str]:
        """Suffixes of parameter names, one for each direction."""
        return [f"_l{layer}{end}" for end in ("", "_reverse")[: self._directions]]
