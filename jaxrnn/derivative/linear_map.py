"""Linear maps with a custom adjoint under every JAX transformation.

The derivative rule of `jaxrnn.derivative.rule` ends in a map that is linear in its operands,

    results = A(fixed) operands            cotangents of operands = A(fixed)^T cotangents of results

for which JAX would derive the adjoint by transposing the loop that computes A. `apply` makes A and
A^T two primitives, each the transpose of the other. Both may then use code that JAX can neither
differentiate nor transpose, such as a kernel or a loop whose trip count depends on the data.
Derivatives with respect to `fixed` are those of `plain`.

Source: "How JAX primitives work", https://docs.jax.dev/en/latest/jax-primitives.html.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxrnn import rows
from jaxrnn.sharding import needs_devices, result_types, shapes_like, without_variation

Tree = Any


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A hashable linear map; its three methods must agree.

    `fixed`, `operands`, results and cotangents are pytrees of arrays; operands and results are
    floating. This class computes both directions from `plain`; subclasses override them.
    """

    def plain(self, fixed: Tree, operands: Tree) -> Tree:
        """Results, by operations that JAX can differentiate, transpose and batch."""
        raise NotImplementedError

    def tangent(self, fixed: Tree, operands: Tree) -> Tree:
        """Results, by any fast method."""
        return self.plain(fixed, operands)

    def adjoint(self, fixed: Tree, like: Tree, cotangents: Tree) -> Tree:
        """Cotangents of the operands; `like` has the shapes and dtypes of the operands."""
        return self.transposed(fixed, like, cotangents)

    def rows(self, fixed: Tree, operands: Tree, results: Tree) -> Any:
        """The axis of the rows in each array of the three pytrees, as `jaxrnn.rows` describes it.

        None if rows are not independent of each other. Only shapes and dtypes count.
        """
        return None

    def transposed(self, fixed: Tree, like: Tree, cotangents: Tree) -> Tree:
        """Cotangents of the operands, by transposing `plain`. Not to be overridden."""
        return transpose(partial(self.plain, fixed), like, cotangents)


def transpose(run: Callable[[Tree], Tree], like: Tree, cotangents: Tree) -> Tree:
    """Cotangents of the argument of a linear function; `like` has its shapes and dtypes."""
    return jax.linear_transpose(run, shapes_like(like, cotangents))(cotangents)[0]


def apply(linear_map: LinearMap, fixed: Tree, operands: Tree) -> Tree:
    """`linear_map.tangent(fixed, operands)`, with `linear_map.adjoint` as its transpose.

    Example:
        A map that prints a line when its adjoint runs.

        >>> import dataclasses, jax, jax.numpy as jnp
        >>> from jaxrnn.derivative import linear_map
        >>> @dataclasses.dataclass(frozen=True)
        ... class Scale(linear_map.LinearMap):
        ...     def plain(self, fixed, operands):
        ...         return fixed * operands
        ...     def adjoint(self, fixed, like, cotangents):
        ...         print("adjoint of", like.shape)
        ...         return fixed * cotangents
        >>> f = lambda a, x: linear_map.apply(Scale(), a, x).sum()
        >>> float(jax.grad(f, argnums=1)(jnp.float32(3.0), jnp.float32(2.0)))
        adjoint of ()
        3.0
        >>> float(jax.grad(f, argnums=0)(jnp.float32(3.0), jnp.float32(2.0)))
        2.0
    """
    leaves, structure = jax.tree.flatten(fixed)
    call = _call(linear_map, structure, leaves, operands)
    results = _tangent_p.bind(*leaves, *jax.tree.leaves(operands), call=call)
    return call.results.unflatten(results)


class _Shapes(NamedTuple):
    """Structure, shapes and dtypes of a pytree of arrays, as a hashable value."""

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: Tree) -> "_Shapes":
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))

    def unflatten(self, leaves: Sequence[Any]) -> Tree:
        return jax.tree.unflatten(self.structure, leaves)


class _Call(NamedTuple):
    """Parameters of the primitives: the map and the pytrees of its arguments and results."""

    linear_map: LinearMap
    fixed: Any
    operands: _Shapes
    results: _Shapes
    devices: Any
    """Marks maps that may need to know the devices, see `sharding.needs_devices`."""

    def split(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Leaves of `fixed`, and leaves of the linear arguments."""
        count = self.fixed.num_leaves
        return list(leaves[:count]), list(leaves[count:])


def _call(linear_map: LinearMap, structure: Any, fixed: Sequence[Any], operands: Tree) -> _Call:
    like, shapes = _Shapes.of(jax.tree.unflatten(structure, fixed)), _Shapes.of(operands)
    arguments = like.unflatten(like.leaves), shapes.unflatten(shapes.leaves)
    results = _Shapes.of(jax.eval_shape(linear_map.plain, *arguments))
    return _Call(linear_map, structure, shapes, results, needs_devices())


def _push(way: str, *leaves: Any, call: _Call) -> list[Any]:
    """Map operands to results by the named method."""
    fixed, operands = call.split(leaves)
    run = getattr(call.linear_map, way)
    fixed = jax.tree.unflatten(call.fixed, fixed)
    return jax.tree.leaves(run(fixed, call.operands.unflatten(operands)))


def _pull(way: str, *leaves: Any, call: _Call) -> list[Any]:
    """Map cotangents of results to cotangents of operands by the named method."""
    fixed, cotangents = call.split(leaves)
    run = getattr(call.linear_map, way)
    fixed = jax.tree.unflatten(call.fixed, fixed)
    like = call.operands.unflatten(call.operands.leaves)
    return jax.tree.leaves(run(fixed, like, call.results.unflatten(cotangents)))


@dataclasses.dataclass(frozen=True)
class _Vmapped(LinearMap):
    """The map under `vmap`, along axis 0 of every operand and of some fixed arrays."""

    linear_map: LinearMap
    axes: tuple[int | None, ...]

    def plain(self, fixed: Tree, operands: Tree) -> Tree:
        return self._vmap(self.linear_map.plain, fixed)(fixed, operands)

    def tangent(self, fixed: Tree, operands: Tree) -> Tree:
        return self._vmap(self.linear_map.tangent, fixed)(fixed, operands)

    def adjoint(self, fixed: Tree, like: Tree, cotangents: Tree) -> Tree:
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), like)

        def run(fixed: Tree, cotangents: Tree) -> Tree:
            return self.linear_map.adjoint(fixed, one, cotangents)

        return self._vmap(run, fixed)(fixed, cotangents)

    def _vmap(self, run: Callable[..., Tree], fixed: Tree) -> Callable[..., Tree]:
        axes = jax.tree.unflatten(jax.tree.structure(fixed), self.axes)
        return jax.vmap(run, in_axes=(axes, 0))


def _jvp(
    primitive: Primitive, plain: Callable[..., list[Any]], primals: Any, tangents: Any, *, call
):
    """The map itself for tangents of linear arguments, and the JVP of `plain` for fixed ones."""
    fixed, linear = call.split(primals)
    dfixed, dlinear = call.split(tangents)
    terms = []
    if any(type(t) is not ad.Zero for t in dlinear):
        along = [ad.instantiate_zeros(t) for t in dlinear]
        terms.append(primitive.bind(*fixed, *along, call=call))
    moving = [k for k, t in enumerate(dfixed) if type(t) is not ad.Zero]
    if moving:

        def run(*moved: Any) -> list[Any]:
            leaves = list(fixed)
            for k, value in zip(moving, moved, strict=True):
                leaves[k] = value
            return plain(*leaves, *linear, call=call)

        _, term = jax.jvp(run, [fixed[k] for k in moving], [dfixed[k] for k in moving])
        terms.append(term)
    out = primitive.bind(*primals, call=call)
    return out, [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]


def _batch(primitive: Primitive, shapes: str, arguments: Any, axes: Any, *, call: _Call):
    merged = _merge(primitive, shapes, arguments, axes, call)
    if merged is not None:
        return merged
    size = rows.size_of(arguments, axes)
    count = call.fixed.num_leaves
    moved = [
        x if d is None and k < count else batching.bdim_at_front(x, d, size)
        for k, (x, d) in enumerate(zip(arguments, axes, strict=True))
    ]
    vmapped = _Vmapped(call.linear_map, tuple(None if d is None else 0 for d in axes[:count]))

    def grow(shapes: _Shapes) -> _Shapes:
        leaves = (jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in shapes.leaves)
        return _Shapes(shapes.structure, tuple(leaves))

    call = call._replace(
        linear_map=vmapped, operands=grow(call.operands), results=grow(call.results)
    )
    out = primitive.bind(*moved, call=call)
    return out, [0] * len(out)


def _merge(primitive: Primitive, shapes: str, arrays: Any, axes: Any, call: _Call) -> Any:
    """`vmap` as more rows; None if the map has no rows, or an array is mapped that has none.

    Then the cotangent of a weight that is not mapped is summed where it is computed.
    """
    members = list(map(rows.without_axis, arrays, axes))
    fixed = jax.tree.unflatten(call.fixed, members[: call.fixed.num_leaves])
    linear = [s.unflatten(s.leaves) for s in (call.operands, call.results)]
    described = call.linear_map.rows(fixed, *linear)
    if described is None:
        return None
    of_fixed, *of_linear = map(jax.tree.leaves, described)
    given, found = of_linear if shapes == "results" else reversed(of_linear)
    operands, like = of_fixed + given, getattr(call, shapes).leaves
    if not rows.can_merge(arrays, axes, operands, found, like):
        return None
    size = rows.size_of(arrays, axes)

    def grow(shapes: _Shapes, axes: Any) -> _Shapes:
        return shapes._replace(
            leaves=tuple(
                rows.with_rows(s, d, size) for s, d in zip(shapes.leaves, axes, strict=True)
            )
        )

    call = call._replace(
        operands=grow(call.operands, of_linear[0]), results=grow(call.results, of_linear[1])
    )
    return rows.run_merged(partial(primitive.bind, call=call), arrays, axes, operands, found)


def _transpose(other: Primitive, cotangents: Any, *arguments: Any, call: _Call):
    fixed, linear = call.split(arguments)
    full = [ad.instantiate_zeros(ct) for ct in cotangents]
    out = other.bind(*fixed, *full, call=call)
    wanted = [o if ad.is_undefined_primal(x) else None for o, x in zip(out, linear, strict=True)]
    return [None] * len(fixed) + wanted


def _primitive(
    name: str, shapes: str, run: Callable[..., list[Any]], plain: Callable[..., list[Any]]
) -> Primitive:
    """A primitive with all rules but the transpose; `shapes` names the field of its results."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    def abstract(*arguments: Any, call: _Call) -> list[Any]:
        return result_types(getattr(call, shapes).leaves, arguments)

    lower_traced = mlir.lower_fun(run, multiple_results=True)

    def lower(context: Any, *arguments: Any, call: _Call) -> Any:
        context = context.replace(avals_in=without_variation(context.avals_in))
        return lower_traced(context, *arguments, call=call)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(run, static_argnames="call"))
    mlir.register_lowering(primitive, lower)
    ad.primitive_jvps[primitive] = partial(_jvp, primitive, plain)
    batching.primitive_batchers[primitive] = partial(_batch, primitive, shapes)
    return primitive


_tangent_p = _primitive(
    "linear_tangent", "results", partial(_push, "tangent"), partial(_push, "plain")
)
_adjoint_p = _primitive(
    "linear_adjoint", "operands", partial(_pull, "adjoint"), partial(_pull, "transposed")
)
ad.primitive_transposes[_tangent_p] = partial(_transpose, _adjoint_p)
ad.primitive_transposes[_adjoint_p] = partial(_transpose, _tangent_p)
