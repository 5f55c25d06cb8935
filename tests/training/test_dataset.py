import threading

import numpy as np
import pytest
import scipy.ndimage

from pipeline.errors import ParameterError, StoreError
from pipeline.paths import SPECTROGRAMS, TABLE
from tests.training.conftest import SHAPE
from training.dataset import (
    Spectrograms,
    epoch_order,
    epoch_shifts,
    load_fsdd,
    load_spectrograms,
    prefetch,
    resize,
    shift,
)

SPLITS = ("train", "validation", "test")


@pytest.fixture
def train(store):
    return Spectrograms(store, "train")


def all_rows(store):
    """Return every row (n, n_bins, n_frames), read as plain files."""
    return np.concatenate([np.load(store.folder / shard.name) for shard in store.format.shards])


# --- rows and splits


def test_rows_are_mapped_and_not_read(train):
    for shard in train.store.shards:
        assert isinstance(shard, np.memmap)
        assert not shard.flags.writeable


@pytest.mark.parametrize("split", [*SPLITS, None])
def test_rows_are_those_of_the_split_with_a_channel(store, split, rng):
    spectrograms = Spectrograms(store, split)
    table = store.table.to_pylist()
    places = [place for place, line in enumerate(table) if split in (line["split"], None)]
    expected = all_rows(store)[places][..., None]
    order = rng.permutation(len(places))

    assert len(spectrograms) == len(places) > 0
    assert spectrograms.shape == SHAPE
    np.testing.assert_array_equal(spectrograms.rows(np.arange(len(places))), expected, strict=True)
    np.testing.assert_array_equal(spectrograms.rows(order), expected[order])
    assert spectrograms.clip_ids == [table[place]["clip_id"] for place in places]
    assert spectrograms.channels.tolist() == [table[place]["channel"] for place in places]
    for found, name in zip(spectrograms.extremes_db, ("min_db", "max_db"), strict=True):
        assert found.tolist() == [table[place][name] for place in places]


def test_splits_are_all_rows_and_share_no_group(store):
    splits = {split: Spectrograms(store, split) for split in SPLITS}
    groups = {split: {clip_id.rpartition("_")[0] for clip_id in each.clip_ids} for split, each in splits.items()}

    assert sum(len(each) for each in splits.values()) == len(store.table) == 144
    assert sum(len(each) for each in groups.values()) == len(set().union(*groups.values())) == 36
    # Four velocities of each note stand together.
    assert {split: len(each) for split, each in splits.items()} == {
        split: 4 * len(each) for split, each in groups.items()
    }


def test_load_fsdd_is_the_loader(data, store):
    assert load_fsdd is load_spectrograms
    loaded = load_fsdd(data.parent / SPECTROGRAMS, data.parent / TABLE, "test")

    np.testing.assert_array_equal(loaded.rows(np.arange(4)), Spectrograms(store, "test").rows(np.arange(4)))


def test_the_loader_reads_the_projects_own_store(data, monkeypatch):
    monkeypatch.chdir(data.parent)

    assert len(load_spectrograms()) == len(load_spectrograms(split="train"))


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=r"format\.json: missing; the preprocess stage has not finished here"):
        load_spectrograms(tmp_path / "spectrograms", tmp_path / "table.parquet")


# --- order and slices


def test_the_order_is_a_permutation_that_follows_from_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(50, seed, epoch) for seed in range(4) for epoch in range(4)}

    for (seed, epoch), order in orders.items():
        assert sorted(order) == list(range(50))
        np.testing.assert_array_equal(order, epoch_order(50, seed, epoch))
    assert len({tuple(order) for order in orders.values()}) == 16


def test_the_order_is_the_same_everywhere():
    """It is part of what a training key stands for, so another version of NumPy must not change it unnoticed."""
    assert epoch_order(8, 0, 0).tolist() == [2, 4, 3, 6, 5, 0, 1, 7]


def test_every_row_has_its_turn(train):
    last = [epoch_order(len(train), 0, epoch)[len(train) // 32 * 32 :] for epoch in range(40)]

    assert len(train) % 32
    assert len(set(np.concatenate(last).tolist())) > len(train) / 2


@pytest.mark.parametrize("shift_frames", [0, 3])
@pytest.mark.parametrize("num_workers", [1, 2, 4, 8])
def test_slices_of_all_ranks_are_the_one_workers_batch(train, num_workers, shift_frames):
    whole = list(train.training_slices(epoch=3, seed=1, global_batch_size=16, shift_frames=shift_frames))
    ranks = [list(train.training_slices(3, 1, 16, rank, num_workers, 0, shift_frames)) for rank in range(num_workers)]

    assert len(whole) == len(train) // 16
    for batch, *slices in zip(whole, *ranks, strict=True):
        assert {len(each) for each in slices} == {16 // num_workers}
        np.testing.assert_array_equal(np.concatenate(slices), batch, strict=True)


def test_batches_are_rows_in_the_order_of_the_epoch(train):
    order = epoch_order(len(train), seed=5, epoch=2)
    batches = list(train.training_slices(epoch=2, seed=5, global_batch_size=16))

    np.testing.assert_array_equal(np.concatenate(batches), train.rows(order[: 16 * len(batches)]), strict=True)
    assert len(np.unique(order[: 16 * len(batches)])) == 16 * len(batches)


def test_shifts_are_uniform_and_follow_from_seed_epoch_and_row():
    shifts = np.array([epoch_shifts(700, seed, epoch, 3) for seed in range(3) for epoch in range(3)])

    _, counts = np.unique(shifts, return_counts=True)
    assert np.unique(shifts).tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert np.abs(counts - 900).max() < 5 * np.sqrt(900)
    assert np.abs(np.corrcoef(shifts) - np.eye(9)).max() < 0.2
    np.testing.assert_array_equal(shifts[5], epoch_shifts(700, 1, 2, 3))
    # As the order's, another version of NumPy must not change them unnoticed.
    assert epoch_shifts(8, 0, 0, 2).tolist() == [2, 0, -2, -1, 1, 0, 1, -1]


def test_rows_are_shifted_by_their_own_numbers_from_any_batch_on(train):
    order, shifts = epoch_order(len(train), 5, 2), epoch_shifts(len(train), 5, 2, 2)
    batches = list(train.training_slices(2, 5, 16, shift_frames=2))
    number = 16 * len(batches)
    found, rows = np.concatenate(batches), train.rows(order[:number])

    for frames in range(-2, 3):
        these = shifts[order[:number]] == frames
        assert these.any()
        edge = np.repeat(rows[these][:, :, :1] if frames > 0 else rows[these][:, :, -1:], abs(frames), axis=2)
        inner = rows[these][:, :, max(0, -frames) : SHAPE[1] - max(0, frames)]
        parts = [edge, inner] if frames > 0 else [inner, edge]
        np.testing.assert_array_equal(found[these], np.concatenate(parts, axis=2), strict=True)
    np.testing.assert_array_equal(
        np.concatenate(list(train.training_slices(2, 5, 16, first=3, shift_frames=2))), found[3 * 16 :]
    )


def test_a_shift_beyond_the_end_is_one_frame(rng):
    x = rng.uniform(size=(2, 3, 4, 1)).astype(np.float32)

    expected = np.repeat(np.stack([x[0, :, :1], x[1, :, -1:]]), 4, axis=2)
    np.testing.assert_array_equal(shift(x, np.array([9, -9])), expected, strict=True)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 50])
def test_workers_evaluate_every_row_once(store, num_workers):
    validation = Spectrograms(store, "validation")
    shares = [
        [x for batch in validation.evaluation_slices(7, rank, num_workers) for x in batch]
        for rank in range(num_workers)
    ]
    expected = validation.rows(np.arange(len(validation)))

    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank, share in enumerate(shares):
        np.testing.assert_array_equal(np.reshape(share, (-1, *SHAPE)), expected[rank::num_workers])


def test_a_corpus_smaller_than_a_batch(store):
    validation = Spectrograms(store, "validation")
    batch = len(validation) + 1

    with pytest.raises(
        ParameterError,
        match=f"train.global_batch_size={batch} is more than the {len(validation)} spectrograms to train on",
    ):
        validation.training_slices(0, 0, batch)
    assert len(list(validation.training_slices(0, 0, len(validation)))) == 1


def test_workers_that_do_not_divide_the_batch(train):
    with pytest.raises(ParameterError, match="num_workers=3 must divide global_batch_size=16"):
        train.training_slices(0, 0, 16, rank=0, num_workers=3)


# --- another shape


def test_rows_of_their_own_shape_stay_as_they_are(rng):
    x = rng.uniform(size=(2, 5, 7, 1)).astype(np.float32)

    assert resize(x, (5, 7)) is x


@pytest.mark.parametrize("shape", [(8, 8), (16, 8), (4, 16), (2, 2)])
def test_shrinking_by_a_whole_number_weighs_neighbours_by_a_triangle(rng, shape):
    """Bilinear with antialiasing: a triangle as wide as two new pixels, cut off at the edges and normalised."""
    x = rng.uniform(size=(3, 16, 16, 1)).astype(np.float32)

    def triangles(n_old, n_new):
        scale = n_old / n_new
        centres = (np.arange(n_new) + 0.5) * scale
        weights = np.maximum(0, 1 - np.abs((np.arange(n_old) + 0.5) - centres[:, None]) / scale)
        return weights / weights.sum(axis=1, keepdims=True)

    expected = np.einsum("ab,nbcx,dc->nadx", triangles(16, shape[0]), np.float64(x), triangles(16, shape[1]))
    found = resize(x, shape)

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_growing_interpolates(rng):
    x = rng.uniform(size=(6, 6)).astype(np.float32)
    places = (np.arange(12) + 0.5) / 2 - 0.5
    expected = scipy.ndimage.map_coordinates(
        np.float64(x), np.meshgrid(places, places, indexing="ij"), order=1, mode="nearest"
    )

    np.testing.assert_allclose(resize(x[None, ..., None], (12, 12))[0, ..., 0], expected, atol=1e-6)


def test_target_shape_is_what_comes_out(store):
    small = Spectrograms(store, "train", target_shape=(8, 4))
    rows = np.arange(5)

    assert small.shape == (8, 4, 1)
    np.testing.assert_array_equal(small.rows(rows), resize(Spectrograms(store, "train").rows(rows), (8, 4)))
    assert next(small.training_slices(0, 0, 16)).shape == (16, 8, 4, 1)
    assert next(small.evaluation_slices(10)).shape == (10, 8, 4, 1)


# --- prefetching


def test_prefetched_items_are_the_items():
    assert list(prefetch(range(1000))) == list(range(1000))
    assert list(prefetch([])) == []
    assert list(prefetch([None, 0])) == [None, 0]


def test_the_next_item_is_made_meanwhile():
    made = threading.Event()

    def items():
        yield 0
        made.set()
        yield 1

    iterator = prefetch(items())
    assert next(iterator) == 0
    assert made.wait(10)
    assert list(iterator) == [1]


def test_errors_come_where_the_item_would():
    def items():
        yield 0
        raise ValueError("the second")

    iterator = prefetch(items())
    assert next(iterator) == 0
    with pytest.raises(ValueError, match="the second"):
        next(iterator)


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    iterator = prefetch(range(10))
    next(iterator)
    iterator.close()

    assert threading.active_count() == before
