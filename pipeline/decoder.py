"""Files of sound as samples, by libsndfile or FFmpeg as their content wants; what is wrong with them, in our words."""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Literal, NamedTuple, NoReturn, TypeAlias

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from pipeline.containers import ContainerFile, Entry, Progress
from pipeline.errors import AudioError
from pipeline.signatures import LIBSNDFILE, Read, identify

SoundFile: TypeAlias = sf.SoundFile | ContainerFile
Library = Literal["libsndfile", "ffmpeg"]

# A chunk whose header promises more bytes than the file has, in libsndfile's own log: WAV, AIFF, AU, W64, SVX, WVE.
_CUT_CHUNK = re.compile(
    r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size|Data length)\s*:? (\d+) \(?should be (\d+)\)?", re.MULTILINE
)
# The same where it names no numbers: VOC, Matlab 4.
_CUT = re.compile("seems to be (?:a )?truncated", re.IGNORECASE)
# The number of samples in its log, where it counts those of the file instead: AVR, MPC 2000, Matlab.
_STATED = re.compile(r"^\s*(?:Frames|.*Cols)\s*: (\d+)", re.MULTILINE)
_LOGGED = frozenset(["AVR", "MPC2K", "MAT4", "MAT5"])
# Of NIST SPHERE, which is not in its log.
_SPHERE_COUNT = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)
_SPHERE_BYTES = 1024
_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
# Encoders that write to a pipe do not know the length, and leave a number near the top of the field.
_LENGTH_UNKNOWN = 0x7F00_0000
# What libsndfile then says of a FLAC file, in which it cannot seek.
_FRAMES_UNKNOWN = 2**62
# Integers of 32 bits, written as floats without scaling, are below; far above, squares overflow float32.
_LOUDEST = 2.0**32
# How far before its end a file is entered to see that it is there: libsndfile fails in the last block of some formats.
_LAST_SAMPLES = 1024
# How much is hashed at a time.
_HASHED_BYTES = 1 << 20


class Decoded(NamedTuple):
    """Samples (n_samples, n_channels) of a file at its rate in Hz; how many it has in all, and who decodes it.

    `start` and `stop` are the samples of the file between which it is heard; by default all.
    """

    samples: NDArray[np.float32]
    rate: int
    n_total: int
    library: Library
    start: int = 0
    stop: int | None = None


@contextmanager
def opened(source: str | os.PathLike[str] | bytes) -> Iterator[BinaryIO]:
    """Open a file, or the content of one, and say in our words what goes wrong with it."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb", buffering=0) as raw:  # noqa: PTH123 - a Path costs more
            yield raw
    except OSError as error:
        raise AudioError("unreadable", error.strerror or str(error)) from error
    except sf.LibsndfileError as error:
        raise AudioError("not audio", str(error.error_string).strip()) from error
    except MemoryError as error:
        raise AudioError("too large", "decoding it takes more memory than there is") from error


def read_small(raw: BinaryIO, n_bytes: int) -> bytes | None:
    """Return all of an open file that has fewer bytes than that, or None."""
    size = raw.seek(0, os.SEEK_END)
    raw.seek(0)
    # One more than it has, since to ask for as many as it may have takes memory for them.
    content = raw.read(size + 1) if size < n_bytes else b""
    return content if len(content) == size else None


def decoder(raw: BinaryIO) -> SoundFile:
    """Return what decodes an open file from its start."""
    demuxer = identify(_reader(raw))
    if demuxer is not None and demuxer != LIBSNDFILE:
        return ContainerFile(raw, demuxer)
    raw.seek(0)
    file = sf.SoundFile(raw if isinstance(raw, io.BytesIO) else raw.fileno(), closefd=False)
    if file.frames >= _FRAMES_UNKNOWN:
        file.close()
        raise AudioError("unknown length", "the header does not state how many samples there are")
    if file.subtype.startswith("DWVW"):
        file.close()
        raise AudioError("unsupported", "DWVW, of which no part can be read for itself")
    return file


def library_of(file: SoundFile) -> Library:
    """Return who decodes a file."""
    return "ffmpeg" if isinstance(file, ContainerFile) else "libsndfile"


def count_frames(file: SoundFile, raw: BinaryIO, progress: Progress) -> tuple[int, tuple[Entry, ...]]:
    """Return how many samples a file has, and where a container can be entered.

    Raises
    ------
    AudioError
        Its header promises what is not there.
    """
    if isinstance(file, ContainerFile):  # which does not know
        return file.measure(progress), file.entries
    _check_whole(file, raw)
    _check_end(file)
    return file.frames, ()


def enter(file: SoundFile, entries: tuple[Entry, ...] | None) -> None:
    """Tell a file that was just opened where it can be entered; where nobody has looked, look.

    A decoder that was entered may draw other random numbers than one that began at the start.
    """
    if isinstance(file, ContainerFile):
        if entries is None:
            file.measure()
            file.restart()
        else:
            file.entries = entries


def read_start(file: SoundFile, raw: BinaryIO, n_samples: int) -> Decoded:
    """Return the first samples of a file, fewer where it has no more.

    Raises
    ------
    AudioError
        Its header promises what is not there.
    """
    if isinstance(file, ContainerFile):
        samples = file.read(n_samples)
    else:
        samples = np.empty((min(n_samples, file.frames), file.channels), dtype=np.float32)
        n_decoded = file.buffer_read_into(samples, dtype="float32")
        if n_decoded < len(samples):
            raise AudioError("truncated", f"header states {file.frames} samples, {n_decoded} could be decoded")
        if n_decoded == file.frames:
            _check_whole(file, raw)
    return Decoded(samples, file.samplerate, file.frames, library_of(file))


def is_trusted(raw: BinaryIO) -> bool:
    """Return whether an open file is a plain WAV of integers or floats, which needs no decoder that could die of it."""
    raw.seek(0)
    head = raw.read(22)
    return head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt " and head[20:22] in {b"\1\0", b"\3\0"}


def file_hash(raw: BinaryIO) -> str:
    """Return the SHA-256 of an open file."""
    digest = hashlib.sha256()
    while block := raw.read(_HASHED_BYTES):
        digest.update(block)
    return digest.hexdigest()


def file_stamp(raw: BinaryIO) -> tuple[int, int, int]:
    """Return size, time of change in ns, and number of an open file."""
    status = os.fstat(raw.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ino


def check_values(samples: NDArray[np.float32]) -> None:
    """Refuse values of which a spectrogram would hold infinities."""
    if not (samples.min() >= -_LOUDEST and samples.max() <= _LOUDEST):  # NaN fails every comparison
        _refuse(samples)


class ForwardReader:
    """Reads stretches of a recording that follow each other and may overlap, each sample decoded once."""

    def __init__(self, file: SoundFile) -> None:
        self._file = file
        self._start = 0
        self._kept: NDArray[np.float32] = np.empty((0, file.channels), dtype=np.float32)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return samples (stop - start, n_channels); `start` must not fall behind that of an earlier call."""
        self._skip_to(start)
        n_kept = len(self._kept)
        if stop - start > n_kept:
            samples = np.empty((stop - start, self._file.channels), dtype=np.float32)
            samples[:n_kept] = self._kept
            missing = samples[n_kept:]
            if self._file.buffer_read_into(missing, dtype="float32") < len(missing):
                raise AudioError(
                    "truncated", f"header states {self._file.frames} samples, of which {stop} could not be decoded"
                )
            check_values(missing)
            self._kept = samples
        return self._kept[: stop - start]

    def _skip_to(self, start: int) -> None:
        """Forget what is before, and go there when it is beyond what was read."""
        n_before = start - self._start
        n_beyond = n_before - len(self._kept)
        self._kept = self._kept[n_before:]
        self._start = start
        if n_beyond <= 0:
            return
        if self._file.seekable():
            self._file.seek(start)
        else:
            while n_beyond > 0:
                n_beyond -= len(self._file.read(min(n_beyond, 1 << 16))) or n_beyond


def _reader(raw: BinaryIO) -> Read:
    def read(n_bytes: int, start: int) -> bytes:
        raw.seek(start)
        return raw.read(n_bytes)

    return read


def _refuse(samples: NDArray[np.float32]) -> NoReturn:
    """Say what is wrong with values of which a spectrogram would hold infinities."""
    n_not_finite = np.count_nonzero(~np.isfinite(samples))
    if n_not_finite:
        raise AudioError("not finite", f"{n_not_finite} samples are NaN or infinite")
    raise AudioError("too loud", f"a sample is {np.abs(samples).max():.3g}, and full scale is 1")


def _check_whole(file: sf.SoundFile, raw: BinaryIO) -> None:
    """Refuse a file that was cut off: its header promises more than there is.

    Of Ogg it is the last page that is not whole. The headers of IRCAM, PAF and PVF promise nothing.
    """
    log, kind = file.extra_info, file.format
    if (match := _CUT_CHUNK.search(log)) and int(match[2]) < int(match[1]) < _LENGTH_UNKNOWN:
        raise AudioError("truncated", f"header promises {match[1]} bytes of samples, the file holds {match[2]}")
    stated: list[str] | list[bytes] = _STATED.findall(log) if kind in _LOGGED else []
    if kind == "NIST":
        raw.seek(0)
        stated = _SPHERE_COUNT.findall(raw.read(_SPHERE_BYTES))
    n_stated = int(stated[-1]) if stated else 0
    if n_stated > file.frames:
        raise AudioError("truncated", f"header states {n_stated} samples, the file holds {file.frames}")
    if _CUT.search(log):
        raise AudioError("truncated", "header promises more than the file holds")
    if kind == "OGG" and not _ends_with_page(raw):
        raise AudioError("truncated", "the last page of Ogg is not whole")


def _check_end(file: sf.SoundFile) -> None:
    """Refuse a file whose last samples are not there: the headers of FLAC and MP3 may promise a billion of them."""
    if not file.frames or not file.seekable():
        return
    n_samples = min(file.frames, _LAST_SAMPLES)
    try:
        file.seek(file.frames - n_samples)
        is_there = len(file.read(n_samples, dtype="float32")) == n_samples
    except sf.LibsndfileError:
        is_there = False
    if not is_there:
        raise AudioError("truncated", f"header states {file.frames} samples, of which the last could not be decoded")


def _ends_with_page(raw: BinaryIO) -> bool:
    """Return whether an Ogg file ends where its last page does, but for a tag of MP3's that some programs add."""
    size = raw.seek(0, os.SEEK_END)
    raw.seek(max(0, size - 2 * _OGG_PAGE_BYTES))
    tail = raw.read()
    start = tail.rfind(b"OggS")
    lengths = tail[start + 27 : start + 27 + tail[start + 26]] if len(tail) > start + 26 else b""
    rest = tail[start + 27 + len(lengths) + sum(lengths) :]
    is_whole = len(lengths) > 0 and len(tail) >= start + 27 + tail[start + 26] + sum(lengths)
    return is_whole and (not rest or (len(rest) == 128 and rest.startswith(b"TAG")))
