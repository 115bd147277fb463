"""The JAX side of a comparison: a Flax module, and its gradients under PyTorch's names."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jaxrnn import interchange
from jaxrnn.testing.values import (
    Call,
    Result,
    call_module,
    cotangents,
    is_array,
    is_floating,
    structure,
)


def precision(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Where float64 exists: in this block, whatever the flag says elsewhere."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def prepare(module: nnx.Module, dtype: str, train: bool) -> nnx.Module:
    """A copy that computes in `dtype`; for bfloat16 its parameters are kept in float32."""
    stored = jnp.dtype("float32" if dtype == "bfloat16" else dtype)
    module = nnx.clone(module)
    if train:
        module.train()
    else:
        module.eval()
    state = nnx.state(module)
    nnx.update(module, jax.tree.map(lambda a: a.astype(stored) if is_floating(a) else a, state))
    part: Any
    for _, part in nnx.iter_modules(module):
        if _is_floating_dtype(getattr(part, "param_dtype", None)):
            part.param_dtype = stored
        unset = getattr(part, "dtype", 0) is None
        # None follows the parameters, which in bfloat16 are of another dtype.
        if (unset and dtype == "bfloat16") or _is_floating_dtype(getattr(part, "dtype", None)):
            part.dtype = jnp.dtype(dtype)
    return module


def _is_floating_dtype(value: Any) -> bool:
    try:
        return value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        return False


def parameters(module: nnx.Module) -> dict[str, np.ndarray]:
    """What is trained, under PyTorch's names and in PyTorch's layouts."""
    return _by_torch_name(nnx.state(module, nnx.Param), module)


def as_jax(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_array(leaf) else leaf, tree)


def loss(
    module: nnx.Module,
    call: Call | None,
    inputs: Any,
    options: dict[str, Any],
    dtype: str,
    seed: int,
) -> tuple[Array, dict[str, Any]]:
    """The sum of <cotangent, output> over the floating outputs, and all outputs by path."""
    outputs = structure((call or call_module)(module, *inputs, **options))
    floating = {path: y for path, y in outputs.items() if is_floating(y)}
    weights = cotangents({path: y.shape for path, y in floating.items()}, dtype, seed)
    wide = jnp.dtype("float64" if dtype == "float64" else "float32")
    total = jnp.zeros((), wide)
    for path, y in floating.items():
        total = total + (y.astype(wide) * jnp.asarray(weights[path], wide)).sum()
    return total, outputs


def run(
    module: nnx.Module,
    call: Call | None,
    inputs: Any,
    options: dict[str, Any],
    dtype: str,
    seed: int,
) -> Result:
    """Outputs, loss and every gradient, compiled.

    Inputs that are not floating are constants, so that checks of their values are made.
    """
    graph, params, *rest = nnx.split(module, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(as_jax(inputs))
    options = as_jax(options)

    def objective(params: Any, floats: dict[int, Array]) -> tuple[Array, dict[str, Any]]:
        args = jax.tree.unflatten(tree, [floats.get(i, leaf) for i, leaf in enumerate(leaves)])
        return loss(nnx.merge(graph, params, *rest, copy=True), call, args, options, dtype, seed)

    floats = {i: leaf for i, leaf in enumerate(leaves) if is_floating(leaf)}
    gradients = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    (total, outputs), (d_params, d_floats) = gradients(params, floats)
    paths = list(structure(inputs))
    return Result(
        outputs={path: array(y) for path, y in outputs.items()},
        loss=array(total),
        parameters=_by_torch_name(d_params, module),
        inputs={paths[i]: array(g) for i, g in d_floats.items()},
    )


def fit(
    module: nnx.Module,
    call: Call | None,
    batches: list[Any],
    tx: optax.GradientTransformation,
    dtype: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """The losses, and the parameters after a step of an optimiser on each batch."""
    graph, params, *rest = nnx.split(module, nnx.Param, ...)

    def objective(params: Any, batch: Any) -> Array:
        total, _ = loss(nnx.merge(graph, params, *rest, copy=True), call, batch, {}, dtype, seed)
        return total

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Array]:
        value, grads = jax.value_and_grad(objective)(params, batch)
        # Whatever promotion the modules are held to, optax's own arithmetic relies on the default.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

    losses = []
    state = tx.init(params)
    for batch in batches:
        params, state, value = step(params, state, as_jax(batch))
        losses.append(array(value))
    return {"loss": np.stack(losses)} | _by_torch_name(params, module)


def _by_torch_name(state: Any, module: nnx.Module) -> dict[str, np.ndarray]:
    named = interchange.state_dict(state, like=module)
    return {name: array(value) for name, value in named.items()}


def array(value: Any) -> np.ndarray:
    """An array in NumPy, floating ones as float64."""
    value = np.asarray(value)
    return value.astype(np.float64) if is_floating(value) else value
