"""PyTorch counterparts of `jaxrnn.cells`, each as a function of one step, and a layer for any cell.

A step takes the cell's own parameters by name, the states (h first), and the two projections gx =
W_ih x + b_ih and gh = W_hh h + b_hh.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, logsigmoid

States = tuple[Tensor, ...]
Parameters = dict[str, Tensor]


class Cell(NamedTuple):
    """A step, its numbers of gates and states, and the shapes of its own parameters for H units."""

    step: Callable[[Parameters, States, Tensor, Tensor], States]
    gates: int
    states: int = 1
    own: Callable[[int], dict[str, tuple[int, ...]]] = lambda hidden: {}
    recurrent: bool = True


def rnn_tanh(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    return (torch.tanh(gx + gh),)


def rnn_relu(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    return (torch.relu(gx + gh),)


def lstm(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    i, f, g, o = (gx + gh).chunk(4, -1)
    c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    xr, xz, xn = gx.chunk(3, -1)
    hr, hz, hn = gh.chunk(3, -1)
    z = (xz + hz).sigmoid()
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return ((1 - z) * n + z * states[0],)


def peephole_lstm(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    i, f, g, o = (gx + gh).chunk(4, -1)
    c = states[1]
    i, f = (i + own["peephole_i"] * c).sigmoid(), (f + own["peephole_f"] * c).sigmoid()
    c = f * c + i * g.tanh()
    return (o + own["peephole_o"] * c).sigmoid() * c.tanh(), c


def coupled_lstm(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    f, g, o = (gx + gh).chunk(3, -1)
    c = f.sigmoid() * states[1] + (1 - f.sigmoid()) * g.tanh()
    return o.sigmoid() * c.tanh(), c


def janet(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    f, g = (gx + gh).chunk(2, -1)
    return (f.sigmoid() * states[0] + (1 - (f - 1).sigmoid()) * g.tanh(),)


def mgu(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    xf, xn = gx.chunk(2, -1)
    hf, hn = gh.chunk(2, -1)
    f = (xf + hf).sigmoid()
    return ((1 - f) * states[0] + f * (xn + f * hn).tanh(),)


def light_gru(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    z, n = (gx + gh).chunk(2, -1)
    return (z.sigmoid() * states[0] + (1 - z.sigmoid()) * n.relu(),)


def reset_before_gru(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    h, (wr, wz, wn), (xr, xz, xn) = states[0], own["weight_hh"].chunk(3), gx.chunk(3, -1)
    r, z = (xr + h @ wr.T).sigmoid(), (xz + h @ wz.T).sigmoid()
    return ((1 - z) * (xn + (r * h) @ wn.T).tanh() + z * h,)


def layer_norm_lstm(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    gates = layer_norm(gx + gh, gx.shape[-1:], own["norm_gates_weight"], own["norm_gates_bias"])
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
    c = layer_norm(c, c.shape[-1:], own["norm_cell_weight"], own["norm_cell_bias"])
    return o.sigmoid() * c.tanh(), c


def layer_norm_gru(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    gx = layer_norm(gx, gx.shape[-1:], own["norm_ih_weight"], own["norm_ih_bias"])
    gh = layer_norm(gh, gh.shape[-1:], own["norm_hh_weight"], own["norm_hh_bias"])
    return gru(own, states, gx, gh)


def ind_rnn(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    return (torch.relu(gx + own["recurrent_weight"] * states[0]),)


def min_gru(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    z, n = gx.chunk(2, -1)
    return ((1 - z.sigmoid()) * states[0] + z.sigmoid() * n,)


def min_lstm(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    f, i, n = gx.chunk(3, -1)
    f, i = f.sigmoid(), i.sigmoid()
    return (f / (f + i) * states[0] + i / (f + i) * n,)


def slstm(own: Parameters, states: States, gx: Tensor, gh: Tensor) -> States:
    """Equations (8) to (17) of the xLSTM paper, with one head."""
    _, c, n, m = states
    i, f, z, o = (gx + gh).chunk(4, -1)
    new = torch.where(n == 0, i, torch.maximum(logsigmoid(f) + m, i))
    i = torch.exp(i - new)
    f = torch.where(n == 0, torch.zeros_like(f), torch.exp(logsigmoid(f) + m - new))
    c, n = f * c + i * z.tanh(), f * n + i
    return o.sigmoid() * c / n, c, n, new


def _norms(**sizes: int) -> Callable[[int], dict[str, tuple[int, ...]]]:
    return lambda hidden: {
        f"{name}_{part}": (size * hidden,)
        for name, size in sizes.items()
        for part in ("weight", "bias")
    }


CELLS = {
    "rnn_tanh": Cell(rnn_tanh, 1),
    "rnn_relu": Cell(rnn_relu, 1),
    "lstm": Cell(lstm, 4, 2),
    "gru": Cell(gru, 3),
    "peephole_lstm": Cell(
        peephole_lstm, 4, 2, lambda hidden: {f"peephole_{gate}": (hidden,) for gate in "ifo"}
    ),
    "coupled_lstm": Cell(coupled_lstm, 3, 2),
    "janet": Cell(janet, 2),
    "mgu": Cell(mgu, 2),
    "light_gru": Cell(light_gru, 2),
    "reset_before_gru": Cell(
        reset_before_gru, 3, 1, lambda hidden: {"weight_hh": (3 * hidden, hidden)}, False
    ),
    "layer_norm_lstm": Cell(layer_norm_lstm, 4, 2, _norms(norm_gates=4, norm_cell=1)),
    "layer_norm_gru": Cell(layer_norm_gru, 3, 1, _norms(norm_ih=3, norm_hh=3)),
    "ind_rnn": Cell(ind_rnn, 1, 1, lambda hidden: {"recurrent_weight": (hidden,)}, False),
    "min_gru": Cell(min_gru, 2, recurrent=False),
    "min_lstm": Cell(min_lstm, 3, recurrent=False),
    "slstm": Cell(slstm, 4, 4),
}
"""Cells by their names in `jaxrnn.cells`."""


class Noise(NamedTuple):
    """Boolean masks: elements that dropout keeps, and states that keep their value in zoneout.

    between (L-1, T or 1, B, D*H), input (T or 1, B, I), recurrent (L*D, B, H), weight
    (L*D, G*H, H), and zoneout (L*D, T, B, H) for each state; None for no noise.
    """

    between: Tensor | None = None
    input: Tensor | None = None
    recurrent: Tensor | None = None
    weight: Tensor | None = None
    zoneout: tuple[Tensor | None, ...] | None = None
    rates: dict[str, float] | None = None

    def drop(self, kind: str, x: Tensor, *index: int) -> Tensor:
        mask = getattr(self, kind)
        return x if mask is None else x * mask[index] / (1 - (self.rates or {}).get(kind, 0))

    def keep(self, new: States, old: States, k: int, t: int, b: int) -> States:
        masks = self.zoneout or (None,) * len(new)
        return tuple(
            n if m is None else torch.where(m[k, t, b], o, n)
            for m, n, o in zip(masks, new, old, strict=True)
        )


class Recurrent(nn.Module):
    """A cell as a layer: a loop over layers, directions, rows and steps, plain and slow."""

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bidirectional: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        self.cell, self.hidden_size, self.num_layers = cell, hidden_size, num_layers
        self.ends = ["", "_reverse"] if bidirectional else [""]
        self.noise = Noise()
        rows = cell.gates * hidden_size
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else hidden_size * len(self.ends)
            shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, inputs)}
            if cell.recurrent:
                shapes["weight_hh"] = (rows, hidden_size)
            if bias:
                shapes["bias_ih"] = (rows,)
                if cell.recurrent:
                    shapes["bias_hh"] = (rows,)
            for end in self.ends:
                for name, shape in (shapes | cell.own(hidden_size)).items():
                    parameter = nn.Parameter(torch.empty(shape).uniform_(-0.5, 0.5))
                    self.register_parameter(f"{name}_l{layer}{end}", parameter)

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, states: States | None = None
    ) -> tuple[Tensor, States]:
        """Outputs (T, B, D*H), 0 past each length, and the last states (L*D, B, H)."""
        steps, batch, _ = x.shape
        counts = [steps] * batch if lengths is None else lengths.tolist()
        last: list[States] = []
        x = self.noise.drop("input", x)
        for layer in range(self.num_layers):
            sides = []
            if layer > 0:
                x = self.noise.drop("between", x, layer - 1)
            for end in self.ends:
                suffix, k = f"_l{layer}{end}", len(last)
                given = None if states is None else tuple(s[k] for s in states)
                runs = [
                    self.run(suffix, x[:n, b], given and tuple(s[b] for s in given), k, b)
                    for b, n in enumerate(counts)
                ]
                pad = [torch.cat([y, y.new_zeros(steps - len(y), y.shape[1])]) for y, _ in runs]
                sides.append(torch.stack(pad, 1))
                last.append(tuple(map(torch.stack, zip(*(s for _, s in runs), strict=True))))
            x = torch.cat(sides, -1)
        return x, tuple(map(torch.stack, zip(*last, strict=True)))

    def run(
        self, suffix: str, x: Tensor, states: States | None, k: int, b: int
    ) -> tuple[Tensor, States]:
        """Run row b (T, I) through the layer and direction with index k."""
        held = {n.removesuffix(suffix): p for n, p in self.named_parameters() if n.endswith(suffix)}
        if states is None:
            states = (x.new_zeros(self.hidden_size),) * self.cell.states
        zero = x.new_zeros(self.cell.gates * self.hidden_size)
        outputs = [x.new_zeros(self.hidden_size)] * len(x)
        times = range(len(x))
        for t in reversed(times) if suffix.endswith("_reverse") else times:
            gx = held["weight_ih"] @ x[t] + held.get("bias_ih", zero)
            gh = held.get("bias_hh", zero)
            if self.cell.recurrent:
                weight = self.noise.drop("weight", held["weight_hh"], k)
                gh = gh + weight @ self.noise.drop("recurrent", states[0], k, b)
            states = self.noise.keep(self.cell.step(held, states, gx, gh), states, k, t, b)
            outputs[t] = states[0]
        return (torch.stack(outputs) if outputs else x.new_zeros(0, self.hidden_size)), states
