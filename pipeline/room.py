"""Memory for the rows of a unit of work, which the next unit uses again."""

import math
import threading

import numpy as np
from numpy.typing import NDArray

# Half as much again as a shard is planned to have; beyond, memory comes from the system.
ROOM_BYTES = 48 << 20


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
