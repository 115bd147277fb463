"""Comparison of two JAX modules whose parameters have different names and layouts."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx

from jaxrnn import interchange
from jaxrnn.testing import jax_side
from jaxrnn.testing.report import Report
from jaxrnn.testing.torch_side import Role, longest
from jaxrnn.testing.twins import check_same, named, shapes
from jaxrnn.testing.values import Call, call_module
from jaxrnn.testing.verdicts import judge

WeightMap: TypeAlias = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Maps the reference's parameters, a nested dict of arrays, to a `state_dict` of the other."""


def compare_jax(
    reference: nnx.Module,
    module: nnx.Module,
    weights: WeightMap | None,
    inputs: Any,
    options: dict[str, Any],
    *,
    dtype: str,
    train: bool,
    noise: float,
    seed: int,
    steps: int | None,
    reference_call: Call | None,
    call: Call | None,
) -> Report:
    """The report of `parity.compare` for two JAX modules; no floors are measured."""
    sides = "the first module", "the second"
    role = Role(call_module, (), (), longest)
    steps = longest(inputs) if steps is None else steps
    with jax_side.precision(dtype):
        theirs = jax_side.prepare(reference, dtype, train)
        add_noise(theirs, noise, seed)
        ours = jax_side.prepare(module, dtype, train)
        params = _pure(nnx.state(theirs, nnx.Param))
        convert = weights or _unchanged(ours)
        interchange.load_state_dict(ours, convert(params))
        ref = jax_side.run(theirs, reference_call, inputs, options, dtype, seed, names=_paths)
        got = jax_side.run(ours, call, inputs, options, dtype, seed)
    check_same("outputs", shapes(ref.outputs), shapes(got.outputs), sides)
    got = got._replace(parameters=pull_back(convert, params, got.parameters))
    values, wanted = named(got, role, {}), named(ref, role, {})
    rows = tuple(
        judge(*key, values[key], value, dtype=dtype, steps=steps) for key, value in wanted.items()
    )
    names = f"{type(module).__name__} against {type(reference).__name__}"
    return Report(f"{names}, {dtype}, T = {steps}", rows)


def add_noise(module: nnx.Module, noise: float, seed: int) -> None:
    """Add normal noise to every parameter, as `torch_side.prepare` does."""
    rng = np.random.default_rng((seed, 0))

    def noisy(a: Any) -> Any:
        fan_in = max(1, int(np.prod(a.shape[:-1]))) if a.ndim > 1 else 1
        return a + rng.normal(0.0, noise / fan_in**0.5, a.shape).astype(a.dtype)

    nnx.update(module, jax.tree.map(noisy, nnx.state(module, nnx.Param)))


def pull_back(
    weights: WeightMap, params: dict[str, Any], gradients: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Gradients of the reference's parameters from those of the other's, by the path in `params`.

    Each number that `weights` returns must be one number of `params`, or its negative, plus a
    constant. Which one follows from a call of `weights` on numbers that count the elements.

    Raises:
        ValueError: `weights` computes something else.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.testing.jax_pairs import pull_back
        >>> params = {"kernel": np.ones((2, 1)), "bias": np.ones(1)}
        >>> gradients = {"w": np.array([[3.0, 4.0]]), "b": np.array([5.0]), "b2": np.array([6.0])}
        >>> weights = lambda p: {"w": p["kernel"].T, "b": 1 - p["bias"], "b2": p["bias"]}
        >>> {name: g.tolist() for name, g in pull_back(weights, params, gradients).items()}
        {'bias': [1.0], 'kernel': [[3.0], [4.0]]}
    """
    leaves, tree = jax.tree.flatten(params)
    starts = np.cumsum([0, *(a.size for a in leaves)])
    counted = [
        np.arange(start + 1.0, start + a.size + 1).reshape(a.shape)
        for start, a in zip(starts[:-1], leaves, strict=True)
    ]
    counts = weights(jax.tree.unflatten(tree, counted))
    constants = weights(jax.tree.unflatten(tree, [0 * a for a in counted]))
    total = np.zeros(starts[-1] + 1)
    for name, gradient in gradients.items():
        source = np.asarray(counts[name]) - np.asarray(constants[name])
        index = np.abs(source).round().astype(int)
        if (np.abs(source) != index).any() or index.max(initial=0) > starts[-1]:
            raise ValueError(
                f"`weights` must copy, negate or shift numbers of the first module, and computes "
                f"{name!r} in another way."
            )
        np.add.at(total, index, np.sign(source) * gradient)
    parts = [
        total[start + 1 : stop + 1].reshape(a.shape)
        for start, stop, a in zip(starts[:-1], starts[1:], leaves, strict=True)
    ]
    return _paths(jax.tree.unflatten(tree, parts))


def _unchanged(module: nnx.Module) -> WeightMap:
    """`weights` for two modules of the same names: PyTorch's, as `state_dict` gives them."""

    def convert(params: dict[str, Any]) -> Mapping[str, Any]:
        state = nnx.state(module, nnx.Param)
        nnx.replace_by_pure_dict(state, params)
        return interchange.state_dict(state, like=module)

    return convert


def _pure(state: Any) -> dict[str, Any]:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(state))


def _paths(state: Any, module: Any = None) -> dict[str, np.ndarray]:
    """Arrays by their path, joined by dots."""
    tree = state if isinstance(state, dict) else _pure(state)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(str(key.key) for key in path): jax_side.array(a) for path, a in leaves}
