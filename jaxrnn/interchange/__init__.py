"""Weights and gradients under PyTorch's names and in PyTorch's layouts, in memory and in files.

The recurrent modules of jaxrnn already use PyTorch's names and layouts. The table
`jaxrnn.interchange.flax_layers` translates Flax's own layers. Names of nested modules are joined by
dots, `nnx.Sequential` numbers its layers as `torch.nn.Sequential` does (`net.0.weight`), and a
parameter of a user's own module keeps its attribute's name. Layers and settings without an
equivalent in PyTorch (`nnx.LinearGeneral`, `nnx.SpectralNorm`, most strings of `nnx.Einsum`, ...)
raise an error.

Weights of other libraries' recurrent layers go through `keras`, `flax_cells`, `equinox`, `haiku`,
`jax_rnn` and `onnx`. Each has two functions of plain arrays and imports nothing of its library:
`to_torch` returns entries of a `state_dict`, `from_torch` goes back.

Every `nnx.Variable` has a name, except for random states, caches and sown values. Plain arrays have
no name, as in PyTorch. A shared parameter has all of its names.

Weights are translated, settings are not. Where the defaults differ, both modules must be built to
agree:

- `nnx.LayerNorm`, `nnx.GroupNorm` and `nnx.InstanceNorm` have `epsilon=1e-6` where PyTorch has
  `eps=1e-5`.
- `nnx.BatchNorm(momentum=0.9)` is PyTorch's `momentum=0.1`. Its running variance is biased;
  PyTorch's is unbiased.
- `nnx.Conv` pads by default and has its channels last.
- `nnx.ConvTranspose(padding=(low, high))` is PyTorch's `padding = dilation (kernel_size - 1) - low`
  and `output_padding = high - low`. `padding="VALID"` is `padding=0`, with
  `output_padding = stride - kernel_size` if that is positive.
- `nnx.MultiHeadAttention` is `torch.nn.MultiheadAttention(batch_first=True)`, which also returns
  its attention weights. Flax's default `attention_fn` computes in float32 even if dtype is float64.
- `nnx.WeightNorm` is PyTorch's `weight_norm` with `epsilon=0.0`. Its scales are constants unless
  `scale_init=lambda key, shape: nnx.Param(jnp.ones(shape))` makes them parameters, as in PyTorch.
  Each call replaces the kernel by the normalised one. `feature_axes` refers to axes of Flax's
  kernel, PyTorch's `dim` to axes of its weight.
"""

from jaxrnn.interchange.mapping import load_state_dict, state_dict
from jaxrnn.interchange.problems import IncompatibleKeys
from jaxrnn.interchange.safetensors import load_safetensors, save_safetensors

__all__ = [
    "IncompatibleKeys",
    "load_safetensors",
    "load_state_dict",
    "save_safetensors",
    "state_dict",
]
