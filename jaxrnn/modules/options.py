"""The keyword-only arguments that every recurrent layer hands on to `Recurrent`."""

from collections.abc import Mapping, Sequence
from typing import Any, Required, TypedDict

from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from jaxrnn.modules.initialise import Initializer
from jaxrnn.strategies import Strategy


class Options(TypedDict, total=False):
    """Keyword-only arguments, documented in `Recurrent`."""

    dtype: DTypeLike | None
    param_dtype: DTypeLike
    precision: lax.PrecisionLike
    strategy: Strategy | None
    initial_state: str
    input_dropout: float
    variational: bool
    recurrent_dropout: float
    weight_dropout: float
    zoneout: float | Sequence[float]
    kernel_init: Initializer | None
    recurrent_init: Initializer | None
    bias_init: Initializer | None
    forget_bias: float | None
    kernel_metadata: Mapping[str, Any]
    recurrent_kernel_metadata: Mapping[str, Any]
    bias_metadata: Mapping[str, Any]
    rngs: Required[nnx.Rngs]
