"""`jaxrnn.data`: contents and order of batches, for any lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrnn import data

pytestmark = pytest.mark.core

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=30)
SEEDS = st.none() | st.integers(0, 99)


@st.composite
def bucketed(draw):
    """Lengths, and buckets that hold them."""
    lengths = draw(LENGTHS)
    edges = draw(st.sets(st.integers(0, 11), max_size=4))
    return np.array(lengths), sorted(edges | {12})


def sequences(lengths):
    """Sequence n holds the values n + 1, so that each value identifies its sequence."""
    return [np.full((length, 2), n + 1.0, np.float32) for n, length in enumerate(lengths)]


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 3))
def test_padding_keeps_every_step_and_fills_the_rest(lengths, spare):
    items = sequences(lengths)
    inputs, found = data.pad(items, max(lengths) + spare, value=np.nan)
    assert inputs.shape == (len(items), max(lengths) + spare, 2)
    assert inputs.dtype == np.float32
    assert found.dtype == np.int32
    assert found.tolist() == lengths
    for row, item in zip(inputs, items, strict=True):
        np.testing.assert_array_equal(row[: len(item)], item)
        assert np.isnan(row[len(item) :]).all()


@settings(deadline=None)
@given(bucketed(), st.integers(1, 9), SEEDS)
def test_each_item_is_in_one_batch_of_the_smallest_bucket(case, size, seed):
    lengths, buckets = case
    plan = data.plan(lengths, size, seed=seed, buckets=buckets)
    items = np.concatenate([items for items, _ in plan])
    assert sorted(items) == list(range(len(lengths)))
    for items, steps in plan:
        assert 1 <= len(items) <= size
        smaller = [edge for edge in buckets if edge < steps]
        assert (lengths[items] <= steps).all()
        assert (lengths[items] > max(smaller, default=-1)).all()
    shapes = {(len(items), steps) for items, steps in plan}
    assert len(shapes) <= 2 * len(buckets)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 9), SEEDS)
def test_batches_hold_the_items_of_the_plan(lengths, size, seed):
    labels = np.arange(len(lengths))
    plan = data.plan(np.array(lengths), size, seed=seed)
    batches = data.batches(sequences(lengths), labels, size, seed=seed)
    for (items, steps), batch in zip(plan, batches, strict=True):
        assert batch.inputs.shape == (len(items), steps, 2)
        np.testing.assert_array_equal(batch.labels, items)
        np.testing.assert_array_equal(batch.lengths, np.array(lengths)[items])
        for row, item, length in zip(batch.inputs, items, batch.lengths, strict=True):
            assert (row[:length] == item + 1).all()
            assert (row[length:] == 0).all()


def test_equal_seeds_give_equal_orders_and_others_do_not():
    def order(seed):
        plan = data.plan(np.full(50, 3), 8, seed=seed)
        return np.concatenate([items for items, _ in plan]).tolist()

    assert order(None) == list(range(50))
    assert order((7, 0)) == order((7, 0))
    assert len({tuple(order(seed)) for seed in (0, 7, (7, 1), (7, 2))}) == 4


def test_shuffling_mixes_buckets():
    steps = [steps for _, steps in data.plan(np.arange(1, 41), 2, seed=0, buckets=[20, 40])]
    assert steps != sorted(steps)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 9))
def test_bucket_edges_hold_all_items_in_equal_shares(lengths, count):
    edges = data.bucket_edges(lengths, count)
    assert edges == sorted(set(edges))
    assert len(edges) <= count
    assert edges[-1] == max(lengths)
    for n in range(1, count + 1):
        held = min(edge for edge in edges if edge >= np.quantile(lengths, n / count))
        assert sum(length <= held for length in lengths) >= n / count * (len(lengths) - 1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0, 0.99),
    st.integers(0, 99),
)
def test_a_split_takes_the_fraction_of_each_class(labels, fraction, seed):
    labels = np.array(labels)
    train, validation = data.split(labels, fraction, seed=seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    for label in np.unique(labels):
        count = (labels == label).sum()
        assert (labels[validation] == label).sum() == round(fraction * count)


def test_a_split_depends_on_its_seed():
    labels = np.repeat(np.arange(9), 30)
    chosen = [data.split(labels, 0.2, seed=seed)[1].tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.pad([]), "`pad` needs at least one sequence, got none."),
        (lambda: data.pad([[[1.0, 2.0]], [[1.0]]]), r"got shapes \(1, 2\) for number 0 and"),
        (
            lambda: data.pad([np.ones(1), np.ones(())]),
            r"got shapes \(1,\) for number 0 and \(\) for number 1",
        ),
        (lambda: data.pad([[1, 2]], steps=1), r"`pad\(steps=1\)` needs as many .* longest, 2\."),
        (lambda: data.split([0, 1], 1.0, seed=0), "needs 0 <= fraction < 1, got 1.0"),
        (lambda: data.split([[0, 1]], 0.5, seed=0), r"labels of shape \(N,\), got \(1, 2\)"),
        (lambda: data.plan([1, 2], 0), "needs a batch size of 1 or more, got 0"),
        (lambda: data.plan([1.5], 1), "needs integer lengths .* got float64"),
        (lambda: data.plan([3], 1, buckets=[2]), r"hold the longest item, 3 steps, got \[2\]"),
        (lambda: data.plan([3], 1, buckets=[4, 4]), r"needs rising buckets .* got \[4, 4\]"),
        (lambda: data.bucket_edges([], 2), "at least one length and one bucket, got 0 and 2"),
        (lambda: data.bucket_edges([1], 0), "at least one length and one bucket, got 1 and 0"),
        (lambda: data.batches([[1]], [0, 1], 1), r"a label for each of 1 sequences, got \(2,\)"),
    ],
)
def test_invalid_arguments_raise_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_items_make_no_batches():
    assert data.plan([], 4) == data.batches([], [], 4) == []


def test_inputs_are_padded_with_the_given_value():
    (batch,) = data.batches([[1.0], [2.0, 3.0]], [0, 1], 2, value=-7)
    assert batch.inputs.tolist() == [[1, -7], [2, 3]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_stay_floats(dtype):
    labels = np.array([0.7, -0.4, 1.6], dtype)
    (batch,) = data.batches([[1], [2], [3]], labels, 3)
    np.testing.assert_array_equal(batch.labels, labels)
    assert batch.labels.dtype == dtype


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_integers_and_booleans_become_int32(dtype):
    (batch,) = data.batches([[1], [2]], np.array([[0, 1], [1, 0]], dtype), 2)
    assert batch.labels.dtype == np.int32
    assert batch.labels.tolist() == [[0, 1], [1, 0]]


def test_labels_at_each_step_are_padded_like_the_inputs():
    items = [[1, 2], [3], [4, 5, 6]]
    batches = data.batches(items, [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], 2, buckets=[2, 4])
    assert [batch.labels.tolist() for batch in batches] == [[[1, 2], [3, 0]], [[4, 5, 6, 0]]]
    (batch,) = data.batches(items, [[1, 2], [3], [4, 5, 6]], 3)
    assert batch.labels.tolist() == [[1, 2, -1], [3, -1, -1], [4, 5, 6]]
    (batch,) = data.batches(items, [[1, 2], [3], [4, 5, 6]], 3, label_value=9)
    assert batch.labels.tolist() == [[1, 2, 9], [3, 9, 9], [4, 5, 6]]


def test_label_sequences_have_one_length_in_all_batches():
    batches = data.batches([[1, 2], [3], [4]], [[1], [2, 2, 3], []], 2)
    assert [batch.labels.tolist() for batch in batches] == [
        [[1, -1, -1], [2, 2, 3]],
        [[-1, -1, -1]],
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([2**31, 0], "integer labels that fit into int32"),
        (
            [[[1, 2]], [[1]]],
            r"in all axes but the first, got shapes \(1, 2\) for number 0",
        ),
        (["a", "b"], "needs numeric labels"),
    ],
)
def test_invalid_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        data.batches([[1], [2]], labels, 2)


@pytest.mark.parametrize("labels", [{0: 1.5, 1: 2.5}, {1, 2}, 5, "ab"])
def test_labels_without_an_order_are_refused(labels):
    with pytest.raises(ValueError, match="labels in the order of the sequences"):
        data.batches([[1, 2], [3]], labels, 2)


class Disk:
    """Rows that are counted when they are read."""

    def __init__(self, lengths):
        self.rows = sequences(lengths)
        self.read = []

    def __getitem__(self, number):
        self.read.append(number)
        return self.rows[number], number


@settings(deadline=None)
@given(bucketed(), st.integers(1, 5), SEEDS)
def test_batches_that_are_read_equal_those_in_memory(case, size, seed):
    lengths, edges = case
    source = Disk(lengths)
    found = data.read_batches(source, lengths, size, seed=seed, buckets=edges)
    wanted = data.batches(
        sequences(lengths), np.arange(len(lengths)), size, seed=seed, buckets=edges
    )
    assert source.read == []
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert all(map(np.array_equal, ours, theirs))
        assert [a.dtype for a in ours] == [a.dtype for a in theirs]
    assert sorted(source.read) == list(range(len(lengths)))


def test_labels_of_each_step_are_padded_and_slices_are_read():
    source = [(np.ones((n, 2)), np.arange(n)) for n in (1, 3, 2)]
    found = data.read_batches(source, [1, 3, 2], 2, per_step=True)
    assert [batch.labels.tolist() for batch in found[:2]] == [
        [[0, -1, -1], [0, 1, 2]],
        [[0, 1, -1]],
    ]
    assert found[-1].labels.dtype == np.int32


@pytest.mark.parametrize("count", [2, 3])
def test_shards_are_equal_parts_of_the_rows(count):
    lengths = np.arange(1, 12)
    whole = data.read_batches(Disk(lengths), lengths, 6, seed=0)
    parts = [
        data.read_batches(Disk(lengths), lengths, 6, seed=0, shard=(n, count)) for n in range(count)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        joined = np.concatenate([share.labels for share in shares])
        assert len({len(share.labels) for share in shares}) == 1
        assert joined.tolist() == batch.labels[: len(joined)].tolist()
        assert len(joined) > len(batch.labels) - count


def test_reading_refuses_wrong_lengths_and_shards():
    with pytest.raises(ValueError, match=r"says that sequence 1 has 2 steps, and it has 3"):
        data.read_batches([(np.ones(1), 0), (np.ones(3), 0)], [1, 2], 2)[0]
    with pytest.raises(ValueError, match=r"needs 0 <= index < count, got \(2, 2\)"):
        data.read_batches([], [1], 1, shard=(2, 2))
    with pytest.raises(ValueError, match="`read_batches` needs integer labels that fit into int32"):
        data.read_batches([(np.ones(1), 2**31)], [1], 1)[0]


def test_grain_reads_the_batches_ahead():
    grain = pytest.importorskip("grain")
    lengths = np.array([1, 3, 2, 5])
    found = data.read_batches(Disk(lengths), lengths, 2, seed=0)
    ahead = grain.MapDataset.source(found).to_iter_dataset(grain.ReadOptions(num_threads=2))
    assert [batch.labels.tolist() for batch in ahead] == [batch.labels.tolist() for batch in found]


@pytest.mark.parametrize(("kind", "padding"), [(int, -1), (float, 0)])
def test_padded_labels_of_each_step_are_those_of_batches(kind, padding):
    sequences = [np.ones(1), np.ones(3)]
    labels = [np.full(n, 7, kind) for n in (1, 3)]
    read = data.read_batches(list(zip(sequences, labels, strict=True)), [1, 3], 2, per_step=True)[0]
    (held,) = data.batches(sequences, labels, 2)
    np.testing.assert_array_equal(read.labels, held.labels)
    assert read.labels.dtype == held.labels.dtype
    assert read.labels[0, 1] == padding
