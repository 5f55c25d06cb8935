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
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.artifact import Format, Shard, read_table
from pipeline.errors import StoreError
from pipeline.recording import Facts
from pipeline.storage import Storage

Lines = NDArray[np.int64]

# A SHA-256 as it stands in the table.
_DIGEST = "S64"
_NO_DIGITS = "0" * 16


@dataclass(frozen=True)
class Previous:
    """The rows of an earlier store, and its recordings, sorted by what they hold and what they are called.

    Sent to workers as it is: arrays only, which Ray maps.

    Attributes
    ----------
    places : tuple of Storage
        Where its shards may be: first where those of the next run will.
    shards : tuple of Shard
    lines : pyarrow.Table
        The earlier table, in which the lines of a recording follow each other.
    shard_of, row_of : ndarray of int32, shape (n_lines,)
        Where the row of each line is.
    keys : ndarray of uint64, shape (n_recordings,)
        Of each recording, rising: a hash of its content and its id, since duplicates have lines of their own.
    digests : ndarray of bytes, shape (n_recordings,)
    starts, stops : ndarray of int64, shape (n_recordings,)
        Its lines.
    contents, by_content : ndarray of uint64 and of int64, shape (n_recordings,)
        A hash of the content alone, rising, and the place of its recording in the others.
    """

    places: tuple[Storage, ...]
    shards: tuple[Shard, ...]
    lines: pa.Table
    shard_of: NDArray[np.int32]
    row_of: NDArray[np.int32]
    keys: NDArray[np.uint64]
    digests: NDArray[np.bytes_]
    starts: Lines
    stops: Lines
    contents: NDArray[np.uint64]
    by_content: Lines

    @classmethod
    def of(cls, places: tuple[Storage, ...], described: Format, table: pa.Table) -> "Previous":
        """Return what a store holds."""
        table = table.combine_chunks()
        clip_ids = table["clip_id"]
        is_next = np.asarray(pc.not_equal(clip_ids.slice(1), clip_ids.slice(0, len(table) - 1)))
        starts = np.concatenate([[0], np.flatnonzero(is_next) + 1])
        stops = np.append(starts[1:], len(table))
        digests = table["sha256"].take(starts).to_pylist()
        contents = _hash_contents(digests)
        keys = _mix(contents, clip_ids.take(starts).to_pylist())
        order = np.argsort(keys, kind="stable")
        contents = contents[order]
        by_content = np.argsort(contents, kind="stable")
        return cls(
            places,
            described.shards,
            table,
            np.asarray(table["shard"], dtype=np.int32),
            np.asarray(table["row"], dtype=np.int32),
            keys[order],
            np.array(digests, dtype=_DIGEST)[order],
            starts[order],
            stops[order],
            contents[by_content],
            by_content,
        )

    def find(self, digests: Sequence[str], clip_ids: Sequence[str]) -> tuple[Lines, Lines]:
        """Return where the lines of each recording start and stop, in the order of their rows; new ones have none.

        Of several recordings with that content, the one of the same id is found, so that what has not changed is
        found where it was.
        """
        wanted, contents = np.array(digests, dtype=_DIGEST), _hash_contents(digests)
        found = self._place(self.keys, _mix(contents, clip_ids))
        (others,) = np.nonzero(self.digests[found] != wanted)
        found[others] = self.by_content[self._place(self.contents, contents[others])]
        # Hashes may agree where contents do not.
        is_known = self.digests[found] == wanted
        return np.where(is_known, self.starts[found], 0), np.where(is_known, self.stops[found], 0)

    def _place(self, hashes: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Lines:
        """Return where hashes are, if they are there; if not, anywhere."""
        return np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)

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


def _mix(contents: NDArray[np.uint64], clip_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return hashes of contents and ids."""
    # A fast hash will do: where two ids share one, they have the same content, and therefore the same rows.
    names = np.array([crc32(clip_id.encode()) for clip_id in clip_ids], dtype=np.uint64)
    return contents ^ (names << np.uint64(32))


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
