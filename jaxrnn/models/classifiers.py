"""Classifiers of whole sequences, built on `jaxrnn.RNN`, `LSTM` and `GRU`.

Letters: B batch, T steps, I inputs, H hidden units, O outputs, C classes.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Integer

from jaxrnn import checks
from jaxrnn.models.linear import linear
from jaxrnn.modules import GRU, LSTM, RNN
from jaxrnn.strategies import Strategy


class SpeakerClassifier(nnx.Module):
    """A bidirectional LSTM, the mean of its outputs over the true steps, and a linear layer.

    logits = fc(1/n Σ_{t<n} output_t),  with n the row's length

    Args:
        input_size: I, features of each step.
        hidden_size: H, features of each direction's state.
        num_classes: C, number of classes.
        num_layers: number of LSTM layers.
        param_dtype: dtype of the parameters and of the computation.
        rngs: random numbers for the initial parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import models
        >>> model = models.SpeakerClassifier(12, 32, 9, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((4, 29, 12)), lengths=jnp.array([29, 7, 12, 20])).shape
        (4, 9)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_classes: int,
        num_layers: int = 1,
        *,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.lstm = LSTM(
            input_size,
            hidden_size,
            num_layers,
            batch_first=True,
            bidirectional=True,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.fc = nnx.Linear(2 * hidden_size, num_classes, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T I"], *, lengths: Integer[Array, " B"] | None = None
    ) -> Float[Array, "B C"]:
        """Logits from x (B, T, I) and lengths (B,) of at least 1; None for T in every row."""
        output, _ = self.lstm(x, lengths=lengths)
        if lengths is None:
            return self.fc(output.mean(axis=1))
        # Outputs past each length are exactly 0, so the sum is over the true steps.
        return self.fc(output.sum(axis=1) / lengths[:, None].astype(output.dtype))


class SequenceClassifier(nnx.Module):
    """An embedding of tokens, an LSTM, and a linear layer on its last state.

    logits = W_fc dropout(h) + b_fc,  with h the last layer's state after the last step

    Args:
        vocab_size: V, number of tokens, which are 0 to V - 1. The logits of a row with any other
            token are NaN.
        embed_dim: features of each embedded token.
        hidden_dim: H, features of the LSTM's state.
        output_dim: O, number of classes.
        n_layers: number of LSTM layers.
        dtype: dtype of the computation; None for `param_dtype`. With bfloat16 or float16, states
            and sums stay in float32.
        param_dtype: dtype of the parameters.
        strategy: strategy over time (`jaxrnn.strategies`); None chooses one.
        rngs: random numbers for dropout and for the initial parameters, which follow PyTorch's
            distributions.

    Attributes:
        embedding, lstm, fc, dropout: the submodules. Dropout has the rate 0.3 and acts on h in
            training mode only, which is the initial mode.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import models
        >>> model = models.SequenceClassifier(50, 32, 64, 2, n_layers=2, rngs=nnx.Rngs(0))
        >>> model.eval()
        >>> short, padded = jnp.array([[7, 8]]), jnp.array([[7, 8, 0, 0]])
        >>> bool(jnp.allclose(model(padded, jnp.array([2])), model(short), atol=1e-6))
        True
        >>> bool(jnp.allclose(model(padded), model(short), atol=1e-3))
        False
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_dim: int,
        output_dim: int,
        n_layers: int = 1,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.embedding = nnx.Embed(
            vocab_size, embed_dim, embedding_init=nnx.initializers.normal(1.0), **options
        )
        self.lstm = LSTM(
            embed_dim, hidden_dim, n_layers, batch_first=True, strategy=strategy, **options
        )
        self.fc = linear(hidden_dim, output_dim, **options)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x: Any, lengths: Any = None) -> Float[Array, "B O"]:
        """Logits from tokens x (B, T).

        Without lengths, h is the state after step T, which includes the padding of a padded row.
        With lengths (B,) in [0, T], h is the state after the row's last true step, or the zero
        initial state for length 0; the padding has no effect.
        """
        tokens = jnp.asarray(x)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise checks.InputError(
                "`SequenceClassifier` needs integer tokens of shape (B, T), "
                f"got {tokens.dtype} of shape {tokens.shape}."
            )
        output, (hidden, _) = self.lstm(self.embedding(tokens), lengths=lengths)
        return self.fc(self.dropout(hidden[-1].astype(output.dtype)))


class EfficientLSTM(nnx.Module):
    """An LSTM over padded sequences, and a linear layer on the output at the last true step.

    logits = W_fc h_n + b_fc,  with n the row's length

    Args:
        input_size: I, features of each step.
        hidden_size: H, features of the LSTM's state.
        output_size: O, number of classes.
        dtype, param_dtype, strategy, rngs: as in `SequenceClassifier`.

    Attributes:
        lstm, fc: the submodules.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import models
        >>> model = models.EfficientLSTM(16, 32, 2, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((5, 8, 16)), jnp.array([8, 4, 6, 2, 5])).shape
        (5, 2)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.lstm = LSTM(input_size, hidden_size, batch_first=True, strategy=strategy, **options)
        self.fc = linear(hidden_size, output_size, **options)

    def __call__(self, sequences: Any, lengths: Any) -> Float[Array, "B O"]:
        """Logits from padded sequences (B, T, I) and lengths (B,) in [0, T].

        The PyTorch counterpart needs lengths of at least 1. Here a row of length 0 is classified
        from the zero initial state.
        """
        output, (hidden, _) = self.lstm(sequences, lengths=lengths)
        # The state after the last true step equals the output at that step.
        return self.fc(hidden[-1].astype(output.dtype))


class RNNComparison(nnx.Module):
    """An RNN, LSTM or GRU, and a linear layer on its last state.

    logits = W_fc h_T + b_fc

    Args:
        input_size: I, features of each step.
        hidden_size: H, features of the recurrent layer's state.
        output_size: O, number of classes.
        rnn_type: "RNN", "LSTM" or "GRU".
        dtype, param_dtype, strategy, rngs: as in `SequenceClassifier`.

    Attributes:
        rnn, fc: the submodules.
        rnn_type: as given.

    Raises:
        ValueError: for another `rnn_type`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import models
        >>> model = models.RNNComparison(32, 64, 2, "GRU", rngs=nnx.Rngs(0))
        >>> model(jnp.ones((16, 100, 32))).shape
        (16, 2)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        rnn_type: str = "LSTM",
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        kinds: dict[str, Callable[..., RNN | LSTM | GRU]] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
        if rnn_type not in kinds:
            raise ValueError(
                f"`RNNComparison(rnn_type={rnn_type!r})` needs 'RNN', 'LSTM' or 'GRU'."
            )
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.rnn_type = rnn_type
        self.rnn = kinds[rnn_type](
            input_size, hidden_size, batch_first=True, strategy=strategy, **options
        )
        self.fc = linear(hidden_size, output_size, **options)

    def __call__(self, x: Any) -> Float[Array, "B O"]:
        """Logits from x (B, T, I)."""
        output, last = self.rnn(x)
        hidden = last[0] if self.rnn_type == "LSTM" else last
        return self.fc(hidden[-1].astype(output.dtype))
