"""Decoding in a process of its own, so that a decoder that crashes, hangs or swells costs one file and no more.

Plain WAV, of which a decoder only copies numbers, is decoded here, since a child would cost 65 us a clip.

`IsolatedLoader` is a `Loader` to those who call it. Behind it, each process that loads has one child, which is started
when it is first needed, decodes what it is sent, and ends with its parent. Of a child that died it is known which file
it was at: that one is refused, once a second child has died of it too, and the others are sent to the next child.
"""

import atexit
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.child import Shared
from pipeline.decoder import is_trusted, opened
from pipeline.errors import AudioError
from pipeline.loader import Loader, UntrustedError
from pipeline.recording import Facts, Recording

# Of the memory that is shared with a child, at first.
_SHARED_BYTES = 4 << 20
# One thread, and memory that is used again instead of given back after each request.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"} | dict.fromkeys(
    ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(512 << 20)
)


@dataclass(frozen=True)
class Limits:
    """What one file may cost.

    Attributes
    ----------
    cpu_s : int
        Seconds of a processor without an answer: unlike those of a clock they do not depend on what else the machine
        does.
    wall_s : float
        Seconds of a clock without an answer.
    memory_bytes : int
        Beyond what the child has when it starts.
    """

    cpu_s: int = 120
    wall_s: float = 900.0
    memory_bytes: int = 4 << 30


class IsolatedLoader:
    """Loads as its loader does, in a child process.

    Parameters
    ----------
    loader : Loader
        Or anything with its methods, whose class can be imported.
    limits : Limits, optional
    """

    def __init__(self, loader: Loader, limits: Limits | None = None) -> None:
        self._loader = loader
        self._limits = limits or Limits()

    def __getattr__(self, name: str) -> Any:
        """Return what needs no decoder: rates, lengths, digests."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def load_many(self, paths: Iterable[str | os.PathLike[str]]) -> list[Recording | AudioError]:
        """Load the starts of several recordings, as `Loader.load_many` does."""
        wanted = list(paths)
        found = self._loader.load_many(wanted, trusted_only=True)
        places = [place for place, each in enumerate(found) if isinstance(each, UntrustedError)]
        isolated = iter(self._load_isolated([wanted[place] for place in places]))
        return [next(isolated) if isinstance(each, UntrustedError) else each for each in found]

    def examine(self, path: str | os.PathLike[str]) -> Facts:
        """Return what is known of a recording, as `Loader.examine` does."""
        if _is_trusted(path):
            return self._loader.examine(path)
        (facts,) = self._call("examine", path)
        return cast(Facts, facts)

    def stream(
        self, path: str | os.PathLike[str], facts: Facts, segments: range, n_overlap: int
    ) -> Iterator[list[NDArray[np.float32]]]:
        """Yield segments of a recording, as `Loader.stream` does."""
        if _is_trusted(path):
            return self._loader.stream(path, facts, segments, n_overlap)
        return self._call("stream", path, facts, segments, n_overlap)

    def _load_isolated(self, paths: list[str | os.PathLike[str]]) -> list[Recording | AudioError]:
        """Return what children make of recordings, the next one going on where one died."""
        found: list[Recording | AudioError] = []
        while len(found) < len(paths):
            found.extend(self._load_while_alive(paths[len(found) :]))
        return found

    def _load_while_alive(self, paths: list[str | os.PathLike[str]]) -> list[Recording | AudioError]:
        """Return what one child makes of recordings, of which those after the one that it dies of are left out."""
        found: list[Recording | AudioError]
        try:
            (found,) = self._child().request("load_many", paths)
        except _DiedError as death:
            before = self._load_isolated(paths[: death.place])
            try:
                (found,) = self._call("load_many", [paths[death.place]])
            except AudioError as error:
                found = [error]
            return before + found
        return found

    def _call(self, name: str, *arguments: Any) -> Iterator[Any]:
        """Yield what a method of the child's loader yields, of a single file."""
        n_yielded = 0
        for attempt in (1, 2):
            try:
                for place, item in enumerate(self._child().request(name, *arguments)):
                    # A second child repeats what the first one had sent.
                    if place >= n_yielded:
                        n_yielded += 1
                        yield item
            except _DiedError as death:
                if attempt == 2:
                    raise AudioError("decoder died", death.reason) from death
            else:
                return

    def _child(self) -> "_Child":
        """Return this process's living child for this loader."""
        key = pickle.dumps((self._loader, self._limits))
        child = _children.get(key)
        if child is None or child.is_dead:
            child = _children[key] = _Child(key, self._limits)
        return child


def _is_trusted(path: str | os.PathLike[str]) -> bool:
    with opened(path) as raw:
        return is_trusted(raw)


class _DiedError(Exception):
    """A child died at the file of a request that has this place, for this reason."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason


class _Child:
    """A process that decodes."""

    def __init__(self, key: bytes, limits: Limits) -> None:
        self._limits = limits
        self._owner = os.getpid()
        self._shared = Shared(_shared_file())
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = theirs.fileno(), self._shared.descriptor
            paths = os.pathsep.join(path or os.curdir for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.child", *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths, **_ENVIRONMENT},
            )
        self._connection = Connection(ours.detach())
        self._connection.send_bytes(key)

    @property
    def is_dead(self) -> bool:
        """Whether it has ended, or belongs to a process that this one was forked from."""
        return self._owner != os.getpid() or self._process.poll() is not None

    def request(self, name: str, *arguments: Any) -> Iterator[Any]:
        """Yield what a method of the child's loader yields.

        Raises
        ------
        AudioError
            As the method does.
        _DiedError
            The child is gone.
        """
        is_finished = False
        self._shared.place = 0
        try:
            self._connection.send((name, arguments))
            while True:
                if not self._connection.poll(self._limits.wall_s):
                    raise _DiedError(self._place, f"no answer in {self._limits.wall_s:g} s")
                kind, value = self._receive()
                if kind == "progress":
                    continue
                if kind != "item":
                    is_finished = True
                if kind == "end":
                    return
                if kind == "error":
                    raise value
                yield value
        except (EOFError, OSError) as error:
            raise _DiedError(self._place, self._last_words()) from error
        finally:
            if not is_finished:  # what comes next from it would be taken for the answer to another request
                self.end()

    @property
    def _place(self) -> int:
        return self._shared.place

    def _receive(self) -> tuple[str, Any]:
        """Return a message with copies of its arrays, and let the child go on."""
        sizes, message = self._connection.recv()
        answer = pickle.loads(message, buffers=self._shared.copies(sizes))
        self._connection.send(None)
        return cast(tuple[str, Any], answer)

    def _last_words(self) -> str:
        """Return how the process ended."""
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the decoder's process closed its connection"
        if code == -signal.SIGXCPU:
            return f"the decoder took more than {self._limits.cpu_s} s of a processor"
        if code < 0:
            return f"the decoder's process was ended by {signal.Signals(-code).name}"
        return f"the decoder's process ended with status {code}"

    def end(self) -> None:
        """End it, and let go of what it had."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._shared.close()


# One child for each loader in each process that loads.
_children: dict[bytes, _Child] = {}


@atexit.register
def _end_children() -> None:
    for child in _children.values():
        if not child.is_dead:
            child.end()


def _shared_file() -> int:
    """Return a descriptor of a file that has no name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("generative-music")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _SHARED_BYTES)
    return descriptor
