"""The contract of strategies, each against the plain one."""

import functools
import itertools
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from contract import (
    BUILDS,
    CELLS,
    LINEAR,
    STRATEGIES,
    Flipped,
    assert_close,
    case,
    cells_of,
    each,
    jit_oracle,
    runs,
)
from jaxrnn import cells, strategies
from jaxrnn.cells import Weights
from scripts import run_code

pytestmark = pytest.mark.gpu

T, B, I, H, P = 6, 3, 4, 5, 2
_LENGTHS = np.arange(T)[:, None] < np.array([T, 2, 0])[None]
MASKS = {
    "dense": None,
    "lengths": jnp.asarray(_LENGTHS),
    "reversed lengths": jnp.asarray(_LENGTHS[::-1]),
    "any": jnp.asarray(np.random.default_rng(3).random((T, B)) < 0.5),
}
RESETS = jnp.asarray(np.random.default_rng(4).integers(0, 3, (T, B)), jnp.uint8)

every_strategy = each(STRATEGIES)
# The oracle's derivatives are JAX's own, and unrolling changes none of what these tests look at.
# Of what is the rule's own and long to check, Shooting gets the two cells that matter most.
MOST = {"gru": cells.gru, "lstm": cells.lstm}
FAST = {name: cells_of(STRATEGIES[name].strategy) for name in ("Scan", "Native", "AssociativeScan")}
FAST |= {"Shooting": MOST, "Shooting(Native)": MOST}


def by_cell(names):
    """Each of the strategies with each of its cells in `FAST`."""
    return pytest.mark.parametrize(
        ("strategy", "cell"),
        [case(n, cell, id=f"{n}, {cell.name}") for n in names for cell in FAST[n].values()],
    )


def arguments(cell, *, bias=True, projected=False, steps=T, batch=B, dtype=np.float64, seed=0):
    """Random weights, inputs and carry."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(0.5 * rng.standard_normal(shape), dtype)

    gates, outputs = cell.gates * H, P if projected else H
    weights = Weights(
        ih=draw(gates, I),
        hh=draw(gates, outputs) if cell.recurrent else None,
        b_ih=draw(gates) if bias else None,
        b_hh=draw(gates) if bias and cell.recurrent else None,
        hr=draw(P, H) if projected else None,
    )
    carry = (draw(batch, outputs), *(draw(batch, H) for _ in range(cell.states - 1)))
    return weights, draw(steps, batch, I), carry


def scalar(strategy, cell, mask, cotangents, weights, x, carry):
    """A loss in which every output has a weight of its own."""
    outputs = strategy(cell, weights, x, carry, mask)
    return sum(jax.tree.leaves(jax.tree.map(lambda c, o: (c * o).sum(), cotangents, outputs)))


def cotangents_for(strategy, cell, mask, args, seed=7):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(partial(strategy, cell), *args, mask)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), shapes)


VARIANTS = {
    **{name: (cell, {}) for name, cell in (CELLS | LINEAR).items()},
    "gru without bias": (cells.gru, {"bias": False}),
    "lstm with projection": (cells.lstm, {"projected": True}),
    "lstm with projection without bias": (cells.lstm, {"projected": True, "bias": False}),
}


def everything(strategy, cell, cotangents, args, tangents, mask):
    """Outputs, tangents and gradients, in one program."""
    run = lambda *a: strategy(cell, *a, mask)  # noqa: E731
    outputs, pushed = jax.jvp(run, args, tangents)
    loss = partial(scalar, strategy, cell, mask, cotangents)
    return outputs, pushed, jax.grad(loss, argnums=(0, 1, 2))(*args)


@functools.cache
def expected(variant):
    """The oracle's answers, for every mask: the arguments and what `everything` makes of them."""
    cell, options = VARIANTS[variant]
    args, tangents = arguments(cell, **options), arguments(cell, **options, seed=1)
    cotangents = cotangents_for(strategies.Reference(), cell, None, args)
    run = jit_oracle(partial(everything, strategies.Reference(), cell))
    call = (cotangents, args, tangents)
    return call, {name: run(*call, mask) for name, mask in MASKS.items()}


def able(name, variant):
    cell, options = VARIANTS[variant]
    return runs(STRATEGIES[name].strategy, cell, options.get("projected", False))


# The oracle is `Reference` itself.
@pytest.mark.parametrize(
    ("strategy", "variant"),
    [
        case(n, v, id=f"{n}, {v}", marks=[pytest.mark.core] * (v in ("gru", "min_gru")))
        for n, tested in STRATEGIES.items()
        if n != "Reference"
        for v in tested.variants or VARIANTS
        if able(n, v)
    ],
)
def test_values_and_derivatives_are_the_references(strategy, variant):
    cell, _ = VARIANTS[variant]
    call, wanted = expected(variant)
    run = jax.jit(partial(everything, strategy, cell))
    for name, mask in MASKS.items():
        assert_close(run(*call, mask), wanted[name])


def with_initial(weights, cell, seed, projected=False):
    """The weights with a state that a reset leads to."""
    *_, initial = arguments(cell, projected=projected, seed=seed)
    return weights._replace(initial=initial)


@functools.cache
def expected_with_resets(variant):
    cell, options = VARIANTS[variant]
    projected = options.get("projected", False)
    args, tangents = arguments(cell, **options), arguments(cell, **options, seed=1)
    args = with_initial(args[0], cell, 2, projected), *args[1:]
    tangents = with_initial(tangents[0], cell, 3, projected), *tangents[1:]
    cotangents = cotangents_for(strategies.Reference(), cell, None, args)
    run = jit_oracle(partial(everything, strategies.Reference(), cell))
    call = (cotangents, args, tangents)
    return call, run(*call, RESETS)


@pytest.mark.parametrize(
    ("strategy", "variant"),
    [
        case(n, v, id=f"{n}, {v}")
        for n, tested in STRATEGIES.items()
        if n != "Reference" and tested.resets
        for v in ("rnn_tanh", "gru", "lstm", "lstm with projection", "min_gru")
        if able(n, v)
    ],
)
def test_resets_lead_to_the_initial_state(strategy, variant):
    cell, _ = VARIANTS[variant]
    call, wanted = expected_with_resets(variant)
    assert_close(jax.jit(partial(everything, strategy, cell))(*call, RESETS), wanted)


def test_resets_written_out():
    """Row by row, and without `initial`: then a reset leads to the carry that was given."""
    cell = cells.lstm
    weights, x, carry = arguments(cell)
    started = with_initial(weights, cell, 2)
    for w, start in ((weights, carry), (started, started.initial)):
        ys, last = jax.jit(partial(strategies.Reference(), cell))(w, x, carry, RESETS)
        for b in range(B):
            state = tuple(c[b] for c in carry)
            for t in range(T):
                if RESETS[t, b] == strategies.HOLD:
                    assert (ys[t, b] == 0).all()
                    continue
                if RESETS[t, b] == strategies.RESET:
                    state = tuple(s[b] for s in start)
                gx = weights.ih @ x[t, b] + weights.b_ih
                state = cell.step(state, gx, weights.hh @ state[0] + weights.b_hh)
                assert_close(ys[t, b], state[0])
            assert_close(tuple(s[b] for s in last), state)


def test_second_derivatives_with_resets_are_the_references():
    cell, mask = cells.gru, RESETS[:3]
    weights, x, carry = arguments(cell, steps=3)
    weights = with_initial(weights, cell, 2)
    flat, unravel = jax.flatten_util.ravel_pytree((weights.initial, weights.hh))

    def loss(strategy, flat):
        initial, hh = unravel(flat)
        ys, _ = strategy(cell, weights._replace(initial=initial, hh=hh), x, carry, mask)
        return (ys**2).sum()

    @jax.jit
    def hessians(flat):
        made = [strategies.Reference(), strategies.Scan(), *[strategies.Native()][: bool(BUILDS)]]
        return [jax.hessian(partial(loss, strategy))(flat) for strategy in made]

    wanted, *got = hessians(flat)
    for hessian in got:
        assert_close(hessian, wanted, 1e-12)


@pytest.mark.parametrize(
    ("strategy", "cell"),
    [
        case(n, cell, id=f"{n}, {cell.name}")
        for n, tested in STRATEGIES.items()
        if tested.reverse
        for cell in (cells.gru, cells.lstm, cells.min_gru)
        if runs(tested.strategy, cell)
    ],
)
def test_reverse_is_a_flip_of_inputs_and_outputs(strategy, cell):
    call, wanted = expected(cell.name)
    got = jax.jit(partial(everything, Flipped(strategy), cell))(*call, MASKS["lengths"])
    assert_close(got, wanted["lengths"])


def test_the_oracle_is_a_loop_written_out():
    cell, mask = CELLS["user"], MASKS["any"]
    weights, x, carry = arguments(cell)
    ys, last = jax.jit(partial(strategies.Reference(), cell))(weights, x, carry, mask)
    for b in range(B):
        state = tuple(c[b] for c in carry)
        for t in range(T):
            if not mask[t, b]:
                assert (ys[t, b] == 0).all()
                continue
            gx = weights.ih @ x[t, b] + weights.b_ih
            gh = weights.hh @ state[0] + weights.b_hh
            state = cell.step(state, gx, gh)
            assert_close(ys[t, b], state[0])
        assert_close(tuple(s[b] for s in last), state)


@pytest.mark.parametrize("mask", [None, MASKS["any"]], ids=["dense", "any"])
@by_cell(["Scan", "Native"])
def test_derivatives_to_second_order_in_both_modes(strategy, cell, mask):
    args = arguments(cell, steps=3, seed=2)
    mask = None if mask is None else mask[:3]
    cotangents = cotangents_for(strategy, cell, mask, args)
    loss = jax.jit(partial(scalar, strategy, cell, mask, cotangents))
    check_grads(loss, args, order=2, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)


@by_cell(FAST)
def test_hessians_of_every_order_of_modes_are_the_references(strategy, cell):
    """Over all weights at once, projections and biases included."""
    projected = runs(strategy, cells.lstm, projected=True) and cell is cells.lstm
    weights, x, carry = arguments(cell, projected=projected, steps=3)
    mask = MASKS["lengths"][:3]
    cotangents = cotangents_for(strategy, cell, mask, (weights, x, carry))
    flat, unravel = jax.flatten_util.ravel_pytree(weights)

    def loss(strategy, flat):
        return scalar(strategy, cell, mask, cotangents, unravel(flat), x, carry)

    @jax.jit
    def hessians(flat):
        wanted = jax.hessian(partial(loss, strategies.Reference()))(flat)
        modes = itertools.product([jax.jacfwd, jax.jacrev], repeat=2)
        return wanted, [outer(inner(partial(loss, strategy)))(flat) for outer, inner in modes]

    wanted, got = hessians(flat)
    for hessian in got:
        assert_close(hessian, wanted, 1e-12)


@by_cell(FAST)
def test_vmap_over_inputs_weights_and_everything(strategy, cell):
    projected = runs(strategy, cells.lstm, projected=True) and cell is cells.lstm
    several = [arguments(cell, projected=projected, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    mask = MASKS["lengths"]
    cotangents = cotangents_for(strategy, cell, mask, several[0])
    gradient = jax.grad(partial(scalar, strategy, cell, mask, cotangents), argnums=(0, 1, 2))
    alone = jax.jit(gradient)
    for axes in [(0, 0, 0), (0, None, None), (None, 0, None)]:
        picked = [
            many if axis == 0 else one
            for many, one, axis in zip(stacked, several[0], axes, strict=True)
        ]
        got = jax.jit(jax.vmap(gradient, in_axes=axes))(*picked)
        rows = [
            alone(*(s[k] if axis == 0 else several[0][k] for k, axis in enumerate(axes)))
            for s in several
        ]
        assert_close(got, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


@every_strategy
@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (5, 0), (0, 0), (1, 1)])
def test_empty_and_smallest_shapes(strategy, steps, batch):
    cell = cells.lstm if runs(strategy, cells.lstm) else cells.min_gru
    weights, x, carry = arguments(cell, steps=steps, batch=batch)
    mask = jnp.ones((steps, batch), bool)
    for m in (None, mask):
        ys, last = strategy(cell, weights, x, carry, m)
        assert ys.shape == (steps, batch, H)
        if steps == 0:
            assert_close(last, carry, 0.0)
        grads = jax.grad(lambda w, m=m: strategy(cell, w, x, carry, m)[0].sum())(weights)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@each(name for name, tested in STRATEGIES.items() if tested.products)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_products_keep_wide_carries(strategy, dtype):
    weights, x, carry = arguments(cells.lstm, dtype=np.float32)
    low = Weights(weights.ih.astype(dtype), weights.hh.astype(dtype), weights.b_ih, weights.b_hh)
    text = str(jax.make_jaxpr(partial(strategy, cells.lstm))(low, x.astype(dtype), carry))
    # Checkpoint passes bfloat16 to the CPU kernel.
    kernel = "widens=True" in text or "narrow=True" in text
    assert "preferred_element_type=float32" in text or kernel
    ys, last = strategy(cells.lstm, low, x.astype(dtype), carry)
    wanted = strategies.Reference()(cells.lstm, weights, x, carry)
    assert ys.dtype == last[0].dtype == last[1].dtype == jnp.float32
    for got, w in zip(jax.tree.leaves((ys, last)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, w, atol=2e-2)


def test_what_scan_refuses():
    with pytest.raises(ValueError, match="needs unroll >= 1, got 0"):
        strategies.Scan(0)


# In a process of its own: in this one the types in annotations are checked before the strategies'.
WRONG_TYPES = """
import jaxrnn
from flax import nnx
from jaxrnn.strategies import Scan, Shooting
for make, told in [
    (lambda: Shooting("4"), "an int, got '4'"),
    (lambda: Shooting(Scan()), "an int, got Scan(unroll=None)"),
    (lambda: Shooting(True), "an int, got True"),
    (lambda: Shooting(burn_in=1.5), "an int, got 1.5"),
    (lambda: Shooting(max_sweeps=1.5), "an int, got 1.5"),
    (lambda: Shooting(tolerance="x"), "a number, got 'x'"),
    (lambda: Shooting(inner="scan"), "a strategy, such as strategies.Scan(), or None, got 'scan'"),
    (lambda: Shooting(inner=Scan), "a strategy, "),
    (lambda: Scan(True), "an int, got True"),
    (lambda: jaxrnn.LSTM(1, 2, strategy="scan", rngs=nnx.Rngs(0)), "a strategy, "),
    (lambda: jaxrnn.GRU(1, 2, strategy=Scan, rngs=nnx.Rngs(0)), "a strategy, "),
]:
    try:
        make()
    except TypeError as error:
        assert f"needs {told}" in str(error), error
        assert "\\n" not in str(error)
    else:
        raise AssertionError(told)
"""


def test_options_of_the_wrong_type_take_one_sentence():
    done = run_code(WRONG_TYPES)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unroll", [1, 3])
def test_scan_unrolls_as_told(unroll):
    args = arguments(cells.gru)
    strategy = strategies.Scan(unroll=unroll)
    gradient = jax.grad(lambda *a: strategy(cells.gru, *a)[0].sum())
    unrolled = [
        eqn.params["unroll"]
        for eqn in _equations(jax.make_jaxpr(gradient)(*args).jaxpr)
        if eqn.primitive.name == "scan"
    ]
    assert unrolled == [unroll, unroll]


def test_scan_of_a_symbolic_number_of_steps_is_not_unrolled():
    weights, x, carry = arguments(cells.gru)
    (t,) = jax.export.symbolic_shape("t")
    run = jax.jit(lambda x: strategies.Scan(unroll=4)(cells.gru, weights, x, carry)[0])
    exported = jax.export.export(run)(jax.ShapeDtypeStruct((t, *x.shape[1:]), x.dtype))
    assert_close(exported.call(x), run(x))


def test_scan_stores_no_intermediate_of_the_cell_and_accumulates_no_weight_gradient():
    """The gradient's program has the form that the derivative rule exists for."""
    weights, x, carry = arguments(cells.lstm)

    def loss(weights):
        return strategies.Scan()(cells.lstm, weights, x, carry)[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(weights).jaxpr
    scans = [eqn for eqn in _equations(jaxpr) if eqn.primitive.name == "scan"]
    assert len(scans) == 2
    for eqn in scans:
        carried = {v.aval.shape for v in eqn.outvars if v.aval.shape[:1] != (T,)}
        assert carried <= {(B, H), (B, 4 * H), ()}  # the carry, and gx of the next step
    stacked = [v.aval.shape for v in scans[0].outvars if v.aval.shape[:1] == (T,)]
    assert len(stacked) <= 4  # h, and the residuals: h, c, gh


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for sub in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(sub, "jaxpr", sub)
                if hasattr(inner, "eqns") and eqn.primitive.name != "scan":
                    yield from _equations(inner)


@every_strategy
def test_strategies_are_values(strategy):
    again = eval(repr(strategy), {"Flipped": Flipped, **vars(strategies)})
    assert (strategy, hash(strategy)) == (again, hash(again))
