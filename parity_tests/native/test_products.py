"""The kernel's products inside of `Scan`'s loop."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.contract import assert_close, jit_oracle, needs_kernel

import jaxrnn
from jaxrnn import cells, strategies
from jaxrnn.native import products

pytestmark = needs_kernel


def calls(text):
    """Number of calls of each kernel in the text of a program, before or after compilation."""
    return Counter(re.findall(r'(?:custom_call @|custom_call_target=")jaxrnn_(\w+)', text))


def draw(*shape, dtype="float64"):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def multiplied(rows, weight, bias=None, *, transposed=False):
    """rows times weight, which is given as its transpose if `transposed`."""
    packed = products.pack(products.Packing(transposed), weight)
    return products.multiply(None, rows, weight.T if transposed else weight, packed, bias)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    # The last has more features than a part of a panel.
    [(1, 3, 4), (2, 17, 9), (5, 64, 33), (7, 33, 100), (130, 300, 512), (9, 1100, 63)],
)
def test_a_product_equals_numpys(rows, depth, columns, transposed):
    a = draw(rows, depth)
    w = draw(*((columns, depth) if transposed else (depth, columns)))
    bias = draw(columns) if transposed else None
    got = jax.jit(lambda *a: multiplied(*a, transposed=transposed))(a, w, bias)
    wanted = np.asarray(a) @ np.asarray(w.T if transposed else w)
    wanted = wanted if bias is None else wanted + np.asarray(bias)
    np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=2e-13)


def test_more_rows_under_vmap():
    a, w = draw(3, 4, 8), draw(8, 6)
    assert_close(jax.vmap(lambda a: multiplied(a, w))(a), a @ w)
    program = jax.jit(jax.vmap(lambda a: multiplied(a, w))).lower(a).compile().as_text()
    assert calls(program)["matmul"] == 1
    assert "f64[12,6]" in program


@pytest.mark.parametrize(("features", "columns"), [(8, 6), (1100, 70)])
def test_a_product_and_that_of_a_step_of_a_sequence(features, columns):
    a, w, bias = draw(4, features), draw(features, columns), draw(columns)
    x, v = draw(5, 4, 3), draw(3, columns)

    def run(a, x, t):
        packed, of_x = (products.pack(products.Packing(transposed=False), m) for m in (w, v))
        return products.multiply(None, a, w, packed, bias, products.Step(x, t, v, of_x))

    for t in (0, 3):
        wanted = a @ w + bias[None] + x[t] @ v
        assert_close(jax.jit(run)(a, x, jnp.int64(t)), wanted)
    exported = jax.export.export(jax.jit(run))(a, x, jnp.int64(3))
    assert_close(exported.call(a, x, jnp.int64(3)), wanted)
    many, sequences = jnp.stack([a, 2 * a]), jnp.stack([x, -x])
    mapped = jax.jit(jax.vmap(run, (0, 0, None)))
    wanted = many @ w + bias[None, None] + sequences[:, 3] @ v
    assert_close(mapped(many, sequences, jnp.int32(3)), wanted)
    assert calls(mapped.lower(many, sequences, jnp.int32(3)).compile().as_text())["matmul"] == 1
    wanted = (a @ w + bias[None])[None] + x[jnp.array([4, 1])] @ v
    assert_close(jax.vmap(run, (None, None, 0))(a, x, jnp.array([4, 1])), wanted)


def test_stacked_weights_under_vmap():
    a, w = draw(3, 4, 8), draw(3, 8, 6)
    assert_close(jax.vmap(multiplied)(a, w), a @ w)
    assert_close(jax.vmap(multiplied, (None, 0))(a[0], w), a[0] @ w)


def every_product(monkeypatch):
    """Let the kernel multiply tiny products too."""
    monkeypatch.setattr(products, "LEAST", 1)
    jax.clear_caches()


@pytest.fixture
def program(monkeypatch):
    """A cell that the kernel does not know, and arguments for it; tiny products count too."""
    every_product(monkeypatch)
    weights = cells.Weights(ih=draw(8, 3), hh=draw(8, 4), cell=draw(3, 2))

    def step(p, carry, gx, gh):
        a, b = jnp.split(gx + gh, 2, axis=-1)
        return (jnp.tanh(a) * jax.nn.sigmoid(b + p.sum().astype(b.dtype)),)

    cell = cells.Cell("own", gates=2, states=1, step=step)
    return cell, weights, draw(5, 2, 3), (draw(2, 4),)


def loss(strategy, cell, weights, x, carry):
    return (strategy(cell, weights, x, carry)[0] ** 2).sum()


def test_both_loops_of_training_multiply_by_the_kernel(program):
    cell, *arguments = program

    def gradient(*arguments):
        return jax.grad(lambda *a: loss(strategies.Scan(), cell, *a), (0, 1, 2))(*arguments)

    compiled = jax.jit(gradient).lower(*arguments).compile().as_text()
    # The inputs' projection, and one product in each loop.
    assert calls(compiled) == {"matmul": 3, "pack": 3, "outer": 2}
    assert calls(compiled[: compiled.index("ENTRY")]) == {"matmul": 2}


def test_an_additive_cell_adds_its_inputs_in_the_kernel(program):
    cell, *arguments = program
    cell = cell._replace(additive=True)
    run = jax.jit(lambda *a: strategies.Scan()(cell, *a)[0])
    compiled = run.lower(*arguments).compile().as_text()
    assert calls(compiled) == {"matmul": 1, "pack": 2, "empty": 1}
    assert_close(
        run(*arguments), jit_oracle(lambda *a: strategies.Reference()(cell, *a)[0])(*arguments)
    )


def test_input_weights_of_another_dtype_multiply_apart(program):
    cell, weights, *others = program
    weights = weights._replace(ih=weights.ih.astype("float32"))
    run = jax.jit(lambda *a: strategies.Scan()(cell._replace(additive=True), *a)[0])
    compiled = run.lower(weights, *others).compile()
    assert calls(compiled.as_text()) == {"matmul": 1, "pack": 1}
    wanted = jit_oracle(lambda *a: strategies.Reference()(cell, *a)[0])(weights, *others)
    assert_close(compiled(weights, *others), wanted)


def test_inference_packs_the_weights_of_one_direction(program):
    cell, *arguments = program
    run = jax.jit(lambda *a: strategies.Scan()(cell, *a)[0])
    compiled = run.lower(*arguments).compile().as_text()
    assert calls(compiled) == {"matmul": 2, "pack": 2}


def test_tiny_products_and_single_rows_multiply_by_xla(program, monkeypatch):
    cell, weights, x, (h,) = program

    def products_of(x, h):
        jax.clear_caches()  # a strategy's call is compiled once for its shapes
        run = jax.jit(lambda *a: strategies.Scan()(cell, *a)[0])
        return calls(run.lower(weights, x, (h,)).compile().as_text())["matmul"]

    assert products_of(x, h) == 2
    assert products_of(x[:, :1], h[:1]) == 1  # the inputs of all steps are more rows
    assert products_of(x[:1], h) == 0
    monkeypatch.setattr(products, "LEAST", 2 * weights.hh.size + 1)
    assert products_of(x, h) == 1


def test_an_exported_program_has_no_kernel(program):
    cell, *arguments = program
    run = jax.jit(lambda *a: strategies.Scan()(cell, *a)[0])
    exported = jax.export.export(run)(*arguments)
    assert not calls(exported.mlir_module())
    assert_close(exported.call(*arguments), run(*arguments))


def test_the_same_numbers_without_the_kernel(program, monkeypatch):
    cell, *arguments = program

    def gradient():
        jax.clear_caches()
        return jax.jit(jax.grad(lambda *a: loss(strategies.Scan(), cell, *a), (0, 1, 2)))

    with_kernel = gradient()(*arguments)
    monkeypatch.setattr("jaxrnn.native.load", lambda: ())
    compiled = gradient().lower(*arguments).compile()
    assert not calls(compiled.as_text())
    assert_close(compiled(*arguments), with_kernel)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_multiply_by_xla(program, dtype):
    cell, weights, x, carry = program
    weights = jax.tree.map(lambda w: w.astype(dtype), weights)
    carry = jax.tree.map(lambda c: c.astype("float32"), carry)
    run = jax.jit(lambda *a: strategies.Scan()(cell, *a)[0])
    assert not calls(run.lower(weights, x.astype("float32"), carry).compile().as_text())


def arguments(cell, *, projected=False, dropped=False):
    rng = np.random.default_rng(1)
    steps, batch, inputs, hidden, outputs = 5, 3, 3, 4, 2 if projected else 4

    def draw(*shape):
        return jnp.asarray(0.5 * rng.standard_normal(shape))

    gates = cell.gates * hidden
    weights = cells.Weights(
        draw(gates, inputs),
        draw(gates, outputs),
        draw(gates),
        draw(gates),
        draw(outputs, hidden) if projected else None,
    )
    if cell.init is not None:
        weights = weights._replace(cell=cell.init(jax.random.key(0), hidden, "float64"))
    if dropped:
        weights = weights._replace(mask=draw(batch, outputs))
    carry = (draw(batch, outputs), *(draw(batch, hidden) for _ in range(cell.states - 1)))
    return weights, draw(steps, batch, inputs), carry


LENGTHS = np.arange(5)[:, None] < np.array([[5, 0, 3]])
RESETS = (
    np.where(LENGTHS, np.uint8(1), np.uint8(0)) + (np.arange(15).reshape(5, 3) % 4 == 2) * LENGTHS
)
CASES = {
    "peephole_lstm": (cells.peephole_lstm, {}, None, False),
    "gru with lengths": (cells.gru, {}, LENGTHS, False),
    "lstm with a projection, reversed": (cells.lstm, {"projected": True}, LENGTHS, True),
    "lstm with resets": (cells.lstm, {}, RESETS.astype(np.uint8), False),
    "gru with recurrent dropout": (cells.gru, {"dropped": True}, None, True),
    "lstm with recurrent dropout": (cells.lstm, {"dropped": True}, None, False),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_reference(name, monkeypatch):
    every_product(monkeypatch)
    cell, options, mask, reverse = CASES[name]
    args = arguments(cell, **options)
    along = jax.tree.map(lambda a: 0.1 + 0 * a, args)
    mask = None if mask is None else jnp.asarray(mask)

    def results(strategy):
        def run(weights, x, carry):
            ys, last = strategy(cell, weights, x, carry, mask, reverse=reverse)
            return ys, last

        def loss(*args):
            ys, last = run(*args)
            return (ys**2).sum() + sum(jnp.cos(a).sum() for a in last)

        gradient = jax.grad(loss, (0, 1, 2))
        weights, x, carry = args
        return (
            run(*args),
            jax.jvp(run, args, along)[1],
            gradient(*args),
            jax.jvp(gradient, args, along)[1],
            jax.vmap(lambda x: run(weights, x, carry))(jnp.stack([x, -x])),
            jax.vmap(lambda x: gradient(weights, x, carry))(jnp.stack([x, -x])),
        )

    got = jax.jit(lambda: results(strategies.Scan()))
    kernels = {"pack", "matmul", "outer"} | ({"empty"} if cell.additive else set())
    assert calls(got.lower().compile().as_text()).keys() == kernels
    assert_close(got(), jit_oracle(lambda: results(strategies.Reference()))(), 1e-12)


@pytest.mark.parametrize(
    ("dtype", "param_dtype"),
    [("float64", "float32"), ("float32", "bfloat16"), ("float32", "float64")],
)
def test_biases_in_another_dtype_than_the_products(dtype, param_dtype, monkeypatch):
    every_product(monkeypatch)
    options = {"dtype": dtype, "param_dtype": param_dtype}
    layer = jaxrnn.LSTM(3, 5, strategy=strategies.Scan(), **options, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    x = draw(4, 2, 3).astype(param_dtype)

    def results(state, strategy):
        module = nnx.merge(graph, state)
        module.strategy = strategy
        return module(x)[0].astype("float64")

    def both(strategy):
        run = jax.jit(jax.vjp, static_argnums=0)(lambda s: results(s, strategy), state)
        return run[0], run[1](jnp.ones_like(run[0]))[0]

    (got, dgot), (wanted, dwanted) = both(strategies.Scan()), both(strategies.Reference())
    low = 2e-2 if param_dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    for g, w in zip(jax.tree.leaves(dgot), jax.tree.leaves(dwanted), strict=True):
        assert g.dtype == w.dtype == param_dtype
        np.testing.assert_allclose(g.astype("float64"), w.astype("float64"), rtol=low, atol=low)


def test_the_packed_weights_hold_no_uninitialised_memory():
    w = draw(3, 4)
    packed = products.pack(products.Packing(transposed=False), w)
    assert np.count_nonzero(packed) == w.size
    assert packed.size == 3 * 64


def test_a_symbolic_number_of_units_is_exported():
    (h,) = jax.export.symbolic_shape("h")
    shapes = (h, 4), (h, h), (5, 3, 4), (3, h)
    like = [jax.ShapeDtypeStruct(s, "float64") for s in shapes]

    def run(ih, hh, x, carry):
        return strategies.Scan()(cells.rnn_tanh, cells.Weights(ih, hh), x, (carry,))[0]

    exported = jax.export.export(jax.jit(run))(*like)
    arrays = [draw(*(6 if n == h else n for n in s)) for s in shapes]
    assert_close(exported.call(*arrays), run(*arrays))
