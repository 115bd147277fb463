"""PyTorch side of a comparison: the reference, run on the CPU.

PyTorch is imported inside functions and annotations are `Any`, so that importing this module does
not need PyTorch.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrnn.testing.copies import copied, import_torch
from jaxrnn.testing.values import Call, Result, call_module, cotangents, is_array, structure


class Role(NamedTuple):
    """Calling convention of a module, and the names of its inputs and outputs."""

    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: Callable[[Any], int]

    def input_names(self, paths: Iterable[str]) -> list[str]:
        return _labels(self.inputs, "input", list(paths))

    def output_names(self, paths: Iterable[str]) -> list[str]:
        return _labels(self.outputs, "output", list(paths))


def _labels(given: tuple[str, ...], word: str, paths: list[str]) -> list[str]:
    if given:
        return list(given[: len(paths)])
    return [word] if len(paths) == 1 else [word + path for path in paths]


def role(module: Any, call: Call | None) -> Role:
    """Role of a module: PyTorch's names for recurrent layers and cells, else pytree paths.

    The time axis of a user's module is unknown. The longest of the first two axes of all inputs
    counts as the number of steps.
    """
    nn = import_torch().nn
    if call is None and isinstance(module, nn.RNNBase):

        def steps(inputs: Any) -> int:
            shape = inputs[0].shape
            return shape[1 if module.batch_first and len(shape) == 3 else 0]

        names = ("input", "h_0", "c_0"), ("output", "h_n", "c_n")
        return Role(call_recurrent, *names, steps)
    if call is None and isinstance(module, nn.RNNCellBase):
        return Role(call_module, ("input", "h_0", "c_0"), ("h_1", "c_1"), lambda inputs: 1)
    return Role(call or call_module, (), (), longest)


def longest(inputs: Any) -> int:
    """The longest of the first two axes of all inputs."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(inputs) if is_array(leaf)]
    return max((n for shape in shapes if len(shape) > 1 for n in shape[:2]), default=1)


def prepare(module: Any, dtype: str, noise: float, seed: int, train: bool) -> Any:
    """A copy in `dtype`, with normal noise on every parameter.

    The noise has the standard deviation `noise` for vectors and noise / sqrt(fan-in) for matrices.
    The norm of a recurrent matrix then grows little, and the network does not become chaotic.
    """
    torch = import_torch()
    module = copied(module).cpu().double().train(train)
    if train:
        _refuse_random(module)
    rng = np.random.default_rng((seed, 0))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
                drawn = rng.normal(0.0, noise / fan_in**0.5, tuple(parameter.shape))
                parameter.add_(torch.from_numpy(np.asarray(drawn)))
                parameter.requires_grad_(True)
    return cast(module, dtype)


def cast(module: Any, dtype: str) -> Any:
    """Cast a module in place."""
    return module.to(getattr(import_torch(), dtype))


def first_names(module: Any) -> dict[str, str]:
    """Map from each parameter name to the first name of that parameter, which may be shared."""
    names = {id(value): name for name, value in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: names[id(value)] for name, value in every}


def weight_norm_names(module: Any) -> dict[str, str]:
    """Map from the older names of `weight_norm`, which JAX uses, to the newer ones."""
    names = {}
    for new in dict(module.named_parameters(remove_duplicate=False)):
        stem, mark, rest = new.rpartition("parametrizations.")
        attribute, _, part = rest.rpartition(".")
        if mark and part in ("original0", "original1"):
            names[f"{stem}{attribute}_{'g' if part == 'original0' else 'v'}"] = new
    return names


def _refuse_random(module: Any) -> None:
    nn = import_torch().nn
    for name, part in module.named_modules():
        p = part.p if isinstance(part, nn.modules.dropout._DropoutNd) else vars(part).get("dropout")
        unused = isinstance(part, nn.RNNBase) and part.num_layers == 1
        if isinstance(p, float) and 0 < p < 1 and not unused:
            raise ValueError(
                "`compare(train=True)` needs every dropout at 0 or 1, because the frameworks draw "
                f"different masks; got {p} in `{name or type(part).__name__}`."
            )


def tensors(tree: Any, dtype: Any) -> Any:
    """Convert arrays to tensors: floating ones to `dtype` with gradients, integers to int64."""
    torch = import_torch()

    def convert(leaf: Any) -> Any:
        if not is_array(leaf):
            return leaf
        if leaf.dtype == np.bool_:
            return torch.tensor(leaf)
        if np.issubdtype(leaf.dtype, np.integer):
            return torch.tensor(leaf.astype(np.int64))
        return torch.tensor(leaf.astype(np.float64), dtype=dtype).requires_grad_()

    return jax.tree.map(convert, tree)


def array(tensor: Any) -> np.ndarray:
    """Convert a tensor to NumPy exactly; floating tensors become float64."""
    tensor = tensor.detach().cpu()
    return np.array((tensor.double() if tensor.is_floating_point() else tensor).numpy())


def loss(
    module: Any, call: Call, inputs: Any, options: dict[str, Any], dtype: str, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Sum of <cotangent, output> over the floating outputs, and all outputs by path."""
    torch = import_torch()
    with warnings.catch_warnings():
        # PyTorch warns once that oneDNN does not support projections.
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        outputs = structure(call(module, *inputs, **options))
    floating = {path: y for path, y in outputs.items() if _is_floating(y)}
    weights = cotangents({k: tuple(y.shape) for k, y in floating.items()}, dtype, seed)
    total = torch.zeros((), dtype=torch.float64)
    for path, y in floating.items():
        total = total + (y * torch.tensor(weights[path], dtype=y.dtype)).sum()
    return total, outputs


def run(
    module: Any, call: Call, inputs: Any, options: dict[str, Any], dtype: str, seed: int
) -> Result:
    """Outputs, loss and every gradient, computed in the module's own dtype.

    Inputs and cotangents are rounded to `dtype`.
    """
    torch = import_torch()
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float64)
    inputs, options = tensors(inputs, own), tensors(options, own)
    with torch.enable_grad():
        total, outputs = loss(module, call, inputs, options, dtype, seed)
    floats = {path: x for path, x in structure(inputs).items() if _is_floating(x)}
    parameters = {k: p for k, p in module.named_parameters() if p.is_floating_point()}
    wanted = [*parameters.values(), *floats.values()]
    if total.requires_grad:
        found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    else:
        found = tuple(torch.zeros_like(w) for w in wanted)
    grads = [array(g) for g in found]
    return Result(
        outputs={path: array(torch.as_tensor(y)) for path, y in outputs.items()},
        loss=array(total),
        parameters=dict(zip(parameters, grads, strict=False)),
        inputs=dict(zip(floats, grads[len(parameters) :], strict=True)),
    )


def fit(
    module: Any, call: Call, batches: list[Any], make: Callable[[Any], Any], dtype: str, seed: int
) -> dict[str, np.ndarray]:
    """Losses, and the parameters after one optimizer step on each batch."""
    torch = import_torch()
    optimizer = make(module.parameters())
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        with torch.enable_grad():
            total, _ = loss(module, call, tensors(batch, getattr(torch, dtype)), {}, dtype, seed)
        total.backward()
        optimizer.step()
        losses.append(array(total))
    return {"loss": np.stack(losses)} | {k: array(p) for k, p in module.named_parameters()}


def _is_floating(leaf: Any) -> bool:
    return import_torch().is_tensor(leaf) and leaf.is_floating_point()


def call_recurrent(module: Any, input: Any, hx: Any = None, *, lengths: Any = None) -> Any:
    """Run `nn.RNN`, `nn.LSTM` or `nn.GRU` on padded sequences by packing and unpacking them.

    PyTorch packs neither sequences of length 0 nor unbatched ones; those run row by row.
    """
    rnn = import_torch().nn.utils.rnn
    if lengths is None:
        return module(input, hx)
    if input.ndim == 2 or not lengths.numel() or int(lengths.min()) == 0:
        return _row_by_row(module, input, hx, lengths)
    first = module.batch_first
    packed = rnn.pack_padded_sequence(input, lengths, first, enforce_sorted=False)
    ys, last = module(packed, hx)
    steps = input.shape[1 if first else 0]
    ys, _ = rnn.pad_packed_sequence(ys, first, total_length=steps)
    return ys, last


def _row_by_row(module: Any, input: Any, hx: Any, lengths: Any) -> Any:
    torch = import_torch()
    batched = input.ndim == 3
    x = input if batched else input[:, None]
    if batched and module.batch_first:
        x = x.transpose(0, 1)
    lstm = isinstance(module, torch.nn.LSTM)
    count = module.num_layers * (2 if module.bidirectional else 1)
    features = module.proj_size or module.hidden_size
    if hx is None:
        sizes = (features, module.hidden_size) if lstm else (features,)
        states = tuple(x.new_zeros(count, x.shape[1], size) for size in sizes)
    else:
        states = tuple(h if batched else h[:, None] for h in (hx if lstm else (hx,)))

    def rows() -> Iterator[tuple[Any, tuple[Any, ...]]]:
        width = features * count // module.num_layers
        for b, n in enumerate(lengths.reshape(-1).tolist()):
            y, last = x.new_zeros(0, width), tuple(h[:, b] for h in states)
            if n > 0:
                y, new = module(x[:n, b], last if lstm else last[0])
                last = new if lstm else (new,)
            yield torch.cat([y, x.new_zeros(x.shape[0] - n, width)]), last

    ys, lasts = zip(*rows(), strict=True)
    axis = 0 if batched and module.batch_first else 1
    y = torch.stack(ys, axis) if batched else ys[0]
    last = tuple(torch.stack(h, 1) if batched else h[0] for h in zip(*lasts, strict=True))
    return y, last if lstm else last[0]
