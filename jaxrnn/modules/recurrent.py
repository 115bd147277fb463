"""`Recurrent`: any cell as a layer over whole sequences, stacked, in one direction or both."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxrnn import checks
from jaxrnn.cells import Cell
from jaxrnn.cells import zoneout as zoneouts
from jaxrnn.modules import arguments, noise
from jaxrnn.modules.base import Module, State, as_state, carry_dtype, state_names, warn
from jaxrnn.modules.call import Form, Given, runner
from jaxrnn.modules.initialise import Initialisers, Initializer
from jaxrnn.modules.noise import Masks, Rates
from jaxrnn.modules.pairs import refuse_unpacked
from jaxrnn.strategies import Strategy


class Recurrent(Module, Generic[State]):
    """Any cell over time, with all that PyTorch's recurrent layers have; `LSTM` is one of them.

    carry_t = cell(carry_{t-1}, W_ih x_t + b_ih, W_hh h_{t-1} + b_hh)

    Args:
        cell: the step, one of `jaxrnn.cells` or your own.
        input_size: I, features of each step.
        hidden_size: H, features of the state.
        num_layers: L, stacked layers.
        bias: whether there are b_ih and b_hh.
        batch_first: whether inputs and outputs are (B, T, ·) and not (T, B, ·); states never are.
        dropout: probability of an element of every layer's outputs but the last's being zeroed, in
            training (`module.train()`, the initial mode; `module.eval()` ends it).
        bidirectional: whether a second direction runs backwards; D is 2 then, else 1.
        proj_size: P, features of the output and of h; 0 for H and no projection. Adds
            `weight_hr_l0` (P, H) and its like. Refused where the cell uses h itself.
        dtype: of computation: inputs and weights are converted to it. None computes in
            `param_dtype` and refuses inputs of another, as PyTorch. With bfloat16 or float16,
            states and sums stay float32, outputs are of `dtype`, and final states are float32, so
            that a sequence in chunks equals the whole.
        param_dtype: of the parameters.
        precision: of every product, as in `jax.lax.dot_general`.
        strategy: how a direction runs over time (`jaxrnn.strategies`); None chooses.
        initial_state: "zeros", or "learned": then the state that a sequence begins with is a
            parameter for each layer, direction and state, `h_0_l0` (P,), `c_0_l0` (H,), ..., zero
            at first and the same for all rows.
        input_dropout: as `dropout`, of the inputs.
        variational: both kinds of dropout zero the same elements at every step of a row.
        recurrent_dropout: probability of an element of h being zeroed in the product W_hh h, the
            same elements at every step of a row.
        weight_dropout: probability of an element of W_hh being zeroed, for the whole call.
        zoneout: probability of each unit of a state keeping its value at a step; a number for h
            alone, or one for each state. In evaluation a state moves by the expected part.
        kernel_init, recurrent_init, bias_init: Flax's initialisers for W_ih and W_hr, W_hh, and
            both biases. A matrix is initialised gate by gate, so that `orthogonal()` makes each
            gate's W_hh orthogonal. None for U(-1/sqrt(H), 1/sqrt(H)), PyTorch's.
        forget_bias: initial bias of the gate that keeps the state (the LSTM's f, the GRU's z),
            in b_ih; b_hh is 0 there.
        kernel_metadata, recurrent_kernel_metadata, bias_metadata: of the `nnx.Param`s, as in
            Flax's layers; `{"sharding_names": (...)}` for one.
        rngs: for the initial parameters and, as the stream "dropout", for what is random in
            training.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, weight_ih_l0_reverse, ...: the
            parameters, (G*H, I or D*P), (G*H, P), (G*H,), (G*H,), named and laid out as PyTorch's.
            A cell with `recurrent=False` has neither `weight_hh_l0` nor `bias_hh_l0`.
        leak_l0, leak_l0_reverse, ...: the cell's own parameters, where `cell.init` returns
            {"leak": ...}. A nested key is joined by "_", and a single array is called `cell_l0`.
            `state_dict` and `load_state_dict` use these names.

    Raises:
        ValueError, TypeError: for arguments and inputs of wrong type, value or shape, with
            PyTorch's phrase where PyTorch has one. Lengths are checked where their values are
            known and clipped to [0, T] where they are traced.

    Example:
        A leaky integrator with a trainable leak for each unit.

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn import cells
        >>> @cells.pure
        ... def step(params, carry, gx, gh):
        ...     a = cells.spread(jax.nn.sigmoid(params["leak"]), gx)
        ...     return (a * carry[0] + (1 - a) * jnp.tanh(gx + gh),)
        >>> def init(key, hidden_size, dtype):
        ...     return {"leak": jax.random.normal(key, (hidden_size,), dtype)}
        >>> leaky = cells.Cell("leaky", gates=1, states=1, step=step, init=init, additive=True)
        >>> layer = jaxrnn.Recurrent(leaky, 3, 5, num_layers=2, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((7, 4, 3)), lengths=jnp.array([7, 2, 0, 5]))
        >>> output.shape, h_n.shape, sorted(jaxrnn.state_dict(layer))[4:6]
        ((7, 4, 5), (2, 4, 5), ['leak_l0', 'leak_l1'])

    In `nnx.Sequential`, which unpacks the pair that a layer returns, the output goes on alone by a
    function between: `nnx.Sequential(layer, lambda output, h_n: output, head)`.

    The whole call is compiled once for its shapes, if the cell's step is marked by `cells.pure`;
    each call of any other step outside of `jax.jit` looks for the arrays that it closes over.
    """

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        strategy: Strategy | None = None,
        initial_state: str = "zeros",
        input_dropout: float = 0.0,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        kernel_init: Initializer | None = None,
        recurrent_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        forget_bias: float | None = None,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        recurrent_kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
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
        arguments.initial_state(name, initial_state)
        arguments.projectable(name, cell, hidden_size, proj_size)
        rates = arguments.rates(
            name,
            cell,
            proj_size,
            between=dropout,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
            variational=variational,
        )
        initialisers = Initialisers(kernel_init, recurrent_init, bias_init, forget_bias)
        initialisers.check(name, cell, bias)
        if dropout > 0 and num_layers == 1:
            warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={num_layers}"
            )
        self._cell = cell
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
        self._rates = rates
        self._learned = initial_state == "learned"
        metadata = {
            "weight_ih": kernel_metadata,
            "weight_hh": recurrent_kernel_metadata,
            "weight_hr": kernel_metadata,
            "bias_ih": bias_metadata,
            "bias_hh": bias_metadata,
        }
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                self._create_weights(suffix, self._inputs(layer), rngs, initialisers, metadata)
                for state, size in zip(
                    self._states if self._learned else (), self._sizes, strict=False
                ):
                    setattr(self, state + suffix, nnx.Param(jnp.zeros((size,), param_dtype)))
        if self._counts:
            self._between = nnx.Dropout(self.dropout, rngs=rngs)

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
            keys = noise.draw_keys(self._name, self._between, rngs, sum(self._counts.values()))
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
        given = Given(states, lengths, resets, keys, masks)
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
        keys = noise.draw_keys(self._name, self._between, rngs, count) if count else ()
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
        layer = getattr(self, "_between", None)
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
