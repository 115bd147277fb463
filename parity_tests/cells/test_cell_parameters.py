"""Parameters of a cell and arrays that its step closes over, compared with a plain loop."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import contract
import jaxrnn
from jaxrnn import cells, layers, strategies
from jaxrnn.cells import Cell, Weights

T, B, I, H = 6, 2, 3, 4
STRATEGIES = {
    "default": None,
    **{
        name: tested.strategy
        for name, tested in contract.STRATEGIES.items()
        if tested.strategy.capabilities == strategies.Scan().capabilities
        and name != "Scan(unroll=3)"
    },
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((T, B, I)))
IH, HH = jnp.asarray(RNG.standard_normal((H, I))), jnp.asarray(0.4 * RNG.standard_normal((H, H)))
LENGTHS = jnp.asarray([T, 2])
MASK = jnp.asarray(RNG.random((B, H)) < 0.5)  # a zoneout mask, one for each row
SCALE = jnp.asarray(RNG.standard_normal((B, 1)))  # a constant for each row
LEAK = jnp.asarray(RNG.standard_normal(H))


@jax.numpy_rank_promotion("allow")
def advance(leak, mask, scale, h, g):
    a = jax.nn.sigmoid(leak)
    return jnp.where(mask, h, a * h + (1 - a) * jnp.tanh(g * scale))


def closing(strategy, leak, mask, scale, x, *, lengths=None, directions=1):
    """Runs `layers.stack` with a step that closes over all three."""
    cell = Cell("leaky", 1, 1, lambda c, gx, gh: (advance(leak, mask, scale, c[0], gx + gh),))
    weights = [[Weights(IH, HH)] * directions]
    carry = (jnp.zeros((directions, x.shape[1], H)),)
    return layers.stack(cell, weights, x, carry, lengths, strategy=strategy)[0]


def written_out(leak, mask, scale, x, *, lengths=None, directions=1):
    """The same recurrence as a plain scan over steps."""

    def one(reverse):
        def step(h, inputs):
            x_t, t = inputs
            new = advance(leak, mask, scale, h, x_t @ IH.T + h @ HH.T)
            runs = jnp.ones(x.shape[1], bool) if lengths is None else t < lengths
            new = jnp.where(runs[:, None], new, h)
            return new, jnp.where(runs[:, None], new, jnp.zeros_like(new))

        start = jnp.zeros((x.shape[1], H))
        return lax.scan(step, start, (x, jnp.arange(x.shape[0])), reverse=reverse)[1]

    return jnp.concatenate([one(False), one(True)][:directions], -1)


def loss(run, leak, mask, scale, x, **options):
    ys = run(leak, mask, scale, x, **options)
    return (ys**2 * jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)).sum()


def close(got, wanted, tolerance=1e-12):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


LEAKS = jnp.stack([LEAK, -LEAK, 0.5 * LEAK])
TRANSFORMATIONS = {
    "grad": lambda f: jax.grad(f)(LEAK, MASK, SCALE, X),
    "jit of grad": lambda f: jax.jit(jax.grad(f))(LEAK, MASK, SCALE, X),
    "jit of grad, mask traced by jit alone": lambda f: jax.jit(
        lambda mask, scale: jax.grad(lambda leak: f(leak, mask, scale, X))(LEAK)
    )(MASK, SCALE),
    "grad of the constant alone": lambda f: jax.grad(f, argnums=2)(LEAK, MASK, SCALE, X),
    "grad of the inputs, the rest traced": lambda f: jax.jit(jax.grad(f, argnums=3))(
        LEAK, MASK, SCALE, X
    ),
    "jvp": lambda f: jax.jvp(lambda a: f(a, MASK, SCALE, X), (LEAK,), (jnp.ones(H),)),
    "vmap": lambda f: jax.vmap(lambda a: f(a, MASK, SCALE, X))(LEAKS),
    "vmap of grad": lambda f: jax.vmap(jax.grad(lambda a: f(a, MASK, SCALE, X)))(LEAKS),
    "vmap over masks": lambda f: jax.jit(jax.vmap(lambda m: f(LEAK, m, SCALE, X)))(
        jnp.stack([MASK, ~MASK])
    ),
    "grad of vmap": lambda f: jax.grad(
        lambda a: jax.vmap(lambda s: f(a, MASK, s * SCALE, X))(jnp.arange(1.0, 3.0)).sum()
    )(LEAK),
    "grad of a scan around": lambda f: jax.grad(
        lambda a: lax.scan(lambda s, k: (s + f(a * k, MASK, SCALE, X), None), 0.0, jnp.ones(2))[0]
    )(LEAK),
    "grad of a checkpoint": lambda f: jax.grad(jax.checkpoint(f))(LEAK, MASK, SCALE, X),
    "lengths, both directions": lambda f: jax.jit(
        jax.value_and_grad(partial(f, lengths=LENGTHS, directions=2), argnums=(0, 2, 3))
    )(LEAK, MASK, SCALE, X),
    "hessian": lambda f: jax.jit(jax.hessian(f))(LEAK, MASK, SCALE, X),
    "reverse over reverse": lambda f: jax.jit(
        jax.grad(lambda a: (jax.grad(f)(a, MASK, SCALE, X) ** 2).sum())
    )(LEAK),
}


FEW = ("grad", "jit of grad", "vmap of grad", "lengths, both directions")
"""For strategies that are made of others."""
CHUNKED = (*FEW, "jvp", "vmap over masks", "grad of a checkpoint", "hessian")
"""Transformations that a strategy in chunks implements in its own way."""


@functools.cache
def expected(name):
    return TRANSFORMATIONS[name](partial(loss, written_out))


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        pytest.param(strategy, name, id=f"{kind}, {name}")
        for kind, strategy in STRATEGIES.items()
        for name in {"Scan": TRANSFORMATIONS, "Shooting": CHUNKED}.get(kind, FEW)
    ],
)
def test_arrays_in_the_closure_of_a_step_are_differentiated(strategy, name):
    got = TRANSFORMATIONS[name](partial(loss, partial(closing, strategy)))
    close(got, expected(name))


@every_strategy
def test_parameters_in_the_weights_beside_integers_and_closures(strategy):
    def step(params, carry, gx, gh):
        mask = params["mask"] == 1
        return (advance(params["leak"], mask, SCALE, carry[0], gx + gh),)

    cell = Cell("leaky", 1, 1, step)

    def run(leak, mask, scale, x):
        params = {"leak": leak, "mask": mask.astype(jnp.int32)[0]}
        weights = Weights(IH, HH, cell=params)
        return layers.stack(cell, [[weights]], x, (jnp.zeros((1, B, H)),), strategy=strategy)[0]

    same = jnp.broadcast_to(MASK[:1], MASK.shape)
    both = [jax.jit(jax.grad(partial(loss, f)))(LEAK, same, SCALE, X) for f in (run, written_out)]
    close(*both)


@every_strategy
def test_an_attribute_that_changes_between_calls_is_seen(strategy):
    class Leaky(nnx.Module):
        def __init__(self):
            self.leak, self.gain = nnx.Param(LEAK), 1.0

        def step(self, carry, gx, gh):
            return (advance(self.leak[...], False, self.gain, carry[0], gx + gh),)

        def __call__(self, x):
            cell = Cell("leaky", 1, 1, self.step)
            carry = (jnp.zeros((1, B, H)),)
            return layers.stack(cell, [[Weights(IH, HH)]], x, carry, strategy=strategy)[0]

    module = Leaky()
    for leak, gain in ((LEAK, 1.0), (-LEAK, 1.0), (-LEAK, 2.0)):
        module.leak[...], module.gain = leak, gain
        close(module(X), written_out(leak, False, gain, X))
    grads = nnx.grad(lambda m: loss(lambda *a: m(a[3]), None, None, None, X))(module)
    close(grads["leak"][...], jax.grad(partial(loss, written_out))(-LEAK, False, 2.0, X))


def test_a_second_eager_call_with_the_same_closure_compiles_nothing(compilations):
    cell = Cell("leaky", 1, 1, lambda c, gx, gh: (advance(LEAK, MASK, SCALE, c[0], gx + gh),))
    arguments = cell, Weights(IH, HH), X, (jnp.zeros((B, H)),)
    first = strategies.Scan()(*arguments)
    before = compilations()
    close(strategies.Scan()(*arguments), first)
    assert compilations() == before


@every_strategy
def test_a_cell_without_a_recurrent_product(strategy):
    """h_t = tanh(W_ih x_t + b_hh + u h_{t-1}), an IndRNN (Li et al., 2018)."""

    def step(u, carry, gx, gh):
        return (jnp.tanh(gx + gh + u * carry[0]),)

    cell, bias = Cell("indrnn", 1, 1, step), jnp.linspace(-1.0, 1.0, H)

    def run(u, bias):
        weights = Weights(IH, None, b_hh=bias, cell=u)
        carry = (jnp.zeros((1, B, H)),)
        ys, _ = layers.stack(cell, [[weights]], X, carry, LENGTHS, strategy=strategy)
        return (ys**2).sum()

    def plain(u, bias):
        def one(h, inputs):
            x_t, t = inputs
            new = jnp.where((t < LENGTHS)[:, None], jnp.tanh(x_t @ IH.T + bias + u * h), h)
            return new, jnp.where((t < LENGTHS)[:, None], new, jnp.zeros_like(new))

        return (lax.scan(one, jnp.zeros((B, H)), (X, jnp.arange(T)))[1] ** 2).sum()

    with jax.numpy_rank_promotion("allow"):
        close(*(jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(LEAK, bias) for f in (run, plain)))


def test_a_step_that_does_not_return_a_carry_is_named():
    for step in (lambda c, gx, gh: jnp.tanh(gx + gh), lambda c, gx, gh: (c[0], c[0])):
        with pytest.raises(jaxrnn.InputError, match=r"cell 'wrong' must return a tuple of 1 arr"):
            strategies.Scan()(Cell("wrong", 1, 1, step), Weights(IH, HH), X, (jnp.zeros((B, H)),))


def test_native_refuses_parameters():
    weights = Weights(IH, HH, cell=LEAK)
    with pytest.raises(jaxrnn.InputError, match="no parameters of their own"):
        strategies.Native()(cells.rnn_tanh, weights, X, (jnp.zeros((B, H)),))


CARRY = (jnp.zeros((B, H)),)


def each_with_scan(steps):
    """All steps with `Scan`, and the same divided among the other strategies that run any cell.

    Finding out about a step is common to all strategies: `closures.hoist`.
    """
    others = [name for name in STRATEGIES if name not in ("Scan", "default")]
    pairs = [("Scan", name) for name in steps]
    pairs += [(others[i % len(others)], name) for i, name in enumerate(steps)]
    cases = [
        pytest.param(STRATEGIES[strategy], steps[name], id=f"{strategy}, {name}")
        for strategy, name in pairs
    ]
    return pytest.mark.parametrize(("strategy", "step"), cases)


def by_hand(step, ih=IH):
    """The sum of squares of a run, differentiated by JAX."""

    def one(carry, x):
        carry = step(carry, x @ ih.T, carry[0] @ HH.T)
        return carry, (carry[0] ** 2).sum()

    return lax.scan(one, CARRY, X)[1].sum()


def squares(strategy, step, **options):
    ys, _ = strategy(Cell("own", 1, 1, step, **options), Weights(IH, HH), X, CARRY)
    return (ys**2).sum()


def wrapping(leak):
    @functools.wraps(cells.rnn_tanh.step)
    def step(carry, gx, gh):
        return (leak * jnp.tanh(gx + gh),)

    return step


@contract.each(name for name in STRATEGIES if name != "default")
@pytest.mark.parametrize("outer", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_step_that_wraps_a_pure_one_is_none(strategy, outer):
    with jax.numpy_rank_promotion("allow"):
        got = outer(jax.grad(lambda a: squares(strategy, wrapping(a))))(LEAK)
        close(got, jax.jit(jax.grad(lambda a: by_hand(wrapping(a))))(LEAK))


NOT_ADDITIVE = {
    "product": lambda a, gx, gh: jnp.tanh(a * gx) + jax.nn.sigmoid(gh),
    "sum and more": lambda a, gx, gh: jnp.tanh(gx + gh + a * gh),
    "two sums": lambda a, gx, gh: jnp.tanh(gx + gh) * a + (gx - gh),
    "twice gx": lambda a, gx, gh: jnp.tanh(gx + gh) * (gx + gx) * a,
    "gx itself": lambda a, gx, gh: gx,
}


@each_with_scan(NOT_ADDITIVE)
def test_a_step_that_is_called_additive_and_is_not(strategy, step):
    with jax.numpy_rank_promotion("allow"):
        got = jax.grad(lambda a: squares(strategy, lambda c, *g: (step(a, *g),), additive=True))(
            LEAK
        )
        close(got, jax.jit(jax.grad(lambda a: by_hand(lambda c, *g: (step(a, *g),))))(LEAK))


def test_an_additive_step_stays_one():
    from jaxrnn import closures

    def additive(step):
        cell = Cell("own", 1, 1, step, additive=True)
        return closures.hoist(cell, Weights(IH, HH), X, CARRY)[0].additive

    assert additive(lambda c, gx, gh: (LEAK[None] * jnp.tanh(gh + gx) * c[0],))
    assert not additive(lambda c, gx, gh: (jnp.tanh(gx + gh) + gh,))
    assert not additive(lambda c, gx, gh: (gx,))


class Changing(nnx.Module):
    """A module whose attributes reach the program in ways that its text does not show."""

    def __init__(self):
        self.gain = np.linspace(-1.0, 1.0, H)
        self.slope = 1.0

    def inner(self, carry, gx, gh):
        return (jax.jit(lambda v: v * self.gain)(jnp.tanh(gx + gh)),)

    def inner_of_jax(self, carry, gx, gh):
        gain = jnp.array(self.gain)
        return (jax.jit(lambda v: v * gain)(jnp.tanh(gx + gh)),)

    def deep(self, carry, gx, gh):
        body = jax.jit(lambda v: jnp.tanh(v) * self.gain)
        return (lax.scan(lambda v, _: (body(v), None), gx + gh, None, length=2)[0],)

    def surrogate(self, carry, gx, gh):
        slope = self.slope
        step = jax.custom_jvp(lambda v: jnp.tanh(v))
        step.defjvp(lambda p, t: (jnp.tanh(p[0]), slope * t[0]))
        return (step(gx + gh),)

    def surrogate_backwards(self, carry, gx, gh):
        slope = self.slope
        step = jax.custom_vjp(lambda v: jnp.tanh(v))
        step.defvjp(lambda v: (jnp.tanh(v), None), lambda _, g: (slope * g,))
        return (step(gx + gh),)


@each_with_scan({name: name for name in vars(Changing) if name[0] != "_"})
def test_a_change_that_the_text_of_the_program_does_not_show(strategy, step):
    module = Changing()
    with jax.numpy_rank_promotion("allow"):
        for _ in range(2):
            cell = Cell("own", 1, 1, getattr(module, step))

            def run(ih, cell=cell):
                return (strategy(cell, Weights(ih, HH), X, CARRY)[0] ** 2).sum()

            wanted = jax.jit(jax.value_and_grad(partial(by_hand, cell.step)))(IH)
            close((run(IH), jax.grad(run)(IH)), wanted)
            module.slope *= 2
            module.gain *= 3  # in place
