"""From a store to batches: rows are mapped, not read, and each worker takes its slice.

Knows the store and TensorFlow (to resize), and neither models nor Ray.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.corpus import Split
from pipeline.errors import ParameterError
from pipeline.store import Store

Item = TypeVar("Item")


def epoch_order(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the permutation of rows in one epoch: a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def epoch_shifts(n_rows: int, seed: int, epoch: int, most: int) -> NDArray[np.int64]:
    """Return by how many frames, at most, each row is later in one epoch: a function of (seed, epoch, row) alone."""
    return np.random.default_rng([seed, epoch, 1]).integers(-most, most, size=n_rows, endpoint=True)


class Spectrograms:
    """The spectrograms of one split, as a model wants them.

    Parameters
    ----------
    store : Store
    split : {'train', 'validation', 'test'}, optional
        By default all rows. Groups were dealt out to splits when the store was made, so none stands in two.
    target_shape : (int, int), optional
        (n_bins, n_frames) that rows are resized to, bilinearly and with antialiasing, when theirs differs.
    """

    def __init__(self, store: Store, split: Split | None = None, target_shape: tuple[int, int] | None = None) -> None:
        self.store = store
        self.split = split
        self.target_shape = target_shape or store.format.shape
        splits = np.asarray(store.table["split"].to_pylist(), dtype=np.str_)
        self.places: NDArray[np.int64] = np.flatnonzero(splits == split) if split else np.arange(len(splits))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_bins, n_frames, 1) of a row."""
        return *self.target_shape, 1

    @property
    def clip_ids(self) -> list[str]:
        """Clip of each row."""
        return list(self._column("clip_id").to_pylist())

    @property
    def labels(self) -> list[str | None]:
        """Label of each row's clip; None where its name has none."""
        return list(self._column("label").to_pylist())

    @property
    def groups(self) -> list[str]:
        """Group of each row's clip: what stands on one side of a split."""
        return list(self._column("group").to_pylist())

    @property
    def channels(self) -> NDArray[np.int32]:
        """Channel of each row within its clip."""
        return np.asarray(self._column("channel"), dtype=np.int32)

    @property
    def segments(self) -> NDArray[np.int32]:
        """Segment of each row within its clip."""
        return np.asarray(self._column("segment"), dtype=np.int32)

    @property
    def extremes_db(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(min_db, max_db) of each row before it was normalised."""
        return np.asarray(self._column("min_db"), dtype=np.float32), np.asarray(
            self._column("max_db"), dtype=np.float32
        )

    def _column(self, name: str) -> Any:
        return self.store.table[name].take(self.places)

    def rows(self, which: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows by their number in this split, shape (n, n_bins, n_frames, 1)."""
        return resize(self.store.rows(self.places[which])[..., None], self.target_shape)

    def training_slices(
        self,
        epoch: int,
        seed: int,
        global_batch_size: int,
        rank: int = 0,
        num_workers: int = 1,
        first: int = 0,
        shift_frames: int = 0,
    ) -> Iterator[NDArray[np.float32]]:
        """Return an iterator over a worker's slice of each global batch of an epoch, from the `first` one.

        An epoch is `len(self) // global_batch_size` full batches of a permutation that follows from (seed, epoch);
        the rows left over stand elsewhere in the next epoch's order. Each row is earlier or later by up to
        `shift_frames`, which follows from (seed, epoch, row).

        Raises
        ------
        ParameterError
            There are fewer rows than a batch has, or the workers do not divide it.
        """
        if global_batch_size % num_workers:
            raise ParameterError(f"num_workers={num_workers} must divide global_batch_size={global_batch_size}")
        n_batches = len(self) // global_batch_size
        if not n_batches:
            raise ParameterError(
                f"train.global_batch_size={global_batch_size} is more than the {len(self)} spectrograms to train on"
            )
        order = epoch_order(len(self), seed, epoch)[: n_batches * global_batch_size]
        mine = order.reshape(n_batches, num_workers, -1)[first:, rank]
        if not shift_frames:
            return prefetch(self.rows(which) for which in mine)
        frames = epoch_shifts(len(self), seed, epoch, shift_frames)
        return prefetch(shift(self.rows(which), frames[which]) for which in mine)

    def evaluation_slices(
        self,
        batch_size: int = 64,
        rank: int = 0,
        num_workers: int = 1,
        which: NDArray[np.int64] | None = None,
    ) -> Iterator[NDArray[np.float32]]:
        """Return an iterator over a worker's share of all rows, or of some, in order; shares may differ by a row."""
        mine = (np.arange(len(self)) if which is None else which)[rank::num_workers]
        return prefetch(self.rows(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size))


def resize(x: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return spectrograms (n, n_bins, n_frames, 1) at another shape, bilinearly; as they are when it is theirs."""
    if x.shape[1:3] == shape:
        return x
    return np.asarray(tf.image.resize(x, shape, antialias=True), dtype=np.float32)


def shift(x: NDArray[np.float32], frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return spectrograms (n, n_bins, n_frames, 1), each later by a number of frames (n,), or earlier where negative.

    The first or last frame stands where there is nothing.
    """
    shifted = np.empty_like(x)
    for row, source, number in zip(shifted, x, frames, strict=True):
        places = np.clip(np.arange(x.shape[2]) - number, 0, x.shape[2] - 1)
        np.take(source, places, axis=1, out=row, mode="clip")
    return shifted


def load_spectrograms(
    folder: str | os.PathLike[str] = "data/spectrograms",
    table_path: str | os.PathLike[str] = "data/min_max_values.parquet",
    split: Split | None = "train",
    target_shape: tuple[int, int] | None = None,
    storage: str | None = None,
) -> Spectrograms:
    """Return the spectrograms that the preprocess stage wrote, of one split, from their folder or from a storage.

    Examples
    --------
    >>> train = load_spectrograms()  # doctest: +SKIP
    >>> x = train.rows(np.arange(64))  # doctest: +SKIP
    """
    return Spectrograms(Store(folder, table_path, storage), split, target_shape)


# The name under which people know it.
load_fsdd = load_spectrograms


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, the next one being made in another thread meanwhile."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(max_workers=1) as executor:
        future = executor.submit(next, iterator, end)
        while (item := future.result()) is not end:
            future = executor.submit(next, iterator, end)
            yield item  # type: ignore[misc]
