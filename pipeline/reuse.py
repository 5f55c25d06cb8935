"""What an earlier run computed, found again by the content of recordings: rows to copy instead of computing them.

A row follows from the bytes of its recording, the parameters, the code and the libraries. Where the last three are what
they were, only the first decides, so that a renamed recording is found too. Knows neither sound nor Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifact import Format, Shard, read_table
from pipeline.errors import StoreError
from pipeline.recording import Facts
from pipeline.storage import Storage

Lines = NDArray[np.int64]


@dataclass(frozen=True)
class Previous:
    """The rows of an earlier store, sorted by the digest of the recording that they came from, and by its name.

    Sent to workers as it is: arrays only, which Ray maps.

    Attributes
    ----------
    places : tuple of Storage
        Where its shards may be: first where those of the next run will.
    shards : tuple of Shard
    lines : pyarrow.Table
        Of the earlier table.
    keys : ndarray of bytes, shape (n_lines,)
        Of each line, rising: the recording's digest, and a hash of its id, since duplicates have lines of their own.
    shard_of, row_of : ndarray of int32, shape (n_lines,)
        Where the row of each line is.
    """

    places: tuple[Storage, ...]
    shards: tuple[Shard, ...]
    lines: pa.Table
    keys: NDArray[np.bytes_]
    shard_of: NDArray[np.int32]
    row_of: NDArray[np.int32]

    @classmethod
    def of(cls, places: tuple[Storage, ...], described: Format, table: pa.Table) -> "Previous":
        """Return what a store holds."""
        keys = _keys(table["sha256"].to_pylist(), table["clip_id"].to_pylist())
        # Stable, so that a recording's rows stay in their order.
        order = np.argsort(keys, kind="stable")
        lines = table.take(order).combine_chunks()
        columns = (np.asarray(lines[name], dtype=np.int32) for name in ("shard", "row"))
        return cls(places, described.shards, lines, keys[order], *columns)

    def find(self, digests: Sequence[str], clip_ids: Sequence[str]) -> tuple[Lines, Lines]:
        """Return where the lines of each recording start and stop, in the order of their rows; new ones have none.

        Of several recordings with that content, the one of the same id is found, so that what has not changed is
        found where it was.
        """
        keys = _keys(digests, clip_ids)
        starts = np.searchsorted(self.keys, keys, side="left")
        for place in np.flatnonzero(starts == np.searchsorted(self.keys, keys, side="right")).tolist():
            digest = digests[place].encode()
            start = int(np.searchsorted(self.keys, np.bytes_(digest)))
            if digest and start < len(self.keys) and self.keys[start].startswith(digest):
                keys[place], starts[place] = self.keys[start], start
        stops = np.searchsorted(self.keys, keys, side="right")
        return starts, stops

    def facts(self, line: int, stamp: tuple[int, int, int]) -> Facts:
        """Return what is known of the recording that a line came from, and that has this stamp now."""
        (first,) = self.lines.slice(int(line), 1).to_pylist()
        names = "sha256 source_rate source_channels source_samples source_start source_stop decoder".split()
        return Facts(**{name: first[name] for name in names}, stamp=stamp)

    def reader(self) -> "RowReader":
        """Return what reads rows, for one worker and one unit of work."""
        return RowReader(self)


class RowReader:
    """Reads rows of an earlier store, and trusts no shard whose bytes are not those that its digest names."""

    def __init__(self, previous: Previous) -> None:
        self._previous = previous
        self._opened: dict[int, NDArray[np.float32] | None] = {}

    def is_intact(self, lines: Lines) -> bool:
        """Return whether the shards of some lines are as they were written."""
        return all(self._open(shard) is not None for shard in np.unique(self._previous.shard_of[lines]).tolist())

    def rows(self, lines: Lines) -> list[NDArray[np.float32]]:
        """Return the rows of some lines as views of their shards, in pieces (n, n_bins, n_frames)."""
        shards, rows = self._previous.shard_of[lines], self._previous.row_of[lines]
        # Where neighbours in the order are neighbours in a shard, they are one piece.
        borders = np.flatnonzero((np.diff(shards) != 0) | (np.diff(rows) != 1)) + 1
        pieces = []
        for part in np.split(np.arange(len(lines)), borders):
            opened = self._open(int(shards[part[0]]))
            assert opened is not None
            pieces.append(opened[rows[part[0]] : rows[part[-1]] + 1])
        return pieces

    def whole_shard(self, lines: Lines, prefix: str) -> Shard | None:
        """Return the shard of that prefix that is these lines and no others, in order, and lies where it should."""
        shards, rows = self._previous.shard_of[lines], self._previous.row_of[lines]
        shard = self._previous.shards[shards[0]]
        is_whole = (
            (shards == shards[0]).all()
            and len(lines) == shard.n_rows
            and np.array_equal(rows, np.arange(shard.n_rows))
            and shard.name.startswith(f"{prefix}-")
        )
        is_kept = is_whole and self._previous.places[0].is_intact(shard.name, shard.n_bytes, shard.sha256)
        return shard if is_kept else None

    def _open(self, index: int) -> NDArray[np.float32] | None:
        if index not in self._opened:
            shard = self._previous.shards[index]
            self._opened[index] = next(
                (found for place in self._previous.places if (found := _open_intact(place, shard)) is not None), None
            )
        return self._opened[index]


def read_previous(places: tuple[Storage, ...], described: Format | None, table_path: Path) -> Previous | None:
    """Return what an earlier store holds, or None where it cannot be read."""
    if described is None:
        return None
    try:
        return Previous.of(places, described, read_table(table_path, described))
    except StoreError:
        return None


def _keys(digests: Sequence[str], clip_ids: Sequence[str]) -> NDArray[np.bytes_]:
    """Return what lines are sorted by."""
    # A fast hash will do: where two ids share one, they have the same content, and therefore the same rows.
    keys = [f"{digest}{crc32(clip_id.encode()):08x}" for digest, clip_id in zip(digests, clip_ids, strict=True)]
    return np.array(keys, dtype="S72")


def _open_intact(place: Storage, shard: Shard) -> NDArray[np.float32] | None:
    """Return a map of a shard, if it is in a place as it was written."""
    if not place.is_intact(shard.name, shard.n_bytes, shard.sha256):
        return None
    try:
        path = place.local(shard.name, shard.n_bytes, shard.sha256)
        opened: NDArray[np.float32] = np.load(path, mmap_mode="r")
    except (FileNotFoundError, StoreError):
        return None
    return opened
