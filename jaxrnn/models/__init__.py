"""Complete models, each with a PyTorch counterpart of the same name in `torch_ref`.

by_hand       recurrences that PyTorch users write as loops: VanillaRNN, SimpleLSTM
classifiers   networks on RNN, LSTM and GRU: SequenceClassifier, EfficientLSTM, RNNComparison,
              SpeakerClassifier
linear        `nnx.Linear` with PyTorch's initial values

The models load PyTorch's weights: `jaxrnn.load_state_dict(model, torch_model.state_dict())`.
"""

from jaxrnn.models.by_hand import SimpleLSTM, VanillaRNN
from jaxrnn.models.classifiers import (
    EfficientLSTM,
    RNNComparison,
    SequenceClassifier,
    SpeakerClassifier,
)

__all__ = [
    "EfficientLSTM",
    "RNNComparison",
    "SequenceClassifier",
    "SimpleLSTM",
    "SpeakerClassifier",
    "VanillaRNN",
]
