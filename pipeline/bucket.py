"""A prefix of an S3 bucket as a storage, by Arrow: a server that is away is waited for, what was fetched is kept.

An object appears when its upload is complete, so that one is whole or absent. Credentials come from the environment
and from AWS's files, never from a location.
"""

import contextlib
import fcntl
import hashlib
import os
import random
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import platformdirs
from pyarrow import fs

from pipeline.errors import ResourceError, StoreError, one_line
from pipeline.storage import Content, Entry

CACHE_VARIABLE = "GENERATIVE_MUSIC_CACHE"
# Between tries: two minutes in all, in which a server restarts.
DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_TIMEOUT_S = 60.0
_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
# What no waiting changes.
_FINAL = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|INVALID_CLIENT_TOKEN|EXPIRED|Expired"
    "|HTTP status (301|401|403)"
)

Result = TypeVar("Result")


class Bucket:
    """A prefix of a bucket.

    Parameters
    ----------
    location : str
        `s3://bucket/prefix`; behind a `?`, what `pipeline.storage.S3_OPTIONS` names, as Ray and Arrow have it. Without,
        `AWS_ENDPOINT_URL` and `AWS_REGION` say where the server is, or else it is Amazon's.
    delays_s : sequence of float
        Seconds between tries where the server does not answer.
    """

    poll_s = 5.0

    def __init__(self, location: str, delays_s: Sequence[float] = DELAYS_S) -> None:
        parts = urlsplit(location)
        if parts.scheme != "s3":
            raise ValueError(f"{location}: must be s3://bucket/prefix")
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/")
        self._query = parts.query
        self._delays_s = tuple(delays_s)

    @property
    def location(self) -> str:
        """Its address."""
        return f"s3://{self._path}" + (f"?{self._query}" if self._query else "")

    def at(self, name: str) -> "Bucket":
        """Return the prefix below this one."""
        query = f"?{self._query}" if self._query else ""
        return Bucket(f"s3://{self._path}/{name}{query}", self._delays_s)

    def beside(self, suffix: str) -> "Bucket":
        """Return the prefix that is this one with a suffix."""
        query = f"?{self._query}" if self._query else ""
        return Bucket(f"s3://{self._path}{suffix}{query}", self._delays_s)

    def where(self, name: str) -> str:
        """Return an object's address."""
        return f"s3://{self._path}/{name}"

    def put(self, name: str, chunks: Sequence[Content]) -> None:
        """Upload an object, which replaces one of that name when it is complete."""
        # At once: Arrow completes an upload also where the block that writes it is left by an exception.
        content = chunks[0] if len(chunks) == 1 else b"".join(chunks)

        def upload() -> None:
            with self._filesystem.open_output_stream(self._key(name)) as stream:
                stream.write(content)
            found = self._filesystem.get_file_info(self._key(name))
            if not found.is_file or found.size != len(content):
                raise OSError(f"holds {found.size} bytes after {len(content)} were sent")

        self._insist("cannot be written", name, upload)

    def get(self, name: str) -> bytes:
        """Return an object's content."""

        def download() -> bytes:
            with self._filesystem.open_input_file(self._key(name)) as stream:
                content = bytes(stream.readall())
                if len(content) != stream.size():
                    raise OSError(f"{len(content)} of {stream.size()} bytes were received")
                return content

        return self._insist("cannot be read", name, download)

    def entries(self) -> list[Entry]:
        """Return the objects of this prefix, without those further below."""
        return [
            Entry(info.base_name, info.size, info.mtime_ns / 1e9 if info.mtime_ns else 0.0)
            for info in self._infos()
            if info.is_file
        ]

    def folders(self) -> list[str]:
        """Return the prefixes below this one."""
        return [info.base_name for info in self._infos() if info.type == fs.FileType.Directory]

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_file(self._key(name))

        self._insist("cannot be removed", name, delete)

    def clear(self) -> None:
        """Remove every object below this prefix."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_dir(self._path)

        self._insist("cannot be removed", "", delete)

    def digest(self, name: str) -> str:
        """Return the SHA-256 of an object's bytes."""
        return hashlib.sha256(self.get(name)).hexdigest()

    def is_intact(self, name: str, n_bytes: int, sha256: str) -> bool:
        """Return whether an object of that size is there: its name holds its digest, and who fetches it compares."""
        del sha256
        info = self._insist("cannot be looked at", name, lambda: self._filesystem.get_file_info(self._key(name)))
        return bool(info.is_file) and info.size == n_bytes

    def local(self, name: str, n_bytes: int, sha256: str) -> Path:
        """Return where an object is in this machine's cache, after fetching it if it was not there.

        Several processes may ask for the same at once: one fetches, and the others wait for it.
        """
        path = cache_folder() / "shards" / sha256[:2] / f"{sha256}{Path(name).suffix}"
        try:
            if not _has_size(path, n_bytes):
                path.parent.mkdir(parents=True, exist_ok=True)
                with _lock(path.parent / ".lock"):
                    if not _has_size(path, n_bytes):
                        _write(path, self._get_verified(name, sha256))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ResourceError(
                f"{path}: cannot be written: {error.strerror}; {CACHE_VARIABLE} names another folder for the cache"
            ) from error
        return path

    @contextlib.contextmanager
    def fetched(self) -> Iterator[Path]:
        """Yield a folder that holds copies of all objects of this prefix."""
        with tempfile.TemporaryDirectory() as folder:
            for entry in self.entries():
                Path(folder, entry.name).write_bytes(self.get(entry.name))
            yield Path(folder)

    def free_bytes(self) -> int | None:
        """Return nothing: a bucket takes what it is given."""
        return None

    def _get_verified(self, name: str, sha256: str) -> bytes:
        content = self.get(name)
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise StoreError(
                f"{self.where(name)}: sha256 is {found}, expected {sha256}; remove it, and write it again with "
                "`dvc repro --force preprocess`"
            )
        return content

    def _infos(self) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self._path, allow_not_found=True)
        found = self._insist("cannot be listed", "", lambda: self._filesystem.get_file_info(selector))
        return sorted(found, key=lambda info: info.base_name)

    def _insist(self, problem: str, name: str, action: Callable[[], Result]) -> Result:
        """Return what an action returns, and repeat it while the server is away.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        ResourceError
            The server does not answer, or refuses.
        """
        for delay_s in (*self._delays_s, None):
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError as error:
                reason = one_line(error)
                if delay_s is None or _FINAL.search(reason):
                    raise ResourceError(f"{self.where(name)}: {problem}: {reason}") from error
                # Not all workers at once.
                time.sleep(delay_s * random.uniform(0.5, 1.0))
        raise AssertionError

    def _key(self, name: str) -> str:
        return f"{self._path}/{name}"

    @property
    def _path(self) -> str:
        return f"{self._bucket}/{self._prefix}" if self._prefix else self._bucket

    @property
    def _filesystem(self) -> fs.S3FileSystem:
        return _connect(self._bucket, self._query)


def cache_folder() -> Path:
    """Return where this machine keeps what it has fetched: a folder of the user's, or what the environment names."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).absolute() if named else platformdirs.user_cache_path("generative-music")


@lru_cache
def _connect(bucket: str, query: str) -> fs.S3FileSystem:
    """Return Arrow's S3, one for each server in a process."""
    options: dict[str, Any] = {name: values[-1] for name, values in parse_qs(query).items()}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "endpoint_override" not in options and endpoint:
        parts = urlsplit(endpoint)
        options |= {"scheme": parts.scheme, "endpoint_override": parts.netloc}
    if "endpoint_override" not in options and not any(os.environ.get(name) for name in _REGION_VARIABLES):
        options.setdefault("region", fs.resolve_s3_region(bucket))
    return fs.S3FileSystem(**options, connect_timeout=_TIMEOUT_S, request_timeout=_TIMEOUT_S)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process in at a time; the system opens it when that one dies."""
    with path.open("wb") as file:
        # Where the file system knows no locks, both fetch, and the second replaces the same by the same.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, content: bytes) -> None:
    """Write a file, which gets its name when it is whole."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _has_size(path: Path, n_bytes: int) -> bool:
    try:
        return path.stat().st_size == n_bytes
    except FileNotFoundError:
        return False
