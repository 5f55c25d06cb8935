"""Sound in MP4, Matroska and others that libsndfile does not read: by FFmpeg, through PyAV, an optional extra."""

import bisect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AudioError

# Where a stream can be entered: the number of a sample, and the time stamp of the packet that begins with it.
Entry = tuple[int, int]
# Called now and then by what takes long, so that others know that it goes on.
Progress = Callable[[], object]

# Apart. Decoding begins one earlier than wanted, by which every codec has come to its state.
_ENTRIES_S = 30
# Whose time stamps name the same packets after a seek.
_ENTERED = frozenset(["mov", "matroska"])
# Which state the length of a stream; rounded, and with the delay of its encoder, it is off by less than this.
_STATES_LENGTH = frozenset(["mov", "matroska", "avi", "ape", "wv", "tta", "tak", "dsf", "mpc8"])
_ROUNDING_S = 0.5
# What a demuxer is called, for a person.
_TITLES = {"mov": "MP4 or QuickTime", "matroska": "Matroska or WebM", "mpegts": "an MPEG stream", "aac": "AAC"}
_TOP_ATOMS = frozenset([b"moov", b"mdat", b"moof"])
_SEGMENT = b"\x18\x53\x80\x67"


@dataclass(frozen=True, slots=True)
class _Block:
    """What came of a packet: samples (n_samples, n_channels), and what it says of itself."""

    samples: NDArray[np.float32]
    pts: int | None
    n_stated: int


class ContainerFile:
    """The track of sound of a container, read forwards as a `soundfile.SoundFile` is.

    Of several tracks it is the one that FFmpeg would play. Samples follow each other as they were encoded, without the
    delay and the padding of an encoder where the container tells of them; gaps between time stamps are closed.

    Parameters
    ----------
    raw : binary file
    demuxer : str
        FFmpeg's name of the container.

    Attributes
    ----------
    samplerate, channels : int
        Of the decoded sound; what the container states may be otherwise.
    entries : tuple of Entry
        As `measure` found them. Without them, what is wanted from the middle is decoded from the start.

    Raises
    ------
    AudioError
        PyAV is not installed, or the file is damaged or without sound.
    """

    extra_info = ""

    def __init__(self, raw: BinaryIO, demuxer: str) -> None:
        self._av = _import_av(demuxer)
        self._raw = raw
        self._demuxer = demuxer
        self._container: Any = None
        self.entries: tuple[Entry, ...] = ()
        self.samplerate = self.channels = 0
        self.restart()
        if not self._advance():
            raise AudioError("empty", "file holds no samples")

    @property
    def frames(self) -> int:
        """Samples in all: as the container states them, and exact once the last one was decoded."""
        known = self._position + len(self._left)
        return known if self._is_ended else max(known, self._stated)

    def measure(self, progress: Progress = lambda: None) -> int:
        """Return how many samples there are by decoding all, and find where the stream can be entered."""
        entries: list[Entry] = []
        due = 0
        self.restart()
        while self._advance():
            if self._position >= due:
                due = self._position + _ENTRIES_S * self.samplerate
                progress()
                if self._pts is not None and (not entries or self._pts > entries[-1][1]):
                    entries.append((self._position, self._pts))
            self._take(len(self._left))
        self.entries = tuple(entries) if self._demuxer in _ENTERED else ()
        return self._position

    def seekable(self) -> bool:
        """Return that one can go forwards."""
        return True

    def seek(self, start: int) -> int:
        """Go forwards to a sample, and return where that is."""
        place = bisect.bisect_right(self.entries, start, key=lambda entry: entry[0]) - 1
        if place > 0 and self.entries[place][0] > self._position + len(self._left):
            self._enter(self.entries[place - 1], self.entries[place])
        while self._position < start and (len(self._left) or self._advance()):
            self._take(start - self._position)
        return self._position

    def read(self, n_samples: int) -> NDArray[np.float32]:
        """Return the next samples (n_samples, n_channels), fewer where they end."""
        blocks = []
        while n_samples > 0 and (len(self._left) or self._advance()):
            blocks.append(self._take(n_samples))
            n_samples -= len(blocks[-1])
        return np.concatenate(blocks) if blocks else np.empty((0, self.channels), dtype=np.float32)

    def buffer_read_into(self, samples: NDArray[np.float32], dtype: str) -> int:
        """Fill an array (n_samples, n_channels) of float32, and return how many samples there were."""
        assert dtype == "float32"
        found = self.read(len(samples))
        samples[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Let go of what FFmpeg holds; the file stays open."""
        if self._container is not None:
            self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def restart(self) -> None:
        """Stand before the first sample."""
        self.close()
        self._raw.seek(0)
        try:
            # Told and not found out, since some formats that FFmpeg would find name other files to be opened.
            self._container = self._av.open(self._raw, format=self._demuxer, metadata_errors="replace")
        except self._av.FFmpegError as error:
            self._fail(error)
        self._stream = self._container.streams.best("audio")
        if self._stream is None:
            raise AudioError("not audio", f"{_title(self._demuxer)} without a track of sound")
        if self._stream.codec_context is None:
            raise AudioError("unsupported", f"{_title(self._demuxer)} with sound that FFmpeg has no decoder for")
        self._stream.codec_context.thread_count = 1
        self._stated = self._state_length()
        self._go(0)

    def _go(self, position: int) -> None:
        """Say which sample it is that comes next from the container."""
        self._blocks = self._decode()
        self._position = position
        self._left = np.empty((0, self.channels), dtype=np.float32)
        self._pts: int | None = None
        self._is_ended = False

    def _state_length(self) -> int:
        """Return the number of samples that the container states, or 0."""
        stream, rate = self._stream, self._stream.codec_context.sample_rate
        if self._demuxer not in _STATES_LENGTH:
            return 0
        if stream.duration is not None and stream.time_base is not None:
            return int(stream.duration * stream.time_base * rate)
        # That of the longest stream.
        is_alone = len(self._container.streams) == 1 and self._container.duration is not None
        return self._container.duration * rate // 1_000_000 if is_alone else 0

    def _advance(self) -> bool:
        """Decode what comes next, and return whether there is anything."""
        block = next(self._blocks, None)
        if block is None:
            self._is_ended = True
            self._check_end()
            return False
        self._left, self._pts = block.samples, block.pts
        return True

    def _take(self, n_samples: int) -> NDArray[np.float32]:
        """Return samples that were decoded, at most as many as that."""
        taken, self._left = self._left[:n_samples], self._left[n_samples:]
        self._position += len(taken)
        return taken

    def _enter(self, before: Entry, entry: Entry) -> None:
        """Stand before the sample of an entry, having decoded from the one before it."""
        try:
            self._container.seek(before[1], stream=self._stream)
        except self._av.FFmpegError as error:
            self._fail(error)
        self._go(entry[0])
        for block in self._blocks:
            if block.pts == entry[1]:
                self._left, self._pts = block.samples, block.pts
                return
            if block.pts is None or block.pts > entry[1]:
                break
        self.restart()

    def _decode(self) -> Iterator[_Block]:
        """Yield what comes of each packet. MP4 states of the last one how much of it is no padding."""
        last: _Block | None = None
        try:
            for packet in self._container.demux(self._stream):
                frames = [self._samples(frame) for frame in packet.decode()]
                if not frames:
                    continue
                if last is not None:
                    yield last
                n_stated = round((packet.duration or 0) * packet.time_base * self.samplerate)
                last = _Block(np.concatenate(frames), packet.pts, n_stated)
        except self._av.FFmpegError as error:
            self._fail(error)
        if last is not None:
            n_samples = last.n_stated if self._demuxer == "mov" and last.n_stated else len(last.samples)
            yield _Block(last.samples[:n_samples], last.pts, n_samples)

    def _samples(self, frame: Any) -> NDArray[np.float32]:
        """Return what a frame holds (n_samples, n_channels), with full scale at 1."""
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        if not self.samplerate:
            self.samplerate, self.channels = rate, channels
        if (rate, channels) != (self.samplerate, self.channels):
            raise AudioError(
                "changing format",
                f"from {self.channels} channels at {self.samplerate} Hz to {channels} at {rate} Hz",
            )
        values = frame.to_ndarray()
        values = values.T if frame.format.is_planar else values.reshape(-1, channels)
        samples: NDArray[np.float32] = values.astype(np.float32)
        if values.dtype == np.uint8:
            samples -= 128
        if values.dtype.kind in "ui":
            samples *= np.float32(2.0 ** (1 - 8 * values.dtype.itemsize))
        return samples

    def _check_end(self) -> None:
        """Refuse a file that has ended before it said that it would."""
        self._check_size()
        if self._position < self._stated - _ROUNDING_S * self.samplerate:
            raise AudioError("truncated", f"header states {self._stated} samples, {self._position} could be decoded")

    def _check_size(self) -> None:
        """Refuse a file of fewer bytes than its container promises."""
        size = self._raw.seek(0, os.SEEK_END)
        promised = _promised_bytes(self._raw, self._demuxer)
        if size < promised:
            raise AudioError("truncated", f"header promises {promised} bytes, the file holds {size}")

    def _fail(self, error: Exception) -> NoReturn:
        """Say what is wrong with a file that FFmpeg gave up on."""
        self._check_size()
        raise AudioError("damaged", f"FFmpeg says of {_title(self._demuxer)}: {getattr(error, 'strerror', error)}")


def _import_av(demuxer: str) -> Any:
    try:
        import av  # noqa: PLC0415 - not needed for what libsndfile reads
    except ImportError as error:
        raise AudioError(
            "unread format", f"{_title(demuxer)}: wants the package av; pip install 'generative-music[av]'"
        ) from error
    return av


def _title(demuxer: str) -> str:
    return _TITLES.get(demuxer, demuxer.upper())


def _promised_bytes(raw: BinaryIO, demuxer: str) -> int:
    """Return how long a container says that its file is at least."""
    raw.seek(0)
    if demuxer == "avi":
        return 8 + int.from_bytes(raw.read(8)[4:], "little")
    if demuxer == "matroska":
        return _segment_end(raw.read(128))
    return _atoms_end(raw) if demuxer == "mov" else 0


def _segment_end(head: bytes) -> int:
    """Return where the segment of a Matroska file ends, or 0 when it does not know."""
    start = head.find(_SEGMENT) + len(_SEGMENT)
    if start < len(_SEGMENT) or start >= len(head):
        return 0
    # The length of a number stands in the zeros before its first bit; all ones: unknown.
    n_bytes = 9 - head[start].bit_length()
    bits = 7 * n_bytes
    size = int.from_bytes(head[start : start + n_bytes], "big") & ((1 << bits) - 1)
    return 0 if size == (1 << bits) - 1 else start + n_bytes + size


def _atoms_end(raw: BinaryIO) -> int:
    """Return where the last of MP4's outermost atoms that hold sound ends."""
    start = end = 0
    n_bytes = raw.seek(0, os.SEEK_END)
    while start < n_bytes:
        raw.seek(start)
        head = raw.read(16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if len(head) < 8 or size < 8:  # 0: up to the end of the file
            return end
        start += size
        end = start if name in _TOP_ATOMS else end
    return end
