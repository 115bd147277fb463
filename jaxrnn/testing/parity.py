"""Parity checks of a PyTorch module and its JAX counterpart: outputs, loss and gradients."""

from typing import Any

import numpy as np
from flax import nnx

from jaxrnn.testing import jax_side, suspects, torch_side
from jaxrnn.testing.copies import copied
from jaxrnn.testing.jax_pairs import WeightMap, compare_jax
from jaxrnn.testing.report import Report
from jaxrnn.testing.rounding import floors
from jaxrnn.testing.twins import check_same, named, shapes, twins
from jaxrnn.testing.values import Call, arrays
from jaxrnn.testing.verdicts import Values, judge_all


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
    weights: WeightMap | None = None,
) -> Report:
    """Compare outputs, loss and every gradient of two modules with the same weights and inputs.

    Both modules are copied. The copy of the PyTorch module runs on the CPU, with noise added to
    every parameter; `interchange.load_state_dict` gives its weights to the copy of the JAX module.
    The loss is sum <cotangent, output> with independent random cotangents for each output, or the
    output itself if it is a single scalar. The report covers every output and state, the loss, and
    the gradients of every parameter and every floating input.

    A row beyond its tolerance still agrees if rounding explains the error: its largest element and
    its 2-norm are at most `tolerances.ERROR_RATIO` times the row's floor, which `rounding.floors`
    measures for that tensor alone. A gradient that cancels, such as that of a bias before batch
    normalisation, has a floor above its own size. Its row is marked "cancels", and a wrong factor
    in it goes undetected.

    Args:
        torch_module: a `torch.nn.Module`; or a `flax.nnx.Module`, the reference for another one.
            PyTorch is not needed then, and no floors are measured.
        jax_module: the `flax.nnx.Module` to compare with it.
        inputs: inputs of both modules: pytrees of NumPy, JAX or PyTorch arrays. Floating arrays are
            converted to `dtype`; integers and leaves that are not arrays are unchanged.
        hx: the initial state, passed as one more input.
        lengths: number of steps in each row, passed to both modules as the keyword `lengths`.
            `torch.nn.RNN`, `LSTM` and `GRU` run on packed sequences instead, or row by row if a
            length is 0.
        dtype: "float64" (needs no global flag), "float32" or "bfloat16". For bfloat16, PyTorch runs
            in float64 and JAX keeps its parameters in float32. Weights and inputs are first rounded
            to `dtype`.
        against: "float64" compares both sides in `dtype` with PyTorch in float64 and judges the
            ratio of their errors. It serves weights for which the tolerances do not hold.
        train: run in training mode, which requires every dropout rate to be 0 or 1; else in
            `eval()` mode.
        noise: standard deviation of the noise on vectors; on matrices it is divided by
            sqrt(fan-in). Without noise, zero biases hide swapped names.
        seed: seed of the noise and the cotangents.
        steps: number of steps T that sets the tolerance. Defaults to the time axis of a PyTorch
            recurrent layer's input, else to the longest of the first two axes of all inputs.
        torch_call, jax_call: called as (module, *inputs) in place of the module, with `lengths=` if
            lengths are given. Both return a pytree of outputs of the same structure.
        weights: of two JAX modules: maps the parameters of the first, a nested dict of arrays, to
            PyTorch's names in the second, as `to_torch` in the modules of `jaxrnn.interchange`
            does. Without it, both have the same parameters. Rows have the names of the first.

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

        A layer of Flax against the same in jaxrnn:

        >>> from jaxrnn.interchange import flax_cells
        >>> theirs = nnx.RNN(nnx.GRUCell(3, 5, rngs=nnx.Rngs(0)))
        >>> ours = jaxrnn.GRU(3, 5, batch_first=True, rngs=nnx.Rngs(0))
        >>> report = compare(theirs, ours, np.ones((4, 7, 3)), jax_call=lambda m, x: m(x)[0],
        ...     weights=lambda params: flax_cells.to_torch("GRUCell", params["cell"]))
        >>> print(report.verdict)
        agree: all 6 rows within tolerance
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
    if isinstance(torch_module, nnx.Module):
        if against or dtype == "bfloat16":
            raise ValueError(
                '`compare` of two JAX modules takes dtype="float64" or "float32", and no `against`.'
            )
        return compare_jax(
            torch_module,
            jax_module,
            weights,
            inputs,
            options,
            dtype=dtype,
            train=train,
            noise=noise,
            seed=seed,
            steps=steps,
            reference_call=torch_call,
            call=jax_call,
        )
    if weights is not None:
        raise ValueError("`compare` takes `weights` for two JAX modules only.")
    role = torch_side.role(torch_module, torch_call)
    if steps is None:
        steps = role.steps(inputs)

    with jax_side.precision(dtype):
        theirs, ours, first = twins(torch_module, jax_module, dtype, noise, seed, train)
        got = jax_side.run(ours, jax_call, inputs, options, dtype, seed)

    def torch_run(precision: str) -> Values:
        copy = torch_side.cast(copied(theirs), precision)
        result = torch_side.run(copy, role.call, inputs, options, dtype, seed)
        check_same("outputs", shapes(result.outputs), shapes(got.outputs))
        return named(result, role, first)

    ref = torch_run(reference)
    rows = judge_all(
        named(got, role, first),
        ref,
        torch_run(dtype) if against else None,
        lambda: floors(lambda: torch_run("float64"), ref, dtype),
        dtype,
        steps,
    )
    title = f"{type(torch_module).__name__}, {dtype}, T = {steps}: JAX against PyTorch"
    if reference != dtype:
        title = f"{title} in {reference}"
    if all(row.ok for row in rows):
        return Report(title, rows)
    failures = {row.name for row in rows if not row.ok}
    with jax_side.precision(dtype):
        differing = suspects.find(theirs, ours, failures)
        differing += suspects.find_gelu(
            lambda: torch_run(reference),
            lambda: jax_side.primitives(ours, jax_call, inputs, options),
        )
    return Report(title, rows, tuple(differing))


def assert_parity(
    torch_module: Any, jax_module: nnx.Module, *inputs: Any, **options: Any
) -> Report:
    """Run `compare`, and raise an AssertionError with the report if the modules disagree.

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
