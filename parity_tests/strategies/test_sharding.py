"""Batches and weights sharded over four devices, in a separate process."""

import os
import subprocess
import sys

SCRIPT = r"""
import re
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxrnn

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
x, lengths = rng.normal(size=(8, 6, 4)), np.array([6, 0, 3, 1, 6, 2, 5, 4])
auto, explicit = (jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind,) * 2)
                  for kind in (AxisType.Auto, AxisType.Explicit))

def place(mesh, tree, *spec):
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, P(*spec))), tree)

def close(got, wanted):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(g), np.asarray(w), rtol=1e-12, atol=1e-12)

def gathered(compiled):
    shapes = re.findall(r"= f64\[([0-9,]*)\][^ ]* all-gather", compiled.as_text())
    return {tuple(map(int, shape.split(","))) for shape in shapes}

def run_locally(step, arguments, wanted):
    # The kernels run, and no device gathers the batch.
    compiled = jax.jit(step).lower(*arguments).compile()
    close(compiled(*arguments), wanted)
    assert "jaxrnn_forward" in compiled.as_text()
    assert "jaxrnn_adjoint" in compiled.as_text()
    assert not {(8, 6), (6, 8)} & {shape[:2] for shape in gathered(compiled)}

for make, specs, explicit_specs in (
    (partial(jaxrnn.GRU, bidirectional=True), (("model",),), ()),
    (jaxrnn.LSTM, ((),), (("model",),)),
):
    layer = make(4, 8, batch_first=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)

    def outputs(params, x, lengths):
        return nnx.merge(graph, params)(x, lengths=lengths)[0]

    def loss(params, x, lengths):
        return (outputs(params, x, lengths) ** 2).sum()

    step = jax.value_and_grad(loss, (0, 1))
    wanted_y, wanted = outputs(params, x, lengths), step(params, x, lengths)
    rows = place(auto, x, "data"), place(auto, lengths, "data")
    for spec in specs:
        weights = place(auto, params, *spec)
        forward = jax.jit(outputs).lower(weights, *rows).compile()
        y = forward(weights, *rows)
        close(y, wanted_y)
        assert y.sharding.spec == P("data"), y.sharding
        assert "jaxrnn_forward" in forward.as_text()
        backward = jax.jit(step).lower(weights, *rows).compile()
        value, (d_weights, d_x) = found = backward(weights, *rows)
        close(found, wanted)
        assert d_x.sharding.spec == P("data"), d_x.sharding
        for d in jax.tree.leaves(d_weights):
            assert d.sharding.spec == P(*spec), (spec, d.sharding)
        of_weights = {tuple(w.shape) for w in jax.tree.leaves(params)}
        for compiled in (forward, backward):
            assert gathered(compiled) <= of_weights, gathered(compiled)
    with jax.set_mesh(explicit):
        for spec in explicit_specs:
            placed = place(explicit, params, *spec), place(explicit, x, "data", None, "model")
            run_locally(step, (*placed, place(explicit, lengths, "data")), wanted)
            steps_divided = place(explicit, x, "data", "model")
            y = jax.jit(outputs)(placed[0], steps_divided, place(explicit, lengths, "data"))
            close(y, wanted_y)
    if not explicit_specs:  # types that say over which devices a value varies; "model" is not one
        def along(params, x, lengths):  # both modes at once
            return jax.jvp(lambda p: jax.grad(loss)(p, x, lengths), (params,), (params,))[1]

        def local(*arguments):
            value, (d_weights, d_x) = step(*arguments)
            return jax.lax.psum(value, "data"), (d_weights, d_x)

        by_rows, results = (P(), P("data"), P("data")), (P(), (P(), P("data")))
        mapped = jax.shard_map(local, mesh=auto, in_specs=by_rows, out_specs=results)
        run_locally(mapped, (params, x, lengths), wanted)
        partly = jax.shard_map(
            local, mesh=auto, in_specs=by_rows, out_specs=results, axis_names={"data"}
        )
        close(jax.jit(partly)(params, x, lengths), wanted)
        mapped = jax.shard_map(along, mesh=auto, in_specs=by_rows, out_specs=P())
        close(jax.jit(mapped)(params, x, lengths), along(params, x, lengths))

# Outputs that are rounded to bfloat16 stay where their rows are.
low = jaxrnn.GRU(4, 8, batch_first=True, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
graph, params = nnx.split(low)
inputs = x.astype(np.float32)

def rounded(params, x):
    return nnx.merge(graph, params)(x)[0]

def alike(got, wanted):
    np.testing.assert_allclose(np.float32(got), np.float32(wanted), atol=0.01)

wanted = rounded(params, inputs)
compiled = jax.jit(rounded).lower(place(auto, params), place(auto, inputs, "data")).compile()
y = compiled(place(auto, params), place(auto, inputs, "data"))
alike(y, wanted)
assert y.sharding.spec == P("data") and "all-gather" not in compiled.as_text()
with jax.set_mesh(explicit):
    def widened(params, x):
        y = rounded(params, x).astype(jnp.float32)
        assert jax.typeof(y).sharding.spec == P("data", None, None), jax.typeof(y)
        return y

    placed = place(explicit, params), place(explicit, inputs, "data")
    compiled = jax.jit(widened).lower(*placed).compile()
    alike(compiled(*placed), wanted)
    assert "all-gather" not in compiled.as_text()
    jax.jit(jax.grad(lambda p, x: (widened(p, x) ** 2).sum()))(*placed)
partly = jax.shard_map(rounded, mesh=auto, in_specs=(P(), P("data")), out_specs=P("data"),
                       axis_names={"data"})
alike(jax.jit(partly)(params, inputs), wanted)
print("compared")
"""


def test_each_device_runs_its_own_rows():
    devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    flags = {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    got = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**os.environ, **flags}, capture_output=True, text=True
    )
    assert got.returncode == 0, got.stderr[-3000:]
    assert got.stdout == "compared\n"
