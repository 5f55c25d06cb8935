"""The process that decodes: answers its parent's requests until the parent is gone. Started by `pipeline.isolation`.

A request is a method of a loader and its arguments. The answer's arrays lie in memory that both share.
"""

import mmap
import os
import pickle
import resource
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.errors import AudioError

# Of what is shared, the start says which file of a request the child is at, so that the parent can read it when the
# child is gone; behind it lie the arrays of its answer, since a socket would take several times as long.
_PROGRESS_BYTES = 8


class Shared:
    """Memory that parent and child share: a file without a name, that grows when an answer does not fit."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)

    @property
    def place(self) -> int:
        """Which file of a request the child is at."""
        return int.from_bytes(self._map[:_PROGRESS_BYTES], "little")

    @place.setter
    def place(self, place: int) -> None:
        self._map[:_PROGRESS_BYTES] = place.to_bytes(_PROGRESS_BYTES, "little")

    def put(self, buffers: list[memoryview]) -> list[int]:
        """Write buffers, and return their sizes."""
        sizes = [buffer.nbytes for buffer in buffers]
        n_bytes = _PROGRESS_BYTES + sum(sizes)
        if n_bytes > len(self._map):
            os.ftruncate(self.descriptor, n_bytes)
            self._map.close()
            self._map = mmap.mmap(self.descriptor, 0)
        start = _PROGRESS_BYTES
        for buffer in buffers:
            self._map[start : start + buffer.nbytes] = buffer
            start += buffer.nbytes
        return sizes

    def copies(self, sizes: list[int]) -> list[bytearray]:
        """Return copies of buffers of these sizes."""
        if _PROGRESS_BYTES + sum(sizes) > len(self._map):
            self._map.close()
            self._map = mmap.mmap(self.descriptor, 0)
        found, start = [], _PROGRESS_BYTES
        with memoryview(self._map) as view:
            for size in sizes:
                found.append(bytearray(view[start : start + size]))
                start += size
        return found

    def close(self) -> None:
        """Let go of it."""
        self._map.close()
        os.close(self.descriptor)


def serve(connection: Connection, shared: Shared) -> None:
    """Be the child: answer requests until the parent is gone."""
    loader, limits = pickle.loads(connection.recv_bytes())
    _limit_memory(limits.memory_bytes)
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            return
        _limit_cpu(limits.cpu_s)
        progress = partial(_report_progress, connection, shared, limits.cpu_s)
        try:
            if name == "load_many":
                paths = _counted(arguments[0], shared, limits.cpu_s)
                _send(connection, shared, "item", loader.load_many(paths, progress=progress))
            elif name == "stream":
                for block in loader.stream(*arguments):
                    _limit_cpu(limits.cpu_s)
                    _send(connection, shared, "item", block)
            else:
                _send(connection, shared, "item", loader.examine(*arguments, progress))
        except AudioError as error:
            _send(connection, shared, "error", error)
        else:
            _send(connection, shared, "end", None)


def _report_progress(connection: Connection, shared: Shared, cpu_s: int) -> None:
    """Begin to count anew what a file may cost: so much until the next sign of life."""
    _limit_cpu(cpu_s)
    _send(connection, shared, "progress", None)


def _counted(paths: list[Any], shared: Shared, cpu_s: int) -> Iterator[Any]:
    """Yield paths, and leave a note of which one is out."""
    for place, path in enumerate(paths):
        shared.place = place
        _limit_cpu(cpu_s)
        yield path


def _send(connection: Connection, shared: Shared, kind: str, value: Any) -> None:
    """Send a message whose arrays lie in shared memory, and wait until they have been copied."""
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps((kind, value), protocol=5, buffer_callback=buffers.append)
    connection.send((shared.put([buffer.raw() for buffer in buffers]), message))
    connection.recv()


def _limit_cpu(seconds: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))


def _limit_memory(n_bytes: int) -> None:
    """Refuse the process more memory than that beyond what it has, where the system can tell."""
    status = Path("/proc/self/statm")
    if status.exists():
        has = int(status.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (has + n_bytes, hard))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), Shared(int(sys.argv[2])))
