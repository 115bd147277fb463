"""The notebook's tasks: PyTorch's with the notebook's random numbers, NumPy's with their own."""

import hashlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import torch_ref.data
import torch_ref.models
import torch_ref.training
from jaxrnn import data, interchange, models, training


def digest(*tensors):
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()[:16]


def test_pytorch_token_sequences_match_the_notebook():
    sequences, labels = torch_ref.data.create_synthetic_sequences(50, n_samples=1000)
    assert torch.bincount(labels).tolist() == [489, 511]
    assert sequences[0].tolist() == [17, 12, 13, 47, 18, 20, 20, 8, 22, 22, 6]
    assert digest(*sequences, labels) == "4a6ce781eeaa820f"
    assert digest(torch.rand(3)) == "40712c2c590c8083"  # initial weights are drawn next


def test_pytorch_split_and_padding_match_the_notebook():
    sequences, labels = torch_ref.data.create_synthetic_sequences(50, n_samples=1000)
    train, validation = torch_ref.data.split_in_order(sequences, labels)
    inputs, labels = torch_ref.data.collate_batch(*train)
    assert inputs.shape == (800, 20)
    assert labels.shape == (800,)
    inputs, labels = torch_ref.data.collate_batch(*validation)
    assert inputs.shape == (200, 20)
    assert (inputs[0, len(sequences[800]) :] == 0).all()


def test_pytorch_memory_task_uses_the_global_generator():
    torch.manual_seed(7)
    expected = torch.randn(4, 6, 1)
    torch.manual_seed(7)
    x, labels = torch_ref.data.create_memory_task(seq_len=6, batch_size=4)
    assert torch.equal(x, expected)
    assert labels.dtype == torch.int64
    assert labels.tolist() == (expected[:, 0, 0] > 0).tolist()


def test_labels_are_the_sum_modulo_2_in_both():
    for module in (data, torch_ref.data):
        sequences, labels = module.create_synthetic_sequences(9, 300, min_len=1, max_len=4)
        assert [int(label) for label in labels] == [int(s.sum()) % 2 for s in sequences]
        assert {len(s) for s in sequences} == {1, 2, 3, 4}
        assert {int(token) for s in sequences for token in s} == set(range(1, 9))


def test_the_five_sequences_are_the_same_in_both():
    sequences, lengths = data.create_variable_length_batch()
    its_sequences, its_lengths = torch_ref.data.create_variable_length_batch()
    assert lengths == its_lengths == [8, 4, 6, 2, 5]
    for mine, its in zip(sequences, its_sequences, strict=True):
        np.testing.assert_array_equal(mine, its)
    assert sequences[4].tolist() == [40, 41, 42, 43, 44]
    inputs, found = data.pad(sequences)
    assert inputs.size == 40
    assert found.sum() == 25


def test_numpy_memory_task_has_both_labels_set_by_the_first_step():
    x, labels = data.create_memory_task(seq_len=9, batch_size=200)
    np.testing.assert_array_equal(labels, x[:, 0, 0] > 0)
    agree = ((x[:, 1:, 0] > 0) == labels[:, None].astype(bool)).mean(axis=0)
    assert (np.abs(agree - 0.5) < 0.15).all()
    assert abs(x.std() - 1) < 0.05


@pytest.mark.parametrize(
    "draw", [data.create_synthetic_sequences, data.create_memory_task], ids=["sequences", "memory"]
)
def test_equal_seeds_give_equal_data_and_others_do_not(draw):
    def drawn(seed):
        first, second = draw(seed=seed)
        return np.concatenate([*(np.ravel(a) for a in first), second]).tobytes()

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn((1, 0)) == drawn((1, 0))


def test_pytorch_tensors_are_accepted():
    sequences, labels = torch_ref.data.create_synthetic_sequences(50, n_samples=20)
    padded, _ = torch_ref.data.collate_batch(sequences, labels)
    inputs, lengths = data.pad(sequences)
    np.testing.assert_array_equal(inputs, padded)
    assert lengths.tolist() == [len(s) for s in sequences]
    (batch,) = data.batches(sequences, labels, 20)
    np.testing.assert_array_equal(batch.inputs, padded)
    np.testing.assert_array_equal(batch.labels, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.create_synthetic_sequences(1), "needs vocab_size >= 2, .* got 1, 1000, 5"),
        (lambda: data.create_synthetic_sequences(min_len=6, max_len=5), "got 100, 1000, 6 and 5"),
        (lambda: data.create_memory_task(0), "needs seq_len >= 1 .* got 0 and 32"),
    ],
)
def test_invalid_arguments_raise_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.fixture
def batches():
    """The first 60 of the notebook's sequences for training, and the next 20."""
    sequences, labels = torch_ref.data.create_synthetic_sequences(50, n_samples=80)
    return [
        (*torch_ref.data.collate_batch(*part), None)
        for part in torch_ref.data.split_in_order(sequences, labels, 0.75)
    ]


def test_the_notebooks_training_matches_in_jax(batches):
    theirs = torch_ref.models.SequenceClassifier(50, 6, 8, 2).double()
    ours = models.SequenceClassifier(50, 6, 8, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    interchange.load_state_dict(ours, theirs.state_dict())
    theirs.dropout.p = ours.dropout.rate = 0.0  # the frameworks draw different masks
    lines = []
    history = torch_ref.training.train_model(
        theirs, *batches, epochs=6, max_norm=0.05, tell=lines.append
    )
    assert [line[:8] for line in lines] == ["Epoch  0", "Epoch  5"]
    assert f"Train Loss: {history.train_losses[5]:.4f}" in lines[1]
    assert f"Val Acc: {history.val_accs[5]:.4f}" in lines[1]

    tx = optax.chain(training.clip_grad_norm(0.05), optax.adam(1e-3))
    optimizer = nnx.Optimizer(ours, tx, wrt=nnx.Param)
    train, validation = (data.Batch(np.asarray(x), np.asarray(y)) for x, y, _ in batches)
    for epoch in range(6):
        metrics = {"accuracy": training.accuracy}
        seen = training.train_step(ours, optimizer, train, metrics=metrics)
        held = training.evaluate(ours, [validation], metrics=metrics)
        scores = [float(part[name]) for name in ("loss", "accuracy") for part in (seen, held)]
        np.testing.assert_allclose(scores, [h[epoch] for h in history], rtol=0, atol=1e-9)


def test_the_notebooks_training_uses_dropout_in_training_only(batches):
    def train(p):
        torch.manual_seed(0)
        model = torch_ref.models.SequenceClassifier(50, 6, 8, 2)
        model.dropout.p = p
        return torch_ref.training.train_model(model, *batches, epochs=1, learning_rate=0.0)

    with_dropout, without = train(0.3), train(0.0)
    assert with_dropout.train_losses != without.train_losses
    assert with_dropout.val_losses == without.val_losses
