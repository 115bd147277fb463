"""A linear map whose own methods JAX can neither differentiate nor batch.

The map is a linear recurrence with pytrees and None in all arguments. Its own methods are while
loops, so a rule that differentiated or transposed the wrong method would raise.
"""

import dataclasses
import functools
import itertools
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxrnn.derivative.linear_map import LinearMap, apply
from jaxrnn.rows import NO_ROWS

T, N = 4, 3


@dataclasses.dataclass(frozen=True)
class Recurrence(LinearMap):
    """y_t = m_t ? a_t * (W y_{t-1}) + e_t : y_{t-1}, from y_0; results are y and the last y."""

    def plain(self, fixed, operands):
        def step(y, inputs):
            a, m, e = inputs
            y = jnp.where(m, a * (fixed["w"] @ y) + e, y)
            return y, y

        y, ys = lax.scan(step, operands["first"], (fixed["a"], fixed["mask"], operands["e"]))
        return {"all": ys, "none": None, "last": y}


class Own(Recurrence):
    """The recurrence as loops that have neither a transpose nor a reverse-mode derivative."""

    def tangent(self, fixed, operands):
        def body(state):
            t, y, ys = state
            e, a, m = operands["e"][t], fixed["a"][t], fixed["mask"][t]
            y = jnp.where(m, a * (fixed["w"] @ y) + e, y)
            return t + 1, y, ys.at[t].set(y)

        start = (0, operands["first"], jnp.zeros_like(operands["e"]))
        _, y, ys = lax.while_loop(lambda state: state[0] < T, body, start)
        return {"all": ys, "none": None, "last": y}

    def adjoint(self, fixed, like, cotangents):
        def body(state):
            t, ct, ces = state
            ct = ct + cotangents["all"][t]
            m = fixed["mask"][t]
            ces = ces.at[t].set(jnp.where(m, ct, 0.0))
            return t - 1, jnp.where(m, fixed["w"].T @ (fixed["a"][t] * ct), ct), ces

        start = (T - 1, cotangents["last"], jnp.zeros(like["e"].shape, like["e"].dtype))
        _, ct, ces = lax.while_loop(lambda state: state[0] >= 0, body, start)
        return {"e": ces, "first": ct, "nothing": None}


MAPS = {"plain": Recurrence(), "own": Own()}
every_map = pytest.mark.parametrize("linear_map", MAPS.values(), ids=MAPS.keys())


def arguments(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))  # noqa: E731
    fixed = {"w": draw(N, N), "a": draw(T, N), "mask": jnp.asarray([True, False, True, True])}
    return fixed, {"e": draw(T, N), "first": draw(N), "nothing": None}


def floats(fixed):
    return {name: fixed[name] for name in ("w", "a")}


def scalar(run, mask, moving, operands):
    out = run({**moving, "mask": mask}, operands)
    weight = jnp.cos(jnp.arange(T * N, dtype=out["all"].dtype)).reshape(T, N)
    return (weight * out["all"] ** 2).sum() + (out["last"] ** 3).sum()


def close(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-12)


def _curvature(f, x):
    """Second derivative along one direction; its gradient is a third derivative."""
    return jnp.dot(jax.jvp(jax.grad(f), (x,), (jnp.ones_like(x),))[1], jnp.cos(x))


def loss_of(run):
    """A loss of one vector, and the vector."""
    fixed, operands = arguments()
    flat, unravel = jax.flatten_util.ravel_pytree((floats(fixed), operands))
    return (lambda flat: scalar(run, fixed["mask"], *unravel(flat))), flat


@functools.cache
def expected():
    """Value, second and third derivatives without the rule."""
    loss, flat = loss_of(Recurrence().plain)
    return jax.jit(
        lambda x: (loss(x), jax.hessian(loss)(x), jax.grad(partial(_curvature, loss))(x))
    )(flat)


@every_map
def test_derivatives_to_third_order(linear_map):
    loss, flat = loss_of(partial(apply, linear_map))
    value, hessian, third = expected()
    close(jax.jit(loss)(flat), value)
    for outer, inner in itertools.product([jax.jacfwd, jax.jacrev], repeat=2):
        close(jax.jit(outer(inner(loss)))(flat), hessian)
    close(jax.jit(jax.grad(partial(_curvature, loss)))(flat), third)


@every_map
@pytest.mark.parametrize(
    "alone", [(), ("w",), ("w", "a"), ("e", "first"), ("w", "a", "first")], ids=str
)
def test_vmap_over_fixed_and_operands(linear_map, alone):
    """All but the named arrays have an extra axis in the middle; vmap and grad in both orders."""
    several = [arguments(seed) for seed in range(3)]
    mask, names = several[0][0]["mask"], ("w", "a", "e", "first")
    in_axes = [None if name in alone else 1 if name != "first" else 0 for name in names]

    def one(k):
        return [({**several[k][0], **several[k][1]})[n] for n in names]

    stacked = [
        first if axis is None else jnp.stack(arrays, axis)
        for axis, first, arrays in zip(
            in_axes, one(0), zip(*map(one, range(3)), strict=True), strict=True
        )
    ]

    def loss(run, w, a, e, first):
        return scalar(run, mask, {"w": w, "a": a}, {"e": e, "first": first, "nothing": None})

    def gradients(run):
        each = jax.vmap(jax.grad(partial(loss, run), argnums=(0, 1, 2, 3)), in_axes)
        total = lambda *args: jax.vmap(partial(loss, run), in_axes)(*args).sum()  # noqa: E731
        return jax.jit(lambda *args: (each(*args), jax.grad(total, argnums=(0, 1, 2, 3))(*args)))

    close(
        gradients(partial(apply, linear_map))(*stacked),
        gradients(Recurrence().plain)(*stacked),
    )


@dataclasses.dataclass(frozen=True)
class Turned(LinearMap):
    """y = diag(a) x^T: the rows are in axis 0 of the operands and in axis 1 of the results."""

    def plain(self, fixed, operands):
        return jnp.broadcast_to(fixed[:, None], operands.T.shape) * operands.T

    def rows(self, fixed, operands, results):
        return NO_ROWS, 0, 1


def test_vmap_merges_the_rows_of_operands_and_of_results():
    """Each pass is one call for all rows, wherever they are."""
    rng = np.random.default_rng(0)
    a, x, dy = (jnp.asarray(rng.standard_normal(s)) for s in ((N,), (4, 2, N), (4, N, 2)))
    run = partial(apply, Turned(), a)
    close(jax.vmap(run)(x), x.swapaxes(1, 2) * a[None, :, None])
    pull = jax.vmap(lambda x, dy: jax.vjp(run, x)[1](dy)[0])
    close(pull(x, dy), dy.swapaxes(1, 2) * a[None, None])
    text = str(jax.make_jaxpr(pull)(x, dy))
    assert "linear_adjoint" in text
    assert "_Vmapped" not in text


def test_the_own_methods_run():
    """The gradient's program contains both primitives, lowered to the loops of `Own`."""
    fixed, operands = arguments()
    gradient = jax.grad(partial(scalar, partial(apply, Own()), fixed["mask"], floats(fixed)))
    text = str(jax.make_jaxpr(gradient)(operands))
    assert "linear_tangent" in text or "linear_adjoint" in text
    assert "scan" not in text
    hlo = jax.jit(gradient).lower(operands).as_text()
    assert hlo.count("stablehlo.while") == 2


def test_export_with_a_symbolic_size():
    fixed, operands = arguments()
    b = jax.export.symbolic_shape("b")[0]

    def gradient(first):
        run = partial(scalar, partial(apply, Own()), fixed["mask"], floats(fixed))
        return jax.vmap(jax.grad(lambda f: run({**operands, "first": f})))(first)

    exported = jax.export.export(jax.jit(gradient))(jax.ShapeDtypeStruct((b, N), jnp.float64))
    many = jnp.stack([operands["first"], 2 * operands["first"]])
    close(exported.call(many), gradient(many))
