"""The artifact: `Saver` writes it, `Store` reads it, and nobody else knows where which part of it is.

A store is a number of shards, plain `.npy` files of float32 or float16 rows [n_rows, n_bins, n_frames] in C order that
a trainer maps without copying; a Parquet table with one line per row; and `format.json`, written last, which names
every shard and the table with their digests. What `format.json` does not name is not there. Shards lie beside
`format.json`, or in a storage, where those of other stores may lie too; which of both, no byte says.
"""

import contextlib
import glob
import hashlib
import io
import os
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import columns
from pipeline.artifact import (
    EARLIER_FILE,
    FORMAT_FILE,
    PARTIAL_NAME,
    SHARD_NAME,
    TABLE_SCHEMA,
    Dtype,
    Format,
    Shard,
    check_sizes,
    missing,
    read_table,
)
from pipeline.errors import StoreError
from pipeline.storage import Content, Folder, Storage, file_sha256, open_storage

# In a storage: the folder of the shards.
SHARDS = "shards"
# What `share` calls the table.
_TABLE_FILE = "min_max_values.parquet"
_FETCHES = 8


class Saver:
    """Writes a store. Each file gets its name only when it is whole.

    Parameters
    ----------
    folder : path-like
        Of `format.json`, and of the shards when they have no storage.
    table_path : path-like
        Of the min-max table.
    storage : str, optional
        Location of a storage for the shards, see `pipeline.storage`; every worker must reach it.
    dtype : {'float32', 'float16'}
        Of the rows on disk. Half the bytes round a value of [0, 1] by 2^-12 at most.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        table_path: str | os.PathLike[str],
        storage: str | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        # Absolute, since a worker of a cluster runs in another folder.
        self.folder = Path(folder).absolute()
        self.table_path = Path(table_path).absolute()
        self.shards = shard_storage(self.folder, storage)
        self.has_storage = storage is not None
        self.dtype: Dtype = dtype

    @property
    def value_bytes(self) -> int:
        """Size of one value of a row."""
        return np.dtype(self.dtype).itemsize

    @property
    def places(self) -> tuple[Storage, ...]:
        """Where shards of an earlier run may be: where they belong, and where they were before there was a storage."""
        return (self.shards, Folder(self.folder)) if self.has_storage else (self.shards,)

    def prepare(self) -> Format | None:
        """Make the folders, and withdraw an earlier store: what is there is whole again only after `finish`.

        Returns
        -------
        Format, optional
            What described the earlier store, also when the run after it was killed. Its shards stay until `finish`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table_path.parent.mkdir(parents=True, exist_ok=True)
        earlier = self.folder / EARLIER_FILE
        # Renamed and not rewritten, since DVC may have put a link into its cache here.
        with contextlib.suppress(FileNotFoundError):
            (self.folder / FORMAT_FILE).replace(earlier)
        try:
            return Format.from_json(earlier.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def save_shard(self, prefix: str, blocks: list[NDArray[np.float32]]) -> Shard:
        """Write rows as `<prefix>-<digest>.npy`, unless they are there.

        Parameters
        ----------
        prefix : str
            Which part of the corpus the rows are.
        blocks : list of ndarray of float32, each of shape (n, n_bins, n_frames)
            The rows, in order; those that were read from a shard may have its type.
        """
        dtype = np.dtype(self.dtype).newbyteorder("<")
        n_rows = sum(len(block) for block in blocks)
        header = io.BytesIO()
        described = {"descr": dtype.str, "fortran_order": False, "shape": (n_rows, *blocks[0].shape[1:])}
        np.lib.format.write_array_header_1_0(header, described)
        chunks: list[Content] = [header.getvalue()]
        chunks += [np.ascontiguousarray(block, dtype=dtype).reshape(-1).view(np.uint8).data for block in blocks]
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
        sha256 = digest.hexdigest()
        shard = Shard(f"{prefix}-{sha256[:16]}.npy", n_rows, sum(map(len, chunks)), sha256)
        if not self.shards.is_intact(shard.name, shard.n_bytes, sha256):
            self.shards.put(shard.name, chunks)
        return shard

    def finish(
        self,
        shards: Iterable[Shard],
        table: pa.Table,
        shape: tuple[int, int],
        parameters: dict[str, Any],
        versions: dict[str, Any],
    ) -> Format:
        """Write the table, then `format.json`, and remove shards of earlier runs that it does not name.

        Those in a storage stay, since other revisions may name them; `pipeline.stages.prune` removes them.

        Raises
        ------
        StoreError
            A shard is not there any more.
        """
        shards = tuple(shards)
        check_sizes(self.shards, shards)
        temporary = self.table_path.with_name(f".{self.table_path.name}.{secrets.token_hex(8)}.partial")
        pq.write_table(table.cast(TABLE_SCHEMA), temporary, compression="zstd")
        table_sha256 = file_sha256(temporary)
        temporary.replace(self.table_path)
        described = Format(parameters, versions, shape, shards, table_sha256)
        self._remove_stale(set() if self.has_storage else {shard.name for shard in described.shards})
        unfinished = self.folder / f".{FORMAT_FILE}.partial"
        unfinished.write_text(described.to_json(), encoding="utf-8")
        unfinished.replace(self.folder / FORMAT_FILE)
        (self.folder / EARLIER_FILE).unlink(missing_ok=True)
        return described

    def _remove_stale(self, kept: set[str]) -> None:
        """Remove shards that are not kept, and what killed runs left; nothing that this class did not name."""
        for path in self.folder.iterdir():
            is_ours = SHARD_NAME.fullmatch(path.name) or PARTIAL_NAME.fullmatch(path.name)
            if is_ours and path.name not in kept:
                path.unlink()
        digest = "[0-9a-f]" * 16
        for path in self.table_path.parent.glob(f".{glob.escape(self.table_path.name)}.{digest}.partial"):
            path.unlink()


class Store:
    """Reads a store, its shards mapped and not copied.

    Parameters
    ----------
    folder, table_path : path-like
        As given to `Saver`, or as `share` returned them.
    storage : str, optional
        As given to `Saver`.

    Raises
    ------
    StoreError
        The store is absent, unfinished, of another version, or a file is not the one that `format.json` names.
    ResourceError
        The storage does not answer.
    """

    def __init__(
        self, folder: str | os.PathLike[str], table_path: str | os.PathLike[str], storage: str | None = None
    ) -> None:
        self.folder = Path(folder).absolute()
        self.table_path = Path(table_path).absolute()
        path = self.folder / FORMAT_FILE
        try:
            content = path.read_bytes()
            self.format = Format.from_json(content.decode())
        except FileNotFoundError as error:
            raise StoreError(f"{path}: missing; the preprocess stage has not finished here") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error
        # Of `format.json`, which holds the digests of everything else.
        self.digest = hashlib.sha256(content).hexdigest()
        self._shards = shard_storage(self.folder, storage)
        self._mapped: dict[int, NDArray[np.floating[Any]]] = {}
        check_sizes(self._shards, self.format.shards)

    @classmethod
    def fetch(cls, location: str, storage: str) -> "Store":
        """Return a store of which `share` has written to a location what describes it."""
        with open_storage(location).fetched() as folder:
            store = cls(folder, folder / _TABLE_FILE, storage)
            # Now, since the folder may be a copy that goes.
            assert store.table is not None
            return store

    def share(self, location: str) -> None:
        """Write what describes this store to a location, for workers that do not see its folder, to `fetch` it."""
        shared = open_storage(location)
        shared.put(_TABLE_FILE, [self.table_path.read_bytes()])
        shared.put(FORMAT_FILE, [(self.folder / FORMAT_FILE).read_bytes()])

    @cached_property
    def table(self) -> pa.Table:
        """The min-max table: one line per row, in the order of shards and rows."""
        return read_table(self.table_path, self.format)

    @property
    def shards(self) -> list[NDArray[np.floating[Any]]]:
        """Every shard as a read-only map of shape (n_rows, n_bins, n_frames), of the type on disk."""
        return self._map(range(len(self.format.shards)))

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows by their place in the table as float32, shape (n, n_bins, n_frames)."""
        x = np.empty((len(indices), *self.format.shape), dtype=np.float32)
        shard_of, row_of = (places[indices].tolist() for places in self._places)
        self._map(sorted(set(shard_of)))
        for out, shard, row in zip(x, shard_of, row_of, strict=True):
            out[...] = self._mapped[shard][row]
        return x

    def verify(self) -> None:
        """Compare every digest.

        Raises
        ------
        StoreError
            A file differs from the one that was written.
        """
        assert self.table is not None
        for shard in self.format.shards:
            found = self._shards.digest(shard.name)
            if found != shard.sha256:
                raise StoreError(f"{self._shards.where(shard.name)}: sha256 is {found}, expected {shard.sha256}")

    def _map(self, wanted: Sequence[int]) -> list[NDArray[np.floating[Any]]]:
        """Return shards by their number, those that nobody has asked for yet being opened side by side."""
        new = [number for number in wanted if number not in self._mapped]
        if new:
            with ThreadPoolExecutor(_FETCHES) as executor:
                self._mapped.update(zip(new, executor.map(self._open, new), strict=True))
        return [self._mapped[number] for number in wanted]

    def _open(self, number: int) -> NDArray[np.floating[Any]]:
        shard = self.format.shards[number]
        try:
            return self.format.map(shard, self._shards.local(shard.name, shard.n_bytes, shard.sha256))
        except FileNotFoundError as error:
            raise missing(self._shards, shard) from error

    @cached_property
    def _places(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return columns.values(self.table["shard"]), columns.values(self.table["row"])


def shard_storage(folder: Path, storage: str | None) -> Storage:
    """Return where the shards of a store lie: in its folder, or in a storage."""
    return Folder(folder) if storage is None else open_storage(storage).at(SHARDS)
