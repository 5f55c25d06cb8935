"""Where files lie that several machines need: a folder that all of them see, or a bucket of an object store.

A storage is known by its location, `/a/folder` or `s3://bucket/prefix`. A file in it is whole or absent, whoever dies
while it is written. Knows nothing of what files hold; of object stores, `pipeline.bucket` does.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from pipeline.errors import ResourceError

Content = bytes | memoryview
# What may stand behind the `?` of a bucket's location.
S3_OPTIONS = ("endpoint_override", "scheme", "region")


@dataclass(frozen=True)
class Entry:
    """A file of a storage: its name, size in bytes, and when it was written, in seconds of Unix time."""

    name: str
    n_bytes: int
    modified_s: float


class Storage(Protocol):
    """What folders and buckets do. Cheap to make, and sent to workers as it is.

    Attributes
    ----------
    poll_s : float
        How often one may ask for what is new, in seconds.
    """

    poll_s: float

    @property
    def location(self) -> str:
        """What `open_storage` makes it of, on any machine."""

    def at(self, name: str) -> "Storage":
        """Return the storage that lies below this one under a name."""

    def beside(self, suffix: str) -> "Storage":
        """Return the storage whose name is this one's with a suffix."""

    def where(self, name: str) -> str:
        """Return where a file lies, for a person."""

    def put(self, name: str, chunks: Sequence[Content]) -> None:
        """Write a file, or write it anew: it is there when it is whole.

        Raises
        ------
        ResourceError
            It cannot be written, for longer than a server takes to come back.
        """

    def get(self, name: str) -> bytes:
        """Return a file's content.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ResourceError
            It cannot be read.
        """

    def entries(self) -> list[Entry]:
        """Return the files that lie here and not further below, by name; none where nothing was ever written."""

    def folders(self) -> list[str]:
        """Return the names below which files lie, or lay: servers forget empty ones late."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def clear(self) -> None:
        """Remove every file, also further below."""

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file as it lies there; errors as of `get`."""

    def is_intact(self, name: str, n_bytes: int, sha256: str) -> bool:
        """Return whether a file is there as it was written, as far as can be told without fetching it."""

    def local(self, name: str, n_bytes: int, sha256: str) -> Path:
        """Return where a file can be mapped on this machine, which a bucket fetches and verifies first.

        Raises
        ------
        StoreError
            What was fetched has another digest.
        FileNotFoundError
            There is no such file.
        ResourceError
            It cannot be fetched.
        """

    def fetched(self) -> AbstractContextManager[Path]:
        """Return all files that lie here as a folder of this machine, for the length of a `with` block."""

    def free_bytes(self) -> int | None:
        """Return how much there is room for, or None where nobody knows."""


class Folder:
    """A folder, which every machine that is told of it must see under the same path.

    Parameters
    ----------
    path : path-like
    """

    poll_s = 0.5

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Absolute, since a worker of a cluster runs in another folder.
        self.path = Path(path).absolute()

    @property
    def location(self) -> str:
        """Its path."""
        return str(self.path)

    def at(self, name: str) -> "Folder":
        """Return a folder in this one."""
        return Folder(self.path / name)

    def beside(self, suffix: str) -> "Folder":
        """Return a folder next to this one."""
        return Folder(self.path.with_name(f"{self.path.name}{suffix}"))

    def where(self, name: str) -> str:
        """Return a file's path."""
        return str(self.path / name)

    def put(self, name: str, chunks: Sequence[Content]) -> None:
        """Write a file under another name, and give it its own when it is whole."""
        partial = self.path / f".{name}.{secrets.token_hex(8)}.partial"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            # Renamed and not rewritten, since DVC may have put a link into its cache here.
            partial.replace(self.path / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise ResourceError(f"{self.path / name}: cannot be written: {error.strerror}") from error

    def get(self, name: str) -> bytes:
        """Return a file's content."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ResourceError(f"{self.path / name}: cannot be read: {error.strerror}") from error

    def entries(self) -> list[Entry]:
        """Return the files in it, those that are being written included."""
        found = []
        for path in self._paths():
            # What another process removes meanwhile is not there.
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    status = path.stat()
                    found.append(Entry(path.name, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.name)

    def folders(self) -> list[str]:
        """Return the names of folders in it."""
        return sorted(path.name for path in self._paths() if path.is_dir())

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove it, with all that is in it: in one step, since half of it would read as damaged."""
        removed = self.path.with_name(f".{self.path.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        if self.path.exists():
            self.path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a file's bytes."""
        return file_sha256(self.path / name)

    def is_intact(self, name: str, n_bytes: int, sha256: str) -> bool:
        """Return whether a file has that size and digest."""
        path = self.path / name
        try:
            return path.stat().st_size == n_bytes and file_sha256(path) == sha256
        except OSError:
            return False

    def local(self, name: str, n_bytes: int, sha256: str) -> Path:
        """Return a file's path: here it is mapped where it lies."""
        del n_bytes, sha256
        return self.path / name

    @contextlib.contextmanager
    def fetched(self) -> Iterator[Path]:
        """Yield its path."""
        yield self.path

    def free_bytes(self) -> int | None:
        """Return how much room there is on the disk that it is on, or will be on."""
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        return shutil.disk_usage(there).free

    def _paths(self) -> list[Path]:
        try:
            return list(self.path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ResourceError(f"{self.path}: cannot be listed: {error.strerror}") from error


def open_storage(location: str | os.PathLike[str], is_patient: bool = True) -> Storage:
    """Return the storage at a location, without looking whether it is there.

    Parameters
    ----------
    location : path-like
        `s3://bucket/prefix`, or a folder's path.
    is_patient : bool
        Whether a server that does not answer is given the time to restart.

    Raises
    ------
    ValueError
        It is an address, and not one of a bucket.
    """
    if "://" not in (address := os.fspath(location)):
        return Folder(address)
    from pipeline.bucket import DELAYS_S, Bucket  # noqa: PLC0415 - Arrow's S3 takes a while to load

    return Bucket(address, DELAYS_S if is_patient else DELAYS_S[:2])


def check_location(location: str) -> None:
    """Refuse what cannot be a storage, without looking whether it is there.

    Raises
    ------
    ValueError
        It is neither an absolute path nor an address `s3://bucket/prefix` without credentials.
    """
    if "://" not in location:
        if not Path(location).is_absolute():
            raise ValueError(
                f"{location!r} must be null, an absolute path, since workers run in other folders, or s3://bucket/prefix"
            )
        return
    parts = urlsplit(location)
    if "@" in parts.netloc:
        raise ValueError("must not hold credentials: they are read from the environment and AWS's files")
    if parts.scheme != "s3" or not parts.netloc or not parts.path.strip("/") or parts.fragment:
        raise ValueError(f"{location!r} must be null, an absolute path, or s3://bucket/prefix")
    for name, values in parse_qs(parts.query, keep_blank_values=True).items():
        if name not in S3_OPTIONS:
            raise ValueError(f"{location!r}: {name} is unknown, expected {', '.join(S3_OPTIONS)}")
        if name == "scheme" and values not in (["http"], ["https"]):
            raise ValueError(f"{location!r}: scheme={values[-1]!r} must be http or https")


@contextlib.contextmanager
def probe(location: str | os.PathLike[str]) -> Iterator[str]:
    """Leave a file in a storage for the length of a `with` block, and yield its name, for `check` on other machines.

    Raises
    ------
    ResourceError
        It cannot be written here, or is not read as it was written.
    """
    storage = open_storage(location, is_patient=False)
    name = f".probe-{secrets.token_hex(8)}"
    storage.put(name, [name.encode()])
    try:
        if _get(storage, name) != name.encode():
            raise ResourceError(f"{storage.where(name)}: is not read as it was written")
        yield name
    finally:
        storage.remove(name)


def check(location: str | os.PathLike[str], seen: str | None = None) -> None:
    """Refuse a storage that cannot be written and read here, or is not the one in which another machine left a probe.

    Parameters
    ----------
    location : path-like
    seen : str, optional
        Name of the other machine's probe.

    Raises
    ------
    ResourceError
        With the location and the reason, in one line.
    """
    if seen is not None:
        storage = open_storage(location, is_patient=False)
        if _get(storage, seen) != seen.encode():
            raise ResourceError(f"{storage.location}: is another place here than where {seen} was written")
    with probe(location):
        pass


def _get(storage: Storage, name: str) -> bytes:
    try:
        return storage.get(name)
    except FileNotFoundError:
        return b""


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
