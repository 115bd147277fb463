"""JAX primitives for kernels: a plain implementation, and kernels on some platforms."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxrnn.native.partition import run_by_rows
from jaxrnn.rows import can_merge, run_each, run_merged, without_axis
from jaxrnn.sharding import needs_devices, result_types, without_variation


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


class Kernel(NamedTuple):
    """A kernel `run(call, *arguments)` for arguments whose shapes it `serves`.

    `serves_each` tells whether, for stacked weights, one call for each member is the fastest way.
    """

    run: Callable[..., Any]
    serves: Callable[..., bool] = _always
    serves_each: Callable[..., bool] = _never


def make_primitive(
    name: str,
    plain: Callable[..., Any],
    kernels: Mapping[str, Kernel],
    rows: Callable[..., Any],
) -> Callable[..., Any]:
    """Make a function `f(call, *arguments)` that runs a kernel on supported platforms.

    Args:
        name: name of the primitive.
        plain: the same function in JAX operations. It runs on other platforms, for arguments that a
            kernel does not serve and in exported programs.
        kernels: kernels to run instead, by platform. On a batch that is sharded over devices, each
            device runs its own rows.
        rows: `rows(call, *arguments)` returns the axis of the rows, or `rows.NO_ROWS`, of each
            array: in the structure of the arguments, and in that of the results.

    Under `vmap` over arrays with rows alone, a kernel runs once with more rows. Otherwise, as for
    stacked weights or the gradient of each sample, it runs once for each member where it
    `serves_each`, and elsewhere `plain` runs.
    """

    def flat(run: Any) -> Any:
        def flattened(*leaves: Array, call: Any, structure: Any, devices: Any) -> list[Array]:
            return jax.tree.leaves(run(call, *jax.tree.unflatten(structure, leaves)))

        return flattened

    def abstract(*leaves: Any, **options: Any) -> list[Any]:
        like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves]
        out = jax.eval_shape(partial(flat(plain), **options), *like)
        return result_types(out, leaves)

    def batch(arrays: Any, mapped: Any, *, call: Any, structure: Any, devices: Any) -> Any:
        options = {"call": call, "structure": structure, "devices": devices}
        bind = partial(primitive.bind, **options)
        member = list(map(without_axis, arrays, mapped))
        arguments = jax.tree.unflatten(structure, member)
        operands, results = map(jax.tree.leaves, rows(call, *arguments))
        shapes = jax.eval_shape(partial(flat(plain), **options), *member)
        if can_merge(arrays, mapped, operands, results, shapes):
            return run_merged(bind, arrays, mapped, operands, results)
        each = {
            platform: lambda *arrays: run_each(bind, arrays, mapped)
            for platform, kernel in kernels.items()
            if kernel.serves_each(call, *arguments)
        }
        as_plain = jax.vmap(partial(flat(plain), **options), in_axes=tuple(mapped))
        found = lax.platform_dependent(*arrays, default=as_plain, **each)
        return found, [0] * len(found)

    def call_primitive(call: Any, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        results = primitive.bind(*leaves, call=call, structure=structure, devices=needs_devices())
        shapes = jax.eval_shape(partial(plain, call), *arguments)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    primitive = Primitive(name)
    primitive.multiple_results = True
    lower_traced = mlir.lower_fun(flat(plain), multiple_results=True)

    def lower_plain(context: Any, *leaves: Any, **options: Any) -> Any:
        context = context.replace(avals_in=without_variation(context.avals_in))
        return lower_traced(context, *leaves, **options)

    def lowering(kernel: Kernel) -> Any:
        def lower(context: Any, *leaves: Any, call: Any, structure: Any, devices: Any) -> Any:
            context = context.replace(avals_in=without_variation(context.avals_in))
            arguments = jax.tree.unflatten(structure, context.avals_in)
            exported = context.module_context.lowering_parameters.for_export
            if exported or not kernel.serves(call, *arguments):
                options = {"call": call, "structure": structure, "devices": devices}
                return lower_plain(context, *leaves, **options)
            operands, results = rows(call, *arguments)

            def run(*arrays: Array) -> list[Array]:
                return flat(kernel.run)(*arrays, call=call, structure=structure, devices=devices)

            sharded = run_by_rows(run, jax.tree.leaves(operands), jax.tree.leaves(results))
            return mlir.lower_fun(sharded, multiple_results=True)(context, *leaves)

        return lower

    primitive.def_abstract_eval(abstract)
    jitted = jax.jit(primitive.bind, static_argnames=("call", "structure", "devices"))

    def impl(*leaves: Array, **options: Any) -> list[Array]:
        with jax.disable_jit(False):  # otherwise this function would call itself
            return jitted(*leaves, **options)

    primitive.def_impl(impl)
    mlir.register_lowering(primitive, lower_plain)
    for platform, kernel in kernels.items():
        mlir.register_lowering(primitive, lowering(kernel), platform=platform)
    batching.primitive_batchers[primitive] = batch
    return call_primitive
