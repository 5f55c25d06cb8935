"""Columns of Arrow's tables from Python's values and NumPy's, and as NumPy's without a copy; tables to be sent.

`pyarrow.array`, `pyarrow.scalar` and `to_numpy` import pandas where it is installed, to learn whether it is what they
are given, and so does what Ray does to tables on their way: a quarter of a second and 30 MB in the driver and in each
worker.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

# A SHA-256 in hexadecimal digits; one that is not known has none.
DIGEST = np.dtype("S64")


def strings(texts: Sequence[str | None]) -> pa.Array:
    """Return a column of texts, of which None are missing."""
    validity = None
    known = [text for text in texts if text is not None]
    if len(known) < len(texts):
        validity = _bits(np.fromiter((text is not None for text in texts), dtype=bool, count=len(texts)))
        known = [text or "" for text in texts]
    joined = "".join(known)
    encoded: Sequence[str | bytes] = known if joined.isascii() else [text.encode() for text in known]
    ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(texts)))
    content = joined.encode()
    # Of the type that the table has, which counts bytes in 32 bits.
    assert len(content) < 1 << 31
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(content), validity)


def numbers(values: ArrayLike, type: pa.DataType) -> pa.Array:
    """Return a column of integers or floats, of which none is missing; an array of that type is not copied."""
    found = np.ascontiguousarray(values, dtype=_dtype(type))
    return pa.Array.from_buffers(type, len(found), [None, pa.py_buffer(found)])


def column(values: Any, type: pa.DataType) -> pa.Array:
    """Return a column of texts or of numbers."""
    return strings(values) if pa.types.is_string(type) else numbers(values, type)


def values(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers or of truth values, of which none is missing; where it is in one piece, not copied."""
    chunks = [_chunk_values(chunk) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, _dtype(column.type)), *chunks])


def digests(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Return a column of SHA-256 in hexadecimal digits as `DIGEST`; where it is in one piece, not copied."""
    chunks = [_chunk_digests(chunk) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.empty(0, DIGEST), *chunks])


def run_starts(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return where a column's value is not the one before."""
    if not len(column):
        return np.empty(0, dtype=np.int64)
    is_next = values(pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)))
    return np.concatenate([[0], np.flatnonzero(is_next) + 1])


def first_bits(digests: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Return 64 bits of each SHA-256, those of its first 16 digits in some order; of one that is not known, zeros."""
    eights = digests.view("<u8").reshape(-1, DIGEST.itemsize // 8)
    # The code of a letter has a bit that those of 0 to 9 have not, and counts from 1.
    high, low = ((some & 0x0F0F0F0F0F0F0F0F) + ((some >> 6) & 0x0101010101010101) * 9 for some in eights[:, :2].T)
    found: NDArray[np.uint64] = (high << 4) | low
    return found


def pack(table: pa.Table) -> tuple[pa.Schema, pa.Buffer]:
    """Return a table as one piece of memory, of a slice what it shows; pickled, that is sent without a copy."""
    arrays = [_in_one(column) for column in table.columns]
    return table.schema, pa.RecordBatch.from_arrays(arrays, schema=table.schema).serialize()


def unpack(packed: tuple[pa.Schema, pa.Buffer]) -> pa.Table:
    """Return the table that was packed, which is read where it lies."""
    schema, content = packed
    return pa.Table.from_batches([pa.ipc.read_record_batch(content, schema)])


def _in_one(chunked: pa.ChunkedArray) -> pa.Array:
    if chunked.num_chunks == 1:
        return chunked.chunk(0)
    return chunked.combine_chunks() if chunked.num_chunks else column([], chunked.type)


def _dtype(type: pa.DataType) -> np.dtype[Any]:
    if pa.types.is_boolean(type):
        return np.dtype(bool)
    return np.dtype(f"{'i' if pa.types.is_integer(type) else 'f'}{type.bit_width // 8}")


def _bits(truths: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(truths, bitorder="little"))


def _chunk_values(chunk: pa.Array) -> NDArray[Any]:
    assert not chunk.null_count
    dtype, content = _dtype(chunk.type), chunk.buffers()[1]
    if not len(chunk):
        return np.empty(0, dtype)
    if pa.types.is_boolean(chunk.type):
        bits = np.frombuffer(content, dtype=np.uint8)
        return np.unpackbits(bits, count=chunk.offset + len(chunk), bitorder="little")[chunk.offset :].astype(bool)
    return np.frombuffer(content, dtype, len(chunk), chunk.offset * dtype.itemsize)


def _chunk_digests(chunk: pa.Array) -> NDArray[np.bytes_]:
    if not len(chunk):
        return np.empty(0, DIGEST)
    _, offsets, content = chunk.buffers()
    places = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    assert places[-1] - places[0] == len(chunk) * DIGEST.itemsize
    return np.frombuffer(content, DIGEST, len(chunk), int(places[0]))
