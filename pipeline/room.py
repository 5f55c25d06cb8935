"""Memory for the rows of a unit of work, which the next unit uses again."""

import ctypes
import math
import sys
import threading
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

# Half as much again as a shard is planned to have; beyond, memory comes from the system.
ROOM_BYTES = 48 << 20
# A file is written fastest in pieces of about this size.
_JOINED_BYTES = 1 << 20

# Of glibc's `mallopt`: how much freed memory is kept at the end of the heap, and from which size on an array has pages
# of its own. By itself glibc gives memory back after each block of clips, and a page that comes anew takes 0.7 us.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGE_BYTES = 64 << 20, 32 << 20


@cache
def keep_memory() -> None:
    """Let this process keep some memory that it frees, where its allocator can be told."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


class Room(threading.local):
    """What a thread computes into: to fill memory that it had before takes less time than to get it anew."""

    def __init__(self) -> None:
        self._values = np.empty(0, dtype=np.float32)
        self._n_taken = 0

    def clear(self) -> None:
        """Take back what was given out, which nobody may read any more."""
        self._n_taken = 0

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return an array of which the values are not set."""
        n_values = math.prod(shape)
        if not len(self._values):
            self._values = np.empty(ROOM_BYTES // 4, dtype=np.float32)
        start, self._n_taken = self._n_taken, self._n_taken + n_values
        if self._n_taken > len(self._values):
            self._n_taken = start
            return np.empty(shape, dtype=np.float32)
        return self._values[start : self._n_taken].reshape(shape)


room = Room()


def join(pieces: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return pieces (n, n_bins, n_frames), those that follow each other in memory as one, without copying them."""
    runs: list[list[NDArray[np.float32]]] = []
    end, n_bytes = 0, 0
    for piece in pieces:
        address = piece.__array_interface__["data"][0]
        is_next = address == end and piece.base is not None and piece.base is runs[-1][0].base
        if is_next and n_bytes < _JOINED_BYTES:
            runs[-1].append(piece)
            n_bytes += piece.nbytes
        else:
            runs.append([piece])
            n_bytes = piece.nbytes
        end = address + piece.nbytes
    return [as_strided(run[0], (sum(map(len, run)), *run[0].shape[1:]), run[0].strides) for run in runs]
