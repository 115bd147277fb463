"""JAX side of a comparison: a Flax module, and its gradients under PyTorch's names."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeAlias

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
    """A context that enables float64 if `dtype` needs it, regardless of the global flag."""
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def prepare(module: nnx.Module, dtype: str, train: bool) -> nnx.Module:
    """A copy that computes in `dtype`; bfloat16 keeps the parameters in float32."""
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
        # A `dtype` of None follows the parameters, which stay in float32 for bfloat16.
        if (unset and dtype == "bfloat16") or _is_floating_dtype(getattr(part, "dtype", None)):
            part.dtype = jnp.dtype(dtype)
    return module


def _is_floating_dtype(value: Any) -> bool:
    try:
        return value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        return False


def parameters(module: nnx.Module) -> dict[str, np.ndarray]:
    """Trainable parameters under PyTorch's names and in PyTorch's layouts."""
    return _by_torch_name(nnx.state(module, nnx.Param), module)


def as_jax(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_array(leaf) else leaf, tree)


def primitives(module: nnx.Module, call: Call | None, inputs: Any, options: dict[str, Any]) -> str:
    """Jaxpr of a call, as text."""
    graph, state = nnx.split(module)

    def outputs(state: Any) -> Any:
        copy = nnx.merge(graph, state, copy=True)
        return structure((call or call_module)(copy, *as_jax(inputs), **as_jax(options)))

    return str(jax.make_jaxpr(outputs)(state))


def loss(
    module: nnx.Module,
    call: Call | None,
    inputs: Any,
    options: dict[str, Any],
    dtype: str,
    draw: Callable[[dict[str, tuple[int, ...]]], Mapping[str, Any]],
) -> tuple[Array, dict[str, Any]]:
    """Sum of <cotangent, output> over the floating outputs, and all outputs by path.

    `draw` returns the cotangents for outputs of the given shapes.
    """
    outputs = structure((call or call_module)(module, *inputs, **options))
    floating = {path: y for path, y in outputs.items() if is_floating(y)}
    weights = draw({path: y.shape for path, y in floating.items()})
    wide = jnp.dtype("float64" if dtype == "float64" else "float32")
    total = jnp.zeros((), wide)
    for path, y in floating.items():
        total = total + (y.astype(wide) * jnp.asarray(weights[path], wide)).sum()
    return total, outputs


Program: TypeAlias = Callable[..., Any]
_PROGRAMS: ContextVar[dict[Any, Program] | None] = ContextVar("programs", default=None)


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """A context in which modules of one structure, called in the same way, share a compilation.

    The code of the modules and calls must not change inside it.
    """
    token = _PROGRAMS.set({})
    try:
        yield
    finally:
        _PROGRAMS.reset(token)


def run(
    module: nnx.Module,
    call: Call | None,
    inputs: Any,
    options: dict[str, Any],
    dtype: str,
    seed: int,
    names: Callable[[Any, nnx.Module], dict[str, np.ndarray]] | None = None,
) -> Result:
    """Outputs, loss and every gradient, compiled.

    Non-floating inputs are compile-time constants, so that checks on their values run. `names` maps
    the gradients of the parameters to arrays by name, by default PyTorch's.
    """
    graph, params, *others = nnx.split(module, nnx.Param, ...)
    (rest,) = others
    leaves, tree = jax.tree.flatten(as_jax(inputs))
    floats = {i: leaf for i, leaf in enumerate(leaves) if is_floating(leaf)}
    constants = [None if i in floats else leaf for i, leaf in enumerate(leaves)]

    def build() -> Program:
        return _program(graph, call, tree, constants, as_jax(options), dtype)

    programs = _PROGRAMS.get()
    if programs is None:
        program = build()
    else:
        known = repr([np.asarray(leaf).tolist() for leaf in jax.tree.leaves((constants, options))])
        shapes = str(jax.tree.map(jnp.shape, (params, rest, floats)))
        key = (graph, call, tree, known, shapes, tuple(options), dtype)
        program = programs[key] if key in programs else programs.setdefault(key, build())
    (total, outputs), (d_params, d_floats) = program(params, rest, floats, seed)
    paths = list(structure(inputs))
    return Result(
        outputs={path: array(y) for path, y in outputs.items()},
        loss=array(total),
        parameters=(names or _by_torch_name)(d_params, module),
        inputs={paths[i]: array(g) for i, g in d_floats.items()},
    )


def _program(
    graph: Any, call: Call | None, tree: Any, constants: list[Any], options: Any, dtype: str
) -> Program:
    """A compiled function of parameters, states and inputs: loss, outputs and gradients."""
    shapes: dict[str, tuple[int, ...]] = {}

    def objective(params: Any, floats: Any, rest: Any, weights: Any) -> Any:
        def draw(found: dict[str, tuple[int, ...]]) -> Mapping[str, Any]:
            shapes.update(found)
            return weights or {path: np.zeros(shape) for path, shape in found.items()}

        leaves = [floats.get(i, leaf) for i, leaf in enumerate(constants)]
        args = jax.tree.unflatten(tree, leaves)
        module = nnx.merge(graph, params, rest, copy=True)
        return loss(module, call, args, options, dtype, draw)

    gradients = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))

    def program(params: Any, rest: Any, floats: Any, seed: int) -> Any:
        if not shapes:
            jax.eval_shape(objective, params, floats, rest, {})
        return gradients(params, floats, rest, cotangents(shapes, dtype, seed))

    return program


def fit(
    module: nnx.Module,
    call: Call | None,
    batches: list[Any],
    tx: optax.GradientTransformation,
    dtype: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """Losses, and the parameters after one optimizer step on each batch."""
    graph, params, *rest = nnx.split(module, nnx.Param, ...)

    def objective(params: Any, batch: Any) -> Array:
        module = nnx.merge(graph, params, *rest, copy=True)
        return loss(module, call, batch, {}, dtype, lambda s: cotangents(s, dtype, seed))[0]

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Array]:
        value, grads = jax.value_and_grad(objective)(params, batch)
        # optax relies on the default promotion, even where the modules must run under a strict one.
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
    """Convert an array to NumPy; floating arrays become float64."""
    value = np.asarray(value)
    return value.astype(np.float64) if is_floating(value) else value
