"""Complete models, each the PyTorch counterpart of the class with its name in `jaxrnn.models`.

Letters: B batch, T steps, I inputs, H hidden units, O outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class SpeakerClassifier(nn.Module):
    """A bidirectional LSTM, the mean of its outputs over the true steps, and a linear layer."""

    def __init__(self, input_size: int, hidden_size: int, num_classes: int, num_layers: int = 1):
        super().__init__()
        self.lstm = nn.LSTM(
            input_size, hidden_size, num_layers, batch_first=True, bidirectional=True
        )
        self.fc = nn.Linear(2 * hidden_size, num_classes)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits (B, C) from x (B, T, I) and lengths (B,) of at least 1; None for T."""
        if lengths is None:
            output, _ = self.lstm(x)
            return self.fc(output.mean(dim=1))
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = self.lstm(packed)
        output, _ = pad_packed_sequence(output, batch_first=True)
        return self.fc(output.sum(dim=1) / lengths[:, None].to(output.dtype))


class VanillaRNN(nn.Module):
    """A tanh RNN as a loop over three linear layers, with one output for each step."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.W_ih = nn.Linear(input_size, hidden_size)
        self.W_hh = nn.Linear(hidden_size, hidden_size)
        self.W_ho = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs (B, T, O) and the last state (B, H), from x (B, T, I) and an initial state."""
        if hidden is None:
            hidden = x.new_zeros(x.shape[0], self.hidden_size)
        outputs = []
        for x_t in x.unbind(dim=1):
            hidden = torch.tanh(self.W_ih(x_t) + self.W_hh(hidden))
            outputs.append(self.W_ho(hidden))
        return torch.stack(outputs, dim=1), hidden


class SimpleLSTM(nn.Module):
    """An LSTM as a loop, in which each gate is a linear layer on [x_t, h_{t-1}]."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        self.forget_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.input_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.output_gate = nn.Linear(input_size + hidden_size, hidden_size)
        self.output_layer = nn.Linear(hidden_size, output_size)

    def forward(
        self, x: Tensor, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs (B, T, O) and the last (h, c), each (B, H), from x (B, T, I)."""
        if states is None:
            h, c = x.new_zeros(2, x.shape[0], self.hidden_size)
        else:
            h, c = states
        outputs = []
        for x_t in x.unbind(dim=1):
            both = torch.cat([x_t, h], dim=1)
            kept = torch.sigmoid(self.forget_gate(both)) * c
            added = torch.sigmoid(self.input_gate(both)) * torch.tanh(self.candidate_gate(both))
            c = kept + added
            h = torch.sigmoid(self.output_gate(both)) * torch.tanh(c)
            outputs.append(self.output_layer(h))
        return torch.stack(outputs, dim=1), (h, c)


class SequenceClassifier(nn.Module):
    """An embedding of tokens, an LSTM, and dropout and a linear layer on its last state."""

    def __init__(
        self, vocab_size: int, embed_dim: int, hidden_dim: int, output_dim: int, n_layers: int = 1
    ):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.lstm = nn.LSTM(embed_dim, hidden_dim, n_layers, batch_first=True)
        self.fc = nn.Linear(hidden_dim, output_dim)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor, lengths: Tensor | list[int] | None = None) -> Tensor:
        """Logits (B, O) from tokens x (B, T) and lengths (B,), each at least 1.

        Without lengths, the state is taken after step T, which includes the padding.
        """
        sequence = self.embedding(x)
        if lengths is not None:
            sequence = _packed(sequence, lengths)
        _, (hidden, _) = self.lstm(sequence)
        return self.fc(self.dropout(hidden[-1]))


class EfficientLSTM(nn.Module):
    """An LSTM over packed sequences, and a linear layer on the output at the last true step."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, sequences: Tensor, lengths: Tensor | list[int]) -> Tensor:
        """Logits (B, O) from padded sequences (B, T, I) and lengths (B,), each at least 1."""
        packed, _ = self.lstm(_packed(sequences, lengths))
        output, true_lengths = pad_packed_sequence(packed, batch_first=True)
        return self.fc(output[torch.arange(len(output)), true_lengths - 1])


class RNNComparison(nn.Module):
    """An RNN, LSTM or GRU, and a linear layer on its last state."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, rnn_type: str = "LSTM"):
        super().__init__()
        if rnn_type not in ("RNN", "LSTM", "GRU"):
            raise ValueError(f"`RNNComparison` needs rnn_type RNN, LSTM or GRU, got {rnn_type!r}.")
        self.rnn_type = rnn_type
        self.rnn = getattr(nn, rnn_type)(input_size, hidden_size, batch_first=True)
        self.fc = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, O) from x (B, T, I)."""
        _, last = self.rnn(x)
        hidden = last[0] if self.rnn_type == "LSTM" else last
        return self.fc(hidden[-1])


def _packed(sequences: Tensor, lengths: Tensor | list[int]):
    # PyTorch requires the lengths on the CPU, wherever the sequences are.
    lengths = torch.as_tensor(lengths).cpu()
    return pack_padded_sequence(sequences, lengths, batch_first=True, enforce_sorted=False)
