"""A linear map with an adjoint of one's own choosing, under every transformation of JAX.

The derivative rule of `jaxrnn.derivative.rule` ends in a map that is linear in its operands,

    results = A(fixed) operands            cotangents of operands = A(fixed)^T cotangents of results

and JAX would find the adjoint by transposing the loop that computes A. `apply` makes A and A^T two
primitives, each the other's transpose, so that both may be computed in a way that JAX can neither
differentiate nor transpose: a kernel, or a loop whose number of turns depends on the data. Where
the derivative with respect to `fixed` is asked for, that of the plain way is taken.

Source: "How JAX primitives work", https://docs.jax.dev/en/latest/jax-primitives.html.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Tree = Any


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A linear map: hashable, with the three methods below, which must agree.

    `fixed`, `operands`, results and cotangents are pytrees of arrays, and operands and results of
    floats. This class computes both directions the plain way; override them in a subclass.
    """

    def plain(self, fixed: Tree, operands: Tree) -> Tree:
        """The results, by operations that JAX differentiates, transposes and batches."""
        raise NotImplementedError

    def tangent(self, fixed: Tree, operands: Tree) -> Tree:
        """The results, in whatever way is fast."""
        return self.plain(fixed, operands)

    def adjoint(self, fixed: Tree, like: Tree, cotangents: Tree) -> Tree:
        """The operands' cotangents; `like` has the shapes and dtypes of the operands."""
        return self.transposed(fixed, like, cotangents)

    def transposed(self, fixed: Tree, like: Tree, cotangents: Tree) -> Tree:
        """The operands' cotangents, by transposing the plain way. Not to be overridden."""
        return jax.linear_transpose(partial(self.plain, fixed), like)(cotangents)[0]


def apply(linear_map: LinearMap, fixed: Tree, operands: Tree) -> Tree:
    """`linear_map.tangent(fixed, operands)`, with `linear_map.adjoint` as its transpose.

    Example:
        A map that says which of its methods runs.

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
    """A pytree of arrays without the arrays, as a value."""

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: Tree) -> "_Shapes":
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))

    def unflatten(self, leaves: Sequence[Any]) -> Tree:
        return jax.tree.unflatten(self.structure, leaves)


class _Call(NamedTuple):
    """What the primitives are told besides arrays: the map and the pytrees around it."""

    linear_map: LinearMap
    fixed: Any
    operands: _Shapes
    results: _Shapes

    def split(self, leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The leaves of `fixed`, and those of what the map is linear in."""
        count = self.fixed.num_leaves
        return list(leaves[:count]), list(leaves[count:])


def _call(linear_map: LinearMap, structure: Any, fixed: Sequence[Any], operands: Tree) -> _Call:
    tree = jax.tree.unflatten(structure, fixed)
    results = jax.eval_shape(linear_map.plain, tree, operands)
    return _Call(linear_map, structure, _Shapes.of(operands), _Shapes.of(results))


def _push(way: str, *leaves: Any, call: _Call) -> list[Any]:
    """operands -> results, by the method of that name."""
    fixed, operands = call.split(leaves)
    run = getattr(call.linear_map, way)
    fixed = jax.tree.unflatten(call.fixed, fixed)
    return jax.tree.leaves(run(fixed, call.operands.unflatten(operands)))


def _pull(way: str, *leaves: Any, call: _Call) -> list[Any]:
    """Cotangents of results -> those of operands, by the method of that name."""
    fixed, cotangents = call.split(leaves)
    run = getattr(call.linear_map, way)
    fixed = jax.tree.unflatten(call.fixed, fixed)
    like = call.operands.unflatten(call.operands.leaves)
    return jax.tree.leaves(run(fixed, like, call.results.unflatten(cotangents)))


@dataclasses.dataclass(frozen=True)
class _Vmapped(LinearMap):
    """The map under `vmap`: along the first axis of every operand and of some fixed arrays."""

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
    """The map itself along the linear arguments, and the plain way along the fixed ones."""
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


def _batch(primitive: Primitive, arguments: Any, axes: Any, *, call: _Call):
    size = next(x.shape[d] for x, d in zip(arguments, axes, strict=True) if d is not None)
    count = call.fixed.num_leaves
    moved = [
        x if d is None and k < count else batching.bdim_at_front(x, d, size)
        for k, (x, d) in enumerate(zip(arguments, axes, strict=True))
    ]
    vmapped = _Vmapped(call.linear_map, tuple(None if d is None else 0 for d in axes[:count]))

    def grow(shapes: _Shapes) -> _Shapes:
        leaves = (jax.ShapeDtypeStruct((size, *s.shape), s.dtype) for s in shapes.leaves)
        return _Shapes(shapes.structure, tuple(leaves))

    call = _Call(vmapped, call.fixed, grow(call.operands), grow(call.results))
    out = primitive.bind(*moved, call=call)
    return out, [0] * len(out)


def _transpose(other: Primitive, cotangents: Any, *arguments: Any, call: _Call):
    fixed, linear = call.split(arguments)
    full = [ad.instantiate_zeros(ct) for ct in cotangents]
    out = other.bind(*fixed, *full, call=call)
    wanted = [o if ad.is_undefined_primal(x) else None for o, x in zip(out, linear, strict=True)]
    return [None] * len(fixed) + wanted


def _primitive(
    name: str, shapes: str, run: Callable[..., list[Any]], plain: Callable[..., list[Any]]
) -> Primitive:
    """A primitive with all rules but the transpose; its results are described by `call.shapes`."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    def abstract(*_: Any, call: _Call) -> list[Any]:
        return [jax.core.ShapedArray(s.shape, s.dtype) for s in getattr(call, shapes).leaves]

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(run, static_argnames="call"))
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))
    ad.primitive_jvps[primitive] = partial(_jvp, primitive, plain)
    batching.primitive_batchers[primitive] = partial(_batch, primitive)
    return primitive


_tangent_p = _primitive(
    "linear_tangent", "results", partial(_push, "tangent"), partial(_push, "plain")
)
_adjoint_p = _primitive(
    "linear_adjoint", "operands", partial(_pull, "adjoint"), partial(_pull, "transposed")
)
ad.primitive_transposes[_tangent_p] = partial(_transpose, _adjoint_p)
ad.primitive_transposes[_adjoint_p] = partial(_transpose, _tangent_p)
