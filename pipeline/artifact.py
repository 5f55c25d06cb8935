"""What a store consists of: names of its files, columns of its table, and `format.json`, which describes the rest.

`pipeline.store` writes and reads it; nobody else knows it.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import StoreError
from pipeline.storage import Storage, file_sha256

FORMAT_VERSION = 4
# Of the rows in shards; whoever reads them gets float32.
Dtype = Literal["float32", "float16"]
FORMAT_FILE = "format.json"
# What described the store before a run that has not finished yet.
EARLIER_FILE = ".format.json.earlier"
# The names that shards get, and have while they are written.
SHARD_NAME = re.compile(r"[0-9a-f]+(\.[0-9]{6})?-[0-9a-f]{16}\.npy")
PARTIAL_NAME = re.compile(r"\.[0-9a-f]+(\.[0-9]{6})?-[0-9a-f]{16}\.npy\.[0-9a-f]{16}\.partial")

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
        ("source_start", pa.int64()),
        ("source_stop", pa.int64()),
        ("decoder", pa.string()),
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

    def map(self, shard: Shard, path: Path) -> NDArray[np.floating[Any]]:
        """Return a shard's rows as a read-only map of its file, which holds them behind a header.

        What the header says is known. `numpy.load` has Python's parser read it, and that fails now and then when
        several threads parse at a time (CPython's issue 106905).
        """
        dtype = np.dtype(self.parameters.get("dtype", "float32"))
        shape = (shard.n_rows, *self.shape)
        return np.memmap(path, dtype, "r", shard.n_bytes - math.prod(shape) * dtype.itemsize, shape)

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


def read_table(path: Path, described: Format, names: list[str] | None = None) -> pa.Table:
    """Return a store's min-max table, or some of its columns.

    Raises
    ------
    StoreError
        It is missing, or not the one that was described.
    """
    try:
        if file_sha256(path) != described.table_sha256:
            raise StoreError(f"{path}: is not the table that {FORMAT_FILE} names")
        with pq.ParquetFile(path) as file:
            return file.read(names)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: missing") from error


def check_sizes(storage: Storage, shards: Iterable[Shard]) -> None:
    """Refuse shards of which one is missing or of another length, which costs no reading.

    Raises
    ------
    StoreError
        Names the first, where it should be, and what to do.
    """
    sizes = {entry.name: entry.n_bytes for entry in storage.entries()}
    for shard in shards:
        if shard.name not in sizes:
            raise missing(storage, shard)
        if sizes[shard.name] != shard.n_bytes:
            raise StoreError(f"{storage.where(shard.name)}: holds {sizes[shard.name]} bytes, expected {shard.n_bytes}")


def missing(storage: Storage, shard: Shard) -> StoreError:
    """Return what there is to say of a shard that is not there."""
    return StoreError(
        f"{storage.where(shard.name)}: missing, though {FORMAT_FILE} names it; copy it there, or make it again with "
        "`dvc repro --force preprocess`"
    )
