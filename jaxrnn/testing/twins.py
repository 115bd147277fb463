"""Copies of two modules with the same weights, and their values under the same names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jaxrnn import interchange
from jaxrnn.testing import jax_side, torch_side
from jaxrnn.testing.values import Result
from jaxrnn.testing.verdicts import Values


def twins(
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
    check_same(
        "parameters",
        {name: tuple(value.shape) for name, value in theirs.named_parameters()},
        shapes(renamed(in_jax, first)),
    )
    state = theirs.state_dict().items()
    # A parameter that is shared in PyTorch has several names, of which JAX may hold one.
    weights = {name: value for name, value in state if name in held or name not in first}
    interchange.load_state_dict(ours, weights)
    return theirs, ours, first


def renamed(values: Mapping[str, np.ndarray], first: Mapping[str, str]) -> dict[str, np.ndarray]:
    return {first.get(name, name): value for name, value in values.items()}


def named(result: Result, role: torch_side.Role, first: Mapping[str, str]) -> Values:
    """Values of one side by the name and kind of their row."""
    outputs = zip(role.output_names(result.outputs), result.outputs.values(), strict=True)
    inputs = zip(role.input_names(result.inputs), result.inputs.values(), strict=True)
    values: Values = {}
    for name, value in outputs:
        values[name, "output" if name.startswith("output") else "state"] = value
    values["loss", "loss"] = result.loss
    for name, value in renamed(result.parameters, first).items():
        values[name, "gradient"] = value
    for name, value in inputs:
        taken = (name, "gradient") in values
        values[f"{name} (input)" if taken else name, "gradient"] = value
    return values


def shapes(values: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in values.items()}


def check_same(
    what: str,
    theirs: Mapping[str, tuple[int, ...]],
    ours: Mapping[str, tuple[int, ...]],
    sides: tuple[str, str] = ("PyTorch", "JAX"),
) -> None:
    """Require the same names and shapes on both sides.

    Raises:
        ValueError: for any difference, with all of them in one message.
    """

    def listed(names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
        return ", ".join(f"`{name}` {shapes[name]}" for name in names)

    problems = []
    if missing := [name for name in theirs if name not in ours]:
        problems.append(f"only in {sides[0]}: {listed(missing, theirs)}")
    if unexpected := [name for name in ours if name not in theirs]:
        problems.append(f"only in {sides[1]}: {listed(unexpected, ours)}")
    for name in theirs:
        if name in ours and theirs[name] != ours[name]:
            problems.append(
                f"`{name}` is {theirs[name]} in {sides[0]} and {ours[name]} in {sides[1]}"
            )
    if problems:
        counts = f"{len(theirs)} in {sides[0]}, {len(ours)} in {sides[1]}"
        raise ValueError(f"The {what} differ ({counts}): {'; '.join(problems)}.")
