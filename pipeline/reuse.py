"""What an earlier run computed, found again by the content of recordings: rows to copy instead of computing them.

A row follows from the bytes of its recording, the parameters, the code and the libraries. Where the last three are what
they were, only the first decides, so that a renamed recording is found too. Knows neither sound nor Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifact import Format, Shard, read_table
from pipeline.corpus import hash_prefixes
from pipeline.errors import StoreError
from pipeline.recording import Facts
from pipeline.storage import Storage

Lines = NDArray[np.int64]

# A SHA-256 as it stands in the table.
_DIGEST = "S64"
_NO_DIGITS = "0" * 16


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
    digests : ndarray of bytes, shape (n_lines,)
        Of each line's recording.
    keys : ndarray of uint64, shape (n_lines,)
        Of each line, rising: a hash of the recording's content and id, since duplicates have lines of their own.
    contents, content_lines : ndarray of uint64 and of int64, shape (n_lines,)
        A hash of the content alone, rising, and the line that each is of.
    shard_of, row_of : ndarray of int32, shape (n_lines,)
        Where the row of each line is.
    """

    places: tuple[Storage, ...]
    shards: tuple[Shard, ...]
    lines: pa.Table
    digests: NDArray[np.bytes_]
    keys: NDArray[np.uint64]
    contents: NDArray[np.uint64]
    content_lines: Lines
    shard_of: NDArray[np.int32]
    row_of: NDArray[np.int32]

    @classmethod
    def of(cls, places: tuple[Storage, ...], described: Format, table: pa.Table) -> "Previous":
        """Return what a store holds."""
        digests = table["sha256"].to_pylist()
        contents = _hash_contents(digests)
        keys = contents ^ hash_prefixes(table["clip_id"].to_pylist())
        # Stable, so that a recording's rows stay in their order.
        order = np.argsort(keys, kind="stable")
        lines = table.take(order).combine_chunks()
        contents = contents[order]
        by_content = np.argsort(contents, kind="stable")
        columns = (np.asarray(lines[name], dtype=np.int32) for name in ("shard", "row"))
        return cls(
            places,
            described.shards,
            lines,
            np.array(digests, dtype=_DIGEST)[order],
            keys[order],
            contents[by_content],
            by_content,
            *columns,
        )

    def find(self, digests: Sequence[str], clip_ids: Sequence[str]) -> tuple[Lines, Lines]:
        """Return where the lines of each recording start and stop, in the order of their rows; new ones have none.

        Of several recordings with that content, the one of the same id is found, so that what has not changed is
        found where it was.
        """
        wanted, contents = np.array(digests, dtype=_DIGEST), _hash_contents(digests)
        keys = contents ^ hash_prefixes(clip_ids)
        starts = self._first(keys, wanted)
        (others,) = np.nonzero(starts < 0)
        if len(others):
            places = np.searchsorted(self.contents, contents[others]).clip(max=len(self.keys) - 1)
            keys[others] = self.keys[self.content_lines[places]]
            starts[others] = self._first(keys[others], wanted[others])
        stops = np.searchsorted(self.keys, keys, side="right")
        is_new = starts < 0
        starts[is_new] = stops[is_new] = 0
        return starts, stops

    def _first(self, keys: NDArray[np.uint64], wanted: NDArray[np.bytes_]) -> Lines:
        """Return the first line of each key, where that is of the wanted content, or -1."""
        starts = np.searchsorted(self.keys, keys)
        starts[starts == len(self.keys)] = -1
        # Hashes may agree where contents do not.
        is_found = (starts >= 0) & (self.keys[starts] == keys) & (self.digests[starts] == wanted)
        return np.where(is_found, starts, -1)

    def facts(self, lines: Lines, stamps: Sequence[tuple[int, int, int]]) -> list[Facts]:
        """Return what is known of the recordings that some lines came from, and that have these stamps now."""
        names = "sha256 source_rate source_channels source_samples source_start source_stop decoder".split()
        found = self.lines.select(names).take(lines).to_pylist()
        return [Facts(**each, stamp=stamp) for each, stamp in zip(found, stamps, strict=True)]

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


def _hash_contents(digests: Sequence[str]) -> NDArray[np.uint64]:
    """Return the first 64 bits of digests; of one that is not known, zeros."""
    digits = "".join([digest[:16] or _NO_DIGITS for digest in digests])
    return np.frombuffer(bytes.fromhex(digits), dtype=">u8").astype(np.uint64)


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
