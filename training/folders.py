"""Named folders that are whole or absent: on a disk by their name, in a bucket by a marker that is written last.

Knows nothing of what they hold. One process writes, and any may read; one whose place another has taken finds that out
before what it wrote is there.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pipeline.errors import ModelError
from pipeline.storage import Folder, Storage, open_storage

_MARKER = ".json"
# Who writes, in the name of what is not whole yet.
_WRITER = secrets.token_hex(4)


class Folders(Protocol):
    """What both kinds do.

    Attributes
    ----------
    storage : Storage
        Where they are.
    """

    storage: Storage

    def names(self) -> list[str]:
        """Return the names of those that are whole, rising."""

    def publish(self, name: str, write: Callable[[Path], None], confirm: Callable[[], None] = lambda: None) -> None:
        """Let a function write a folder, which is there under its name when it is whole.

        Parameters
        ----------
        name : str
        write : callable
            Is given an empty folder.
        confirm : callable, optional
            Called right before what was written replaces what was there; by raising it prevents that.
        """

    def opened(self, name: str) -> AbstractContextManager[Path]:
        """Return a folder of this machine that holds what was published, for the length of a `with` block.

        Raises
        ------
        FileNotFoundError
            It is not there, or not any more.
        """

    def read(self, name: str, file: str) -> bytes:
        """Return the content of one file of a folder; errors as of `opened`."""

    def keep(self, names: Collection[str]) -> None:
        """Remove all but those of some names, and what killed processes left."""

    def clear(self) -> None:
        """Remove all."""


class LocalFolders:
    """Folders on a disk, which get their names when they are whole."""

    def __init__(self, storage: Folder) -> None:
        self.storage: Storage = storage
        self._path = storage.path

    def names(self) -> list[str]:
        """Return the names of those that are whole, rising."""
        return [name for name in self.storage.folders() if not name.startswith(".")]

    def publish(self, name: str, write: Callable[[Path], None], confirm: Callable[[], None] = lambda: None) -> None:
        """Write a folder under another name, and give it its own when it is whole."""
        partial, target = self._path / f".{name}.{_WRITER}.partial", self._path / name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        confirm()
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Yield the folder itself."""
        yield self._path / name

    def read(self, name: str, file: str) -> bytes:
        """Return the content of one file of a folder."""
        return (self._path / name / file).read_bytes()

    def keep(self, names: Collection[str]) -> None:
        """Remove all but those of some names, and what killed processes left."""
        for path in self._path.iterdir():
            if path.name not in names:
                # Another one may be writing there yet, in vain.
                shutil.rmtree(path, ignore_errors=path.name.startswith("."))

    def clear(self) -> None:
        """Remove all."""
        self.storage.clear()


class BucketFolders:
    """Prefixes of a bucket, each with a marker beside it that names its objects and their digests."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def names(self) -> list[str]:
        """Return the names of those that have a marker, rising."""
        names = [entry.name for entry in self.storage.entries() if entry.name.endswith(_MARKER)]
        return sorted(name.removesuffix(_MARKER) for name in names)

    def publish(self, name: str, write: Callable[[Path], None], confirm: Callable[[], None] = lambda: None) -> None:
        """Write a folder here, upload its files, and then the marker."""
        digests = {}
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            confirm()
            self.storage.remove(f"{name}{_MARKER}")
            for path in sorted(Path(folder).iterdir()):
                content = path.read_bytes()
                self.storage.at(name).put(path.name, [content])
                digests[path.name] = hashlib.sha256(content).hexdigest()
        self.storage.put(f"{name}{_MARKER}", [json.dumps(digests, indent=2).encode()])

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Yield a folder of copies."""
        with tempfile.TemporaryDirectory() as folder:
            for file, digest in self._digests(name).items():
                Path(folder, file).write_bytes(self._get(name, file, digest))
            yield Path(folder)

    def read(self, name: str, file: str) -> bytes:
        """Return the content of one object of a folder."""
        digests = self._digests(name)
        if file not in digests:
            raise FileNotFoundError(f"{self.storage.at(name).where(file)}: was never written")
        return self._get(name, file, digests[file])

    def keep(self, names: Collection[str]) -> None:
        """Remove the markers of all others, then their objects."""
        for name in set(self.names()).difference(names):
            self.storage.remove(f"{name}{_MARKER}")
        for name in set(self.storage.folders()).difference(names):
            self.storage.at(name).clear()

    def clear(self) -> None:
        """Remove all, markers first."""
        self.keep(())
        self.storage.clear()

    def _digests(self, name: str) -> dict[str, str]:
        marker = f"{name}{_MARKER}"
        try:
            return dict(json.loads(self.storage.get(marker)))
        except ValueError as error:
            raise ModelError(
                f"{self.storage.where(marker)}: cannot be read: {error}; remove {self.storage.location} to start afresh"
            ) from error

    def _get(self, name: str, file: str, digest: str) -> bytes:
        content = self.storage.at(name).get(file)
        if hashlib.sha256(content).hexdigest() != digest:
            if self._digests(name).get(file) != digest:
                raise FileNotFoundError(f"{name} was published anew meanwhile")
            raise ModelError(
                f"{self.storage.at(name).where(file)}: is not what was written; remove {self.storage.location} to "
                "start afresh"
            )
        return content


def open_folders(location: str | os.PathLike[str]) -> Folders:
    """Return the folders at a location: a path, or `s3://bucket/prefix`."""
    storage = open_storage(location)
    return LocalFolders(storage) if isinstance(storage, Folder) else BucketFolders(storage)
