"""The artifact format: `Saver` writes it, `Store` reads it, and nobody else knows it.

A store is a folder of shards, plain `.npy` files of float32 rows [n_rows, n_bins, n_frames] in C order that a
trainer maps without copying; beside it a Parquet table with one line per row; and in it `format.json`, written
last, which names every shard and the table with their digests. What `format.json` does not name is not there.
"""

import contextlib
import glob
import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import StoreError

FORMAT_VERSION = 2
FORMAT_FILE = "format.json"
# What described the store before a run that has not finished yet.
EARLIER_FILE = ".format.json.earlier"
_BLOCK_BYTES = 1 << 20

# One line per row of the shards, in the order of shards and rows.
TABLE_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("channel", pa.int32()),
        ("segment", pa.int32()),
        ("start_s", pa.float64()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("min_db", pa.float32()),
        ("max_db", pa.float32()),
        ("peak", pa.float32()),
        ("gain_db", pa.float32()),
        ("sha256", pa.string()),
        ("source_rate", pa.int32()),
        ("source_channels", pa.int32()),
        ("source_samples", pa.int64()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One file of rows: its name, size and digest."""

    name: str
    n_rows: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Format:
    """What `format.json` holds.

    Attributes
    ----------
    parameters : dict
        Every parameter that shaped the numbers.
    versions : dict
        Of the libraries and of the code that shaped them, and the processor's features that NumPy uses.
    shape : tuple of int
        (n_bins, n_frames) of a row.
    shards : tuple of Shard
    table_sha256 : str
    """

    parameters: dict[str, Any]
    versions: dict[str, Any]
    shape: tuple[int, int]
    shards: tuple[Shard, ...]
    table_sha256: str

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.n_rows for shard in self.shards)

    def to_json(self) -> str:
        """Return the text of `format.json`, the same for the same content."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Format":
        """Return what `to_json` wrote.

        Raises
        ------
        ValueError
            The text is no JSON, or of another version.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}, expected an object")
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version!r}, expected {FORMAT_VERSION}")
        try:
            shards = tuple(Shard(**shard) for shard in content.pop("shards"))
            n_bins, n_frames = content.pop("shape")
            return cls(shape=(n_bins, n_frames), shards=shards, **content)
        except (TypeError, KeyError) as error:
            raise ValueError(f"its keys are not those of version {FORMAT_VERSION}: {error}") from error


class Saver:
    """Writes a store. Each file gets its name only when it is whole.

    Parameters
    ----------
    folder : path-like
        Of the shards and `format.json`.
    table_path : path-like
        Of the min-max table.
    """

    def __init__(self, folder: str | os.PathLike[str], table_path: str | os.PathLike[str]) -> None:
        # Absolute, since a worker of a cluster runs in another folder.
        self.folder = Path(folder).absolute()
        self.table_path = Path(table_path).absolute()

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
        """Write rows as `<prefix>-<digest>.npy`.

        Parameters
        ----------
        prefix : str
            Which part of the corpus the rows are.
        blocks : list of ndarray of float32, each of shape (n, n_bins, n_frames)
            The rows, in order.
        """
        n_rows = sum(len(block) for block in blocks)
        temporary = self.folder / f".{prefix}.{secrets.token_hex(8)}.partial"
        with temporary.open("wb") as file:
            writer = _HashingWriter(file)
            header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, *blocks[0].shape[1:])}
            np.lib.format.write_array_header_1_0(writer, header)
            for block in blocks:
                writer.write(np.ascontiguousarray(block, dtype="<f4").reshape(-1).view(np.uint8).data)
        digest = writer.hash.hexdigest()
        name = f"{prefix}-{digest[:16]}.npy"
        temporary.replace(self.folder / name)
        return Shard(name, n_rows, writer.n_bytes, digest)

    def finish(
        self,
        shards: Iterable[Shard],
        table: pa.Table,
        shape: tuple[int, int],
        parameters: dict[str, Any],
        versions: dict[str, Any],
    ) -> Format:
        """Write the table, then `format.json`, and remove shards of earlier runs that it does not name."""
        temporary = self.table_path.with_name(f".{self.table_path.name}.{secrets.token_hex(8)}.partial")
        pq.write_table(table.cast(TABLE_SCHEMA), temporary, compression="zstd")
        table_sha256 = file_sha256(temporary)
        temporary.replace(self.table_path)
        described = Format(parameters, versions, shape, tuple(shards), table_sha256)
        self._remove_stale({shard.name for shard in described.shards})
        unfinished = self.folder / f".{FORMAT_FILE}.partial"
        unfinished.write_text(described.to_json(), encoding="utf-8")
        unfinished.replace(self.folder / FORMAT_FILE)
        (self.folder / EARLIER_FILE).unlink(missing_ok=True)
        return described

    def _remove_stale(self, kept: set[str]) -> None:
        """Remove shards that are not kept, and what killed runs left; nothing that this class did not name."""
        digest = "[0-9a-f]" * 16
        for path in [*self.folder.glob(f"*-{digest}.npy"), *self.folder.glob(f".*.{digest}.partial")]:
            if path.name not in kept:
                path.unlink()
        for path in self.table_path.parent.glob(f".{glob.escape(self.table_path.name)}.{digest}.partial"):
            path.unlink()


class Store:
    """Reads a store, its shards mapped and not copied.

    Parameters
    ----------
    folder, table_path : path-like
        As given to `Saver`.

    Raises
    ------
    StoreError
        The store is absent, unfinished, of another version, or a file is not the one that `format.json` names.
    """

    def __init__(self, folder: str | os.PathLike[str], table_path: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self.table_path = Path(table_path).absolute()
        path = self.folder / FORMAT_FILE
        try:
            self.format = Format.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise StoreError(f"{path}: missing; the preprocess stage has not finished here") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error
        for shard in self.format.shards:
            _check_size(self.folder / shard.name, shard.n_bytes)

    @cached_property
    def table(self) -> pa.Table:
        """The min-max table: one line per row, in the order of shards and rows."""
        return read_table(self.table_path, self.format)

    @cached_property
    def shards(self) -> list[NDArray[np.float32]]:
        """Every shard as a read-only map of shape (n_rows, n_bins, n_frames)."""
        return [np.load(self.folder / shard.name, mmap_mode="r") for shard in self.format.shards]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `format.json`, which holds the digests of everything else."""
        return file_sha256(self.folder / FORMAT_FILE)

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows by their place in the table, shape (n, n_bins, n_frames)."""
        x = np.empty((len(indices), *self.format.shape), dtype=np.float32)
        shard_of, row_of = self._places
        for out, shard, row in zip(x, shard_of[indices].tolist(), row_of[indices].tolist(), strict=True):
            out[...] = self.shards[shard][row]
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
            found = file_sha256(self.folder / shard.name)
            if found != shard.sha256:
                raise StoreError(f"{self.folder / shard.name}: sha256 is {found}, expected {shard.sha256}")

    @cached_property
    def _places(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return self.table["shard"].to_numpy(), self.table["row"].to_numpy()


def read_table(path: Path, described: Format) -> pa.Table:
    """Return a store's min-max table.

    Raises
    ------
    StoreError
        It is missing, or not the one that was described.
    """
    try:
        if file_sha256(path) != described.table_sha256:
            raise StoreError(f"{path}: is not the table that {FORMAT_FILE} names")
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing") from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _HashingWriter:
    """A file that hashes and counts what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.n_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        # In blocks that fit the cache, so that hashing finds them there when the copy to the file has read them.
        for start in range(0, len(data), _BLOCK_BYTES):
            block = data[start : start + _BLOCK_BYTES]
            self.hash.update(block)
            self._file.write(block)
        self.n_bytes += len(data)
        return len(data)


def _check_size(path: Path, n_bytes: int) -> None:
    """Refuse a shard that is missing or of another length, which costs no reading."""
    if not path.is_file():
        raise StoreError(f"{path}: missing, though {FORMAT_FILE} names it")
    if path.stat().st_size != n_bytes:
        raise StoreError(f"{path}: holds {path.stat().st_size} bytes, expected {n_bytes}")
