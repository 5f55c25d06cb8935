"""What an earlier run computed, found again by the content of recordings: rows to copy instead of computing them.

A row follows from the bytes of its recording, the parameters, the code and the libraries. Where the last three are what
they were, only the first decides, so that a renamed recording is found too. Knows neither sound nor Ray.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import columns
from pipeline.artifact import TABLE_SCHEMA, Format, Shard, read_table
from pipeline.columns import DIGEST
from pipeline.errors import StoreError
from pipeline.recording import Facts
from pipeline.storage import Storage

Lines = NDArray[np.int64]

# Of the earlier table; what follows from the ids alone is found anew.
_COLUMNS = [name for name in TABLE_SCHEMA.names if name not in ("label", "group", "split")]
# How many texts are Python's at a time.
_TEXTS = 4096


@dataclass(frozen=True)
class Previous:
    """The rows of an earlier store, and its recordings, sorted by what they hold and what they are called.

    Sent to workers as it is: few pieces of memory, which Ray maps.

    Attributes
    ----------
    places : tuple of Storage
        Where its shards may be: first where those of the next run will.
    described : Format
    packed : tuple
        The earlier table, but for what follows from ids alone, as `columns.pack` returns it.
    keys : ndarray of uint64, shape (n_recordings,)
        Of each recording, rising: a hash of its content and its id, since duplicates have lines of their own.
    starts, stops : ndarray of int64, shape (n_recordings,)
        Its lines.
    contents, by_content : ndarray of uint64 and of int64, shape (n_recordings,)
        A hash of the content alone, rising, and the place of its recording in the others.
    """

    places: tuple[Storage, ...]
    described: Format
    packed: tuple[pa.Schema, pa.Buffer]
    keys: NDArray[np.uint64]
    starts: Lines
    stops: Lines
    contents: NDArray[np.uint64]
    by_content: Lines

    @classmethod
    def of(cls, places: tuple[Storage, ...], described: Format, table: pa.Table) -> "Previous":
        """Return what a store holds."""
        packed = columns.pack(table.select(_COLUMNS))
        table = columns.unpack(packed)
        starts = columns.run_starts(table["clip_id"])
        stops = np.append(starts[1:], len(table))
        contents = columns.first_bits(columns.digests(table["sha256"])[starts])
        keys = _mix(contents, _texts(table["clip_id"].take(columns.numbers(starts, pa.int64()))))
        order = np.argsort(keys, kind="stable")
        contents = contents[order]
        by_content = np.argsort(contents, kind="stable")
        return cls(
            places, described, packed, keys[order], starts[order], stops[order], contents[by_content], by_content
        )

    @cached_property
    def lines(self) -> pa.Table:
        """The earlier table, in which the lines of a recording follow each other."""
        return columns.unpack(self.packed)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lines"}

    def clip_ids(self) -> pa.Array:
        """Return the ids of its recordings, as a copy that outlives the table."""
        ids = self.lines["clip_id"]
        return ids.take(columns.numbers(columns.run_starts(ids), pa.int64())).combine_chunks()

    def find(self, digests: Sequence[str], clip_ids: Sequence[str]) -> tuple[Lines, Lines]:
        """Return where the lines of each recording start and stop, in the order of their rows; new ones have none.

        Of several recordings with that content, the one of the same id is found, so that what has not changed is
        found where it was.
        """
        wanted = np.array(digests, dtype=DIGEST)
        contents, known = columns.first_bits(wanted), columns.digests(self.lines["sha256"])
        found = self._place(self.keys, _mix(contents, clip_ids))
        (others,) = np.nonzero(known[self.starts[found]] != wanted)
        found[others] = self.by_content[self._place(self.contents, contents[others])]
        # Hashes may agree where contents do not.
        is_known = known[self.starts[found]] == wanted
        return np.where(is_known, self.starts[found], 0), np.where(is_known, self.stops[found], 0)

    def _place(self, hashes: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Lines:
        """Return where hashes are, if they are there; if not, anywhere."""
        return np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)

    def facts(self, lines: Lines, stamps: Sequence[tuple[int, int, int]]) -> list[Facts]:
        """Return what is known of the recordings that some lines came from, and that have these stamps now."""
        names = "sha256 source_rate source_channels source_samples source_start source_stop decoder".split()
        found = self.lines.select(names).take(columns.numbers(lines, pa.int64())).to_pylist()
        return [Facts(**each, stamp=stamp) for each, stamp in zip(found, stamps, strict=True)]

    def reader(self) -> "RowReader":
        """Return what reads rows, for one worker and one unit of work."""
        return RowReader(self)


class RowReader:
    """Reads rows of an earlier store, and trusts no shard whose bytes are not those that its digest names."""

    def __init__(self, previous: Previous) -> None:
        self._previous = previous
        self._shard_of, self._row_of = (columns.values(previous.lines[name]) for name in ("shard", "row"))
        self._opened: dict[int, NDArray[np.floating[Any]] | None] = {}

    def is_intact(self, lines: Lines) -> bool:
        """Return whether the shards of some lines are as they were written."""
        return all(self._open(shard) is not None for shard in set(self._shard_of[lines].tolist()))

    def rows(self, lines: Lines) -> list[NDArray[np.floating[Any]]]:
        """Return the rows of lines that follow each other as views of their shards, each in one piece."""
        shards, rows = self._shard_of[lines], self._row_of[lines]
        borders = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(lines)]
        return [self._piece(int(shards[start]), rows[start], stop - start) for start, stop in pairwise(borders)]

    def _piece(self, shard: int, row: int, n_rows: int) -> NDArray[np.floating[Any]]:
        """Return rows of a shard (n_rows, n_bins, n_frames)."""
        opened = self._open(shard)
        assert opened is not None
        return opened[row : row + n_rows]

    def whole_shard(self, lines: Lines, prefix: str) -> Shard | None:
        """Return the shard of that prefix that is these lines and no others, in order, and lies where it should."""
        shards, rows = self._shard_of[lines], self._row_of[lines]
        shard = self._previous.described.shards[shards[0]]
        is_whole = (
            (shards == shards[0]).all()
            and len(lines) == shard.n_rows
            and np.array_equal(rows, np.arange(shard.n_rows))
            and shard.name.startswith(f"{prefix}-")
        )
        is_kept = is_whole and self._previous.places[0].is_intact(shard.name, shard.n_bytes, shard.sha256)
        return shard if is_kept else None

    def _open(self, index: int) -> NDArray[np.floating[Any]] | None:
        """Return a map of a shard, if it is somewhere as it was written."""
        if index not in self._opened:
            previous = self._previous
            shard = previous.described.shards[index]
            self._opened[index] = next(
                (
                    found
                    for each in previous.places
                    if (found := _open_intact(each, previous.described, shard)) is not None
                ),
                None,
            )
        return self._opened[index]


def read_previous(places: tuple[Storage, ...], described: Format | None, table_path: Path) -> Previous | None:
    """Return what an earlier store holds, or None where it cannot be read."""
    if described is None:
        return None
    try:
        return Previous.of(places, described, read_table(table_path, described, _COLUMNS))
    except StoreError:
        return None


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    """Yield the texts of a column, few of which are in memory at a time."""
    for start in range(0, len(column), _TEXTS):
        yield from column.slice(start, _TEXTS).to_pylist()


def _mix(contents: NDArray[np.uint64], clip_ids: Iterable[str]) -> NDArray[np.uint64]:
    """Return hashes of contents and ids."""
    # A fast hash will do: where two ids share one, they have the same content, and therefore the same rows.
    names = np.fromiter((crc32(clip_id.encode()) for clip_id in clip_ids), dtype=np.uint64, count=len(contents))
    return contents ^ (names << np.uint64(32))


def _open_intact(place: Storage, described: Format, shard: Shard) -> NDArray[np.floating[Any]] | None:
    """Return a map of a shard, if it is in a place as it was written."""
    if not place.is_intact(shard.name, shard.n_bytes, shard.sha256):
        return None
    try:
        return described.map(shard, place.local(shard.name, shard.n_bytes, shard.sha256))
    except (FileNotFoundError, StoreError):
        return None
