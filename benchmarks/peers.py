"""Benchmark peers: PyTorch, Flax, Keras on JAX, and the strategies of jaxrnn.

A peer is made for a case and then called without arguments. A call is one inference, or one
training step (forward, loss, and the gradients of all weights and of the inputs). All operands are
in the framework's arrays beforehand, and the call returns when the results are ready. Every JAX
peer is a pure function under `jax.jit` with a flat list of weights (`nnx.split` and `nnx.merge`,
Keras' `stateless_call`), so that no timing includes the traversal of modules in Python.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import cases
import jaxrnn
from cases import Arrays, Case
from jaxrnn import strategies
from points import Point

# Our strategies by peer name: a class of `jaxrnn.strategies` and its options. Strategies that this
# version lacks, or that cannot run here, are left out of the results.
STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "scan": ("Scan", {}),
    "native": ("Native", {}),
    "reference": ("Reference", {}),
    "checkpoint": ("Checkpoint", {"steps": 316}),
}


class Absent(Exception):
    """The peer is unavailable, for the given reason."""


class Peer(Protocol):
    def __call__(self) -> Any: ...

    def result(self, raw: Any) -> dict[str, np.ndarray]:
        """Results of a call: `output`, or the gradients by PyTorch's names and `input`."""
        ...


class Torch:
    """`torch.nn` with all threads; ragged batches are packed and padded again."""

    def __init__(self, case: Case):
        import torch

        self.torch = torch
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        point = case.point
        self.module = getattr(torch.nn, point.cell.upper())(
            point.inputs,
            point.hidden,
            num_layers=point.layers,
            bidirectional=point.directions == 2,
        )
        self.module.load_state_dict({k: torch.from_numpy(v) for k, v in case.weights.items()})
        self.training = point.mode == "training"
        self.x = torch.from_numpy(case.x).requires_grad_(self.training)
        self.lengths = None if case.lengths is None else torch.from_numpy(case.lengths).long()
        self.cotangent = torch.from_numpy(case.cotangent)

    def _output(self) -> Any:
        if self.lengths is None:
            return self.module(self.x)[0]
        utilities = self.torch.nn.utils.rnn
        packed = utilities.pack_padded_sequence(self.x, self.lengths, enforce_sorted=False)
        output = self.module(packed)[0]
        return utilities.pad_packed_sequence(output, total_length=len(self.x))[0]

    def __call__(self) -> Any:
        if not self.training:
            with self.torch.inference_mode():
                return self._output()
        loss = (self._output() * self.cotangent).sum()
        return loss, self.torch.autograd.grad(loss, [*self.module.parameters(), self.x])

    def result(self, raw: Any) -> dict[str, np.ndarray]:
        if not self.training:
            return {"output": raw.numpy()}
        names = [*dict(self.module.named_parameters()), "input"]
        return {name: value.numpy() for name, value in zip(names, raw[1], strict=True)}


class Jax:
    """Common part of all JAX peers. `apply(weights, x, lengths)` returns the outputs."""

    def __init__(
        self,
        case: Case,
        apply: Callable[[list[jax.Array], jax.Array, jax.Array | None], jax.Array],
        weights: list[jax.Array],
        names: Callable[[list[jax.Array]], Arrays],
        time_major: bool = True,
    ):
        def loss(weights, x, lengths, cotangent):
            return (apply(weights, x, lengths) * cotangent).sum()

        def layout(array: np.ndarray) -> jax.Array:
            return jnp.asarray(array if time_major else array.swapaxes(0, 1).copy())

        self.training = case.point.mode == "training"
        self.names, self.time_major = names, time_major
        lengths = None if case.lengths is None else jnp.asarray(case.lengths)
        self.arguments: tuple[Any, ...] = (weights, layout(case.x), lengths)
        if self.training:
            self.function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
            self.arguments += (layout(case.cotangent),)
        else:
            self.function = jax.jit(apply)

    def __call__(self) -> Any:
        return jax.block_until_ready(self.function(*self.arguments))

    def compile(self) -> jax.stages.Compiled:
        return self.function.lower(*self.arguments).compile()

    def result(self, raw: Any) -> dict[str, np.ndarray]:
        if not self.training:
            return {"output": self._time_first(raw)}
        weights, x = raw[1]
        return {**self.names(weights), "input": self._time_first(x)}

    def _time_first(self, array: jax.Array) -> np.ndarray:
        return np.asarray(array if self.time_major else array.swapaxes(0, 1))


def ours(case: Case, strategy: strategies.Strategy | None) -> Jax:
    """A module of jaxrnn."""
    point = case.point
    module = getattr(jaxrnn, point.cell.upper())(
        point.inputs,
        point.hidden,
        num_layers=point.layers,
        bidirectional=point.directions == 2,
        strategy=strategy,
        rngs=nnx.Rngs(0),
    )
    jaxrnn.load_state_dict(module, case.weights)
    graph, state = nnx.split(module)
    weights, restore = _flat(state)

    def apply(weights, x, lengths):
        return nnx.merge(graph, restore(weights))(x, lengths=lengths)[0]

    return Jax(case, apply, weights, lambda g: jaxrnn.state_dict(restore(g), like=module))


def named(name: str, case: Case) -> Jax:
    """One of `STRATEGIES`."""
    kind, options = STRATEGIES[name]
    try:
        return ours(case, getattr(strategies, kind)(**options))
    except (AttributeError, TypeError, RuntimeError, ImportError, OSError) as error:
        raise Absent(f"{kind} is unavailable: {error}") from None


def flax(case: Case) -> Jax:
    """`nnx.RNN` over Flax's own cells, with the faster of its two LSTM cells."""
    point = case.point
    kinds = {"rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}
    biased = "dense_h" if point.cell == "lstm" else "dense_i"
    rnns = []
    for layer, ends in enumerate(cases.suffixes(point)):
        inputs = point.directions * point.hidden if layer else point.inputs
        for reverse, end in enumerate(ends):
            cell = kinds[point.cell](inputs, point.hidden, rngs=nnx.Rngs(0))
            cell.dense_i.kernel[...] = jnp.asarray(case.weights["weight_ih" + end].T)
            cell.dense_h.kernel[...] = jnp.asarray(case.weights["weight_hh" + end].T)
            bias = case.weights["bias_ih" + end] + case.weights["bias_hh" + end]
            getattr(cell, biased).bias[...] = jnp.asarray(bias)
            rnns.append(nnx.RNN(cell, time_major=True, reverse=bool(reverse), keep_order=True))
    model: Any = nnx.List(rnns)
    graph, state, *rest = nnx.split(model, nnx.Param, ...)
    weights, restore = _flat(state)

    def apply(weights, x, lengths):
        h = jnp.zeros((point.batch, point.hidden))
        carry = (h, h) if point.cell == "lstm" else h
        return _stacked(
            point,
            nnx.merge(graph, restore(weights), *rest),
            lambda rnn, x: rnn(x, initial_carry=carry, seq_lengths=lengths),
            x,
        )

    def names(gradients: list[jax.Array]) -> dict[str, np.ndarray]:
        out = {}
        ends = [end for ends in cases.suffixes(point) for end in ends]
        for end, rnn in zip(ends, nnx.merge(graph, restore(gradients), *rest), strict=True):
            out["weight_ih" + end] = np.asarray(rnn.cell.dense_i.kernel[...]).T
            out["weight_hh" + end] = np.asarray(rnn.cell.dense_h.kernel[...]).T
            out["bias_ih" + end] = np.asarray(getattr(rnn.cell, biased).bias[...])
        return out

    return Jax(case, apply, weights, names)


def keras(case: Case) -> Jax:
    """Keras 3 on the JAX backend: batch first, and a mask of the lengths for ragged batches."""
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import keras
    except ImportError as error:
        raise Absent(str(error)) from None
    if keras.backend.backend() != "jax":
        raise Absent(f"Keras runs on {keras.backend.backend()} here.")

    point, hidden = case.point, case.point.hidden
    kind = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
    layers, weights = [], []
    for layer, ends in enumerate(cases.suffixes(point)):
        inputs = point.directions * hidden if layer else point.inputs
        for reverse, end in enumerate(ends):
            new = kind[point.cell](hidden, return_sequences=True, go_backwards=bool(reverse))
            new.build((point.batch, point.steps, inputs))
            layers.append(new)
            ih, hh, b_ih, b_hh = [
                _swap_gates(point, case.weights[name + end])
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            bias = np.stack([b_ih, b_hh]) if point.cell == "gru" else b_ih + b_hh
            weights += [jnp.asarray(value) for value in (ih.T, hh.T, bias)]
    other = [[v.value for v in layer.non_trainable_variables] for layer in layers]

    def apply(weights, x, lengths):
        mask = None if lengths is None else jnp.arange(point.steps) < lengths[:, None]

        def run(i: int, x: jax.Array) -> jax.Array:
            of_layer = weights[3 * i : 3 * i + 3]
            y, _ = layers[i].stateless_call(of_layer, other[i], x, mask=mask)
            return y[:, ::-1] if layers[i].go_backwards else y

        return _stacked(point, range(len(layers)), run, x)

    def names(gradients: list[jax.Array]) -> dict[str, np.ndarray]:
        out = {}
        for i, end in enumerate(end for ends in cases.suffixes(point) for end in ends):
            ih, hh, bias = (np.asarray(g) for g in gradients[3 * i : 3 * i + 3])
            out["weight_ih" + end] = _swap_gates(point, ih.T)
            out["weight_hh" + end] = _swap_gates(point, hh.T)
            for name, b in zip(("bias_ih", "bias_hh"), np.atleast_2d(bias), strict=False):
                out[name + end] = _swap_gates(point, b)
        return out

    return Jax(case, apply, weights, names, time_major=False)


def _flat(state: Any) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], Any]]:
    """The arrays of a state, and a function that restores the state from such a list."""
    arrays, tree = jax.tree.flatten(state)
    return arrays, lambda leaves: jax.tree.unflatten(tree, leaves)


def _stacked(point: Point, parts: Sequence[Any], run: Callable, x: jax.Array) -> jax.Array:
    """Stacks layers of one or two directions, for frameworks that lack such layers."""
    for layer in range(point.layers):
        directions = parts[layer * point.directions : (layer + 1) * point.directions]
        outputs = [run(part, x) for part in directions]
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
    return x


def _swap_gates(point: Point, array: np.ndarray) -> np.ndarray:
    """Reorders PyTorch's gates r, z, n to Keras' z, r, n or back; the LSTM's order is the same."""
    if point.cell != "gru":
        return array
    r, z, n = np.split(array, 3)
    return np.concatenate([z, r, n])


NAMES = ("torch", "default", *STRATEGIES, "flax", "keras")


def make(name: str, case: Case) -> Peer:
    """The peer with this name. Raises Absent if it is unavailable."""
    if name == "torch":
        return Torch(case)
    if name == "default":
        return ours(case, None)
    if name == "flax":
        return flax(case)
    if name == "keras":
        return keras(case)
    return named(name, case)
