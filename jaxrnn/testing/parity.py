"""`compare`, `compare_training` and `assert_parity`: a PyTorch module and its JAX twin."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import optax
from flax import nnx

from jaxrnn import interchange
from jaxrnn.testing import jax_side, torch_side
from jaxrnn.testing.report import Kind, Report, Row, judge, relative_error
from jaxrnn.testing.values import Call, Result, arrays


def compare(
    torch_module: Any,
    jax_module: nnx.Module,
    *inputs: Any,
    hx: Any = None,
    lengths: Any = None,
    dtype: str = "float64",
    against: str | None = None,
    train: bool = False,
    noise: float = 0.1,
    seed: int = 0,
    steps: int | None = None,
    torch_call: Call | None = None,
    jax_call: Call | None = None,
) -> Report:
    """Outputs, loss and every gradient of two modules, from the same weights and inputs.

    Works on copies: of the PyTorch module (on the CPU), with noise on every parameter, and of the
    JAX module, which is given the same weights by `interchange.load_state_dict`. The loss is
    sum <cotangent, output>, with random cotangents of its own for every output, or the output
    itself where that is one scalar. Compared are every output and state, the loss, and the
    gradients of every parameter and of every floating input.

    Args:
        torch_module: a `torch.nn.Module`.
        jax_module: the `flax.nnx.Module` to compare with it.
        inputs: of both: pytrees of NumPy, JAX or PyTorch arrays. Floating arrays are converted to
            `dtype`; integers, and what is no array, stay.
        hx: the initial state, as one more input, if any.
        lengths: steps in each row, for both as the keyword `lengths`. `torch.nn.RNN`, `LSTM` and
            `GRU` run on packed sequences instead, or row by row where a length is 0.
        dtype: "float64" (no global flag needed), "float32", or "bfloat16": there PyTorch runs in
            float64, and JAX keeps parameters in float32. Weights and inputs are first rounded.
        against: "float64" compares both sides in `dtype` with PyTorch in float64, and judges the
            ratio of the errors, for weights that the tolerances do not hold for. The ratio of one
            draw may be large by chance: see `report.ERROR_RATIO`.
        train: run in training mode, possible where every dropout is 0 or 1; else in `eval()` mode.
        noise: standard deviation of the noise on vectors, over sqrt(fan-in) on matrices. Without,
            zero biases hide swapped names.
        seed: for noise and cotangents.
        steps: T, for the tolerance. By default the time axis of a PyTorch recurrent layer's input,
            else the longest of the first two axes of all inputs.
        torch_call, jax_call: called as (module, *inputs) in place of the module, with `lengths=`
            if there are lengths; they return the outputs: any pytree of the same structure on both
            sides.

    Raises:
        ValueError: parameters or outputs that differ in name, number or shape; a random dropout
            in training mode; an unknown dtype.
        ImportError: PyTorch is not installed.

    Example:
        >>> import numpy as np, torch, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.testing import compare
        >>> report = compare(torch.nn.GRU(3, 5), jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0)),
        ...     np.random.default_rng(0).normal(size=(7, 4, 3)), lengths=np.array([7, 0, 2, 5]))
        >>> report.ok, [row.name for row in report.rows][:5]
        (True, ['output', 'h_n', 'loss', 'weight_ih_l0', 'weight_hh_l0'])
    """
    if dtype not in ("float64", "float32", "bfloat16") or against not in (None, "float64"):
        raise ValueError(
            '`compare` takes dtype="float64", "float32" or "bfloat16" and against=None or '
            f'"float64"; got dtype={dtype!r} and against={against!r}.'
        )
    if against == dtype:
        raise ValueError('`compare(against="float64")` needs a dtype below float64.')
    reference = "float64" if dtype == "bfloat16" or against else dtype
    inputs = arrays(inputs if hx is None else (*inputs, hx), dtype)
    options = {} if lengths is None else {"lengths": np.asarray(arrays(lengths, dtype))}
    role = torch_side.role(torch_module, torch_call)
    if steps is None:
        steps = role.steps(inputs)

    with jax_side.precision(dtype):
        theirs, ours, first = _twins(torch_module, jax_module, dtype, noise, seed, train)
        got = jax_side.run(ours, jax_call, inputs, options, dtype, seed)
    peer = torch_side.run(theirs, role.call, inputs, options, dtype, seed) if against else None
    ref = torch_side.run(
        torch_side.cast(theirs, reference), role.call, inputs, options, dtype, seed
    )
    _check_same("outputs", _shapes(ref.outputs), _shapes(got.outputs))

    rows = _rows(
        _named(got, role, first),
        _named(ref, role, first),
        None if peer is None else _named(peer, role, first),
        dtype,
        steps,
    )
    title = f"{type(torch_module).__name__}, {dtype}, T = {steps}: JAX against PyTorch"
    return Report(title if reference == dtype else f"{title} in {reference}", rows)


def assert_parity(
    torch_module: Any, jax_module: nnx.Module, *inputs: Any, **options: Any
) -> Report:
    """`compare`, with an AssertionError that holds the report where the two disagree.

    Example:
        >>> import numpy as np, torch, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn.testing import assert_parity
        >>> theirs, ours = torch.nn.LSTMCell(3, 5), jaxrnn.LSTMCell(3, 5, rngs=nnx.Rngs(0))
        >>> assert_parity(theirs, ours, np.ones((4, 3)), dtype="float32").ok
        True
    """
    report = compare(torch_module, jax_module, *inputs, **options)
    if not report.ok:
        raise AssertionError(str(report))
    return report


def compare_training(
    torch_module: Any,
    jax_module: nnx.Module,
    batches: Sequence[tuple[Any, ...]],
    torch_optimizer: Callable[[Any], Any],
    tx: optax.GradientTransformation,
    *,
    steps: int = 1,
    train: bool = False,
    noise: float = 0.1,
    seed: int = 0,
    torch_call: Call | None = None,
    jax_call: Call | None = None,
) -> Report:
    """Losses and parameters after steps of an optimiser on both sides, in float64.

    Args:
        batches: tuples of inputs of the same shapes, taken in turn.
        torch_optimizer: from parameters to an optimiser: `lambda p: torch.optim.SGD(p, lr=0.1)`.
        tx: the same in optax: `optax.sgd(0.1)`.
        steps: at most 20; more amplify the last bit and prove nothing.
        torch_call, jax_call: as in `compare`: let them return the loss. Otherwise it is
            sum <cotangent, output>, with the same cotangents at every step.
        torch_module, jax_module, train, noise, seed: as in `compare`.

    Returns:
        A report with the row "loss", of shape (steps,), and one for each parameter.

    Raises:
        ValueError, ImportError: as `compare`.

    Example:
        >>> import numpy as np, optax, torch
        >>> from flax import nnx
        >>> from jaxrnn.testing import compare_training
        >>> theirs, ours = torch.nn.Linear(3, 5), nnx.Linear(3, 5, rngs=nnx.Rngs(0))
        >>> report = compare_training(theirs, ours, [(np.ones((4, 3)),)],
        ...     lambda p: torch.optim.Adam(p, lr=0.01), optax.adam(0.01))
        >>> print(report.verdict)
        agree: all 3 rows within tolerance
    """
    if steps < 1 or not batches:
        raise ValueError("`compare_training` needs at least one batch and one step.")
    dtype = "float64"
    data = [
        arrays(tuple(batch), dtype) for batch in itertools.islice(itertools.cycle(batches), steps)
    ]
    role = torch_side.role(torch_module, torch_call)
    with jax_side.precision(dtype):
        theirs, ours, first = _twins(torch_module, jax_module, dtype, noise, seed, train)
        got = _renamed(jax_side.fit(ours, jax_call, data, tx, dtype, seed), first)
    ref = torch_side.fit(theirs, role.call, data, torch_optimizer, dtype, seed)
    rows = (judge(k, "training", got[k], ref[k], dtype=dtype, steps=steps) for k in ref)
    name = type(torch_module).__name__
    return Report(f"{name}, {dtype}, training steps = {steps}: JAX against PyTorch", tuple(rows))


def _twins(
    torch_module: Any, jax_module: nnx.Module, dtype: str, noise: float, seed: int, train: bool
) -> tuple[Any, nnx.Module, dict[str, str]]:
    """Copies of both in `dtype`, with the same weights, and the first name of each parameter."""
    theirs = torch_side.prepare(torch_module, dtype, noise, seed, train)
    ours = jax_side.prepare(jax_module, dtype, train)
    first = torch_side.first_names(theirs)
    in_jax = jax_side.parameters(ours)
    newer = torch_side.weight_norm_names(theirs)
    first |= {older: first[name] for older, name in newer.items()}
    held = {newer.get(name, name) for name in in_jax}
    _check_same(
        "parameters",
        {name: tuple(value.shape) for name, value in theirs.named_parameters()},
        _shapes(_renamed(in_jax, first)),
    )
    state = theirs.state_dict().items()
    # Of the names of a parameter that is shared in PyTorch, JAX may hold one.
    weights = {name: value for name, value in state if name in held or name not in first}
    interchange.load_state_dict(ours, weights)
    return theirs, ours, first


def _renamed(values: Mapping[str, np.ndarray], first: Mapping[str, str]) -> dict[str, np.ndarray]:
    return {first.get(name, name): value for name, value in values.items()}


Values: TypeAlias = dict[tuple[str, Kind], np.ndarray]


def _named(result: Result, role: torch_side.Role, first: Mapping[str, str]) -> Values:
    """All values of one side, by the name and kind of their row."""
    outputs = zip(role.output_names(result.outputs), result.outputs.values(), strict=True)
    inputs = zip(role.input_names(result.inputs), result.inputs.values(), strict=True)
    values: Values = {}
    for name, value in outputs:
        values[name, "output" if name.startswith("output") else "state"] = value
    values["loss", "loss"] = result.loss
    for name, value in _renamed(result.parameters, first).items():
        values[name, "gradient"] = value
    for name, value in inputs:
        taken = (name, "gradient") in values
        values[f"{name} (input)" if taken else name, "gradient"] = value
    return values


def _rows(got: Values, ref: Values, peer: Values | None, dtype: str, steps: int) -> tuple[Row, ...]:
    """The rows in the order of `ref`; with `peer`, PyTorch in `dtype`, judged by its errors."""
    errors: dict[tuple[str, Kind], float] = {}
    if peer is not None:
        errors = {key: relative_error(key[1], peer[key], ref[key], dtype) for key in ref}
        gradients = [error for (_, kind), error in errors.items() if kind == "gradient"]
        others = [error for (_, kind), error in errors.items() if kind in ("output", "state")]
        for key, error in errors.items():
            typical = np.mean(gradients if key[1] == "gradient" else others)
            errors[key] = max(error, float(typical))
    return tuple(
        judge(*key, got[key], ref[key], dtype=dtype, steps=steps, peer_error=errors.get(key))
        for key in ref
    )


def _shapes(values: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in values.items()}


def _check_same(
    what: str, theirs: Mapping[str, tuple[int, ...]], ours: Mapping[str, tuple[int, ...]]
) -> None:
    """The same names with the same shapes on both sides, or one sentence that lists the others."""

    def listed(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
        return ", ".join(f"`{name}` {shapes[name]}" for name in names)

    problems = []
    if missing := [name for name in theirs if name not in ours]:
        problems.append(f"only in PyTorch: {listed(missing, theirs)}")
    if unexpected := [name for name in ours if name not in theirs]:
        problems.append(f"only in JAX: {listed(unexpected, ours)}")
    for name in theirs:
        if name in ours and theirs[name] != ours[name]:
            problems.append(f"`{name}` is {theirs[name]} in PyTorch and {ours[name]} in JAX")
    if problems:
        counts = f"{len(theirs)} in PyTorch, {len(ours)} in JAX"
        raise ValueError(f"The {what} differ ({counts}): {'; '.join(problems)}.")
