"""Loader: the start of a recording or all of it in segments, at one rate, as float32. Knows nothing of spectrograms."""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import plain_wav
from pipeline.containers import Progress
from pipeline.decoder import (
    Decoded,
    ForwardReader,
    check_values,
    count_frames,
    decoder,
    enter,
    file_hash,
    file_stamp,
    is_trusted,
    library_of,
    opened,
    read_small,
    read_start,
)
from pipeline.errors import AudioError
from pipeline.recording import Facts, Recording
from pipeline.resampler import (
    STACKED,
    Quality,
    Window,
    count_resampled,
    resample_stacked,
    segment_window,
    stretches,
)
from pipeline.silence import Heard, check_level, listen

Fold = Literal["mean", "left", "right"]

# A file below is read at once, which a plain WAV then needs no decoder for.
_SMALL_BYTES = 1 << 18


def count_samples(duration_s: float, sample_rate: int) -> int:
    """Return the number of samples nearest to a duration.

    `int(duration_s * sample_rate)` loses a sample where the product falls just below a whole number.

    Parameters
    ----------
    duration_s : float
        In seconds.
    sample_rate : int
        In Hz.
    """
    return math.floor(duration_s * sample_rate + 0.5)


class UntrustedError(AudioError):
    """A file was not decoded, since a decoder could crash, hang or swell at it."""


class Loader:
    """Loads the first `duration_s` of a file, as `librosa.load` does, and says what is wrong with it.

    Parameters
    ----------
    sample_rate : int
        Rate of what is returned, in Hz. Other rates are resampled by soxr.
    duration_s : float
        Length of what is read, in seconds.
    mono : bool
        Whether channels are folded into one.
    fold : {'mean', 'left', 'right'}
        Into which: their mean, the first, or the second.
    quality : {'LQ', 'MQ', 'HQ', 'VHQ'}
        Of soxr's resampling.
    trim_db : float, optional
        Leave out the start and the end of a recording as far as they are that much quieter than its loudest frame, or
        more, as `librosa.effects.trim` does. By default nothing is.
    min_level_db : float, optional
        Refuse recordings of which the highest sample, of what is used of them, is below, in dB of full scale.
    """

    def __init__(
        self,
        sample_rate: int = 22050,
        duration_s: float = 0.74,
        mono: bool = True,
        fold: Fold = "mean",
        quality: Quality = "HQ",
        trim_db: float | None = None,
        min_level_db: float | None = None,
    ) -> None:
        self.sample_rate = sample_rate
        self.duration_s = float(duration_s)
        self.mono = mono
        self.fold = fold
        self.quality = quality
        self.trim_db = trim_db
        self.min_level_db = min_level_db

    @property
    def n_samples(self) -> int:
        """Samples of a full clip."""
        return count_samples(self.duration_s, self.sample_rate)

    def count_resampled(self, facts: Facts) -> int:
        """Return how many samples there are at the loader's rate of all that is heard of a recording."""
        return count_resampled(facts.source_stop - facts.source_start, facts.source_rate, self.sample_rate)

    def load(self, path: str | os.PathLike[str]) -> Recording:
        """Load the start of a recording.

        Parameters
        ----------
        path : path-like
            A file in any format that libsndfile reads, or a container that FFmpeg does.

        Returns
        -------
        Recording
            With `y` of shape (n_channels, n_samples), `n_samples` at most `Loader.n_samples`.

        Raises
        ------
        AudioError
            The file cannot be read, is no audio, is truncated, holds no samples or samples that are not finite, or is
            quieter than was asked for.
        """
        return self._resample([self._read(path)])[0]

    def load_bytes(self, content: bytes) -> Recording:
        """Load the start of a recording of which the whole file is in memory, as `load` does.

        Parameters
        ----------
        content : bytes
            Of a file in any format that libsndfile reads.

        Raises
        ------
        AudioError
            As for `load`.
        """
        return self._resample([self._read(content)])[0]

    def load_many(
        self,
        paths: Iterable[str | os.PathLike[str]],
        trusted_only: bool = False,
        progress: Progress = lambda: None,
    ) -> list[Recording | AudioError]:
        """Load the starts of several recordings, each as `load` does, in less time.

        Parameters
        ----------
        paths : iterable of path-like
            Files in any formats that libsndfile reads.
        trusted_only : bool
            Whether to decode nothing but plain WAV; for other files there is an `UntrustedError` then.
        progress : callable
            Called now and then where a file takes long.

        Returns
        -------
        list of Recording or AudioError
            For each path what `load` returns, or what it raises.
        """
        loaded = [self._try_read(path, trusted_only, progress) for path in paths]
        resampled = iter(self._resample([each for each in loaded if isinstance(each, Recording)]))
        return [next(resampled) if isinstance(each, Recording) else each for each in loaded]

    def _try_read(self, path: str | os.PathLike[str], trusted_only: bool, progress: Progress) -> Recording | AudioError:
        try:
            return self._read(path, trusted_only, progress)
        except AudioError as error:
            return error

    def examine(self, path: str | os.PathLike[str], progress: Progress = lambda: None) -> Facts:
        """Return what is known of a recording.

        Without decoding it, but for containers, which do not know their length, and where silence is to be trimmed or
        a level is asked for.

        Parameters
        ----------
        path : path-like
        progress : callable
            Called now and then where that takes long.

        Raises
        ------
        AudioError
            The file cannot be read, is no audio, is truncated, holds no samples, or is quieter than was asked for.
        """
        with opened(path) as raw:
            sha256, stamp = file_hash(raw), file_stamp(raw)
            with decoder(raw) as file:
                rate, channels = file.samplerate, file.channels
                n_total, entries = count_frames(file, raw, progress)
            self._check_length(n_total, rate)
            heard = Heard(0, n_total, math.inf)
            if self.trim_db is not None or self.min_level_db is not None:
                heard = listen(raw, n_total, self._fold, self.trim_db, progress)
        check_level(heard.peak, self.min_level_db)
        return Facts(sha256, rate, channels, n_total, heard.start, heard.stop, library_of(file), stamp, entries)

    def digest(self, path: str | os.PathLike[str]) -> tuple[str, tuple[int, int, int]]:
        """Return the digest of a file's bytes, and its stamp as in `Facts`.

        Raises
        ------
        AudioError
            The file cannot be read.
        """
        with opened(path) as raw:
            return file_hash(raw), file_stamp(raw)

    def stream(
        self, path: str | os.PathLike[str], facts: Facts, segments: range, n_overlap: int
    ) -> Iterator[list[NDArray[np.float32]]]:
        """Yield segments of a recording, some at a time, each the same whichever are asked for.

        Parameters
        ----------
        path : path-like
        facts : Facts
            What `examine` returned for it.
        segments : range
            Which of them. Segment k begins `k * (n_samples - n_overlap)` samples after the start of what is heard.
        n_overlap : int
            Samples at the loader's rate that a segment shares with the next.

        Yields
        ------
        list of ndarray of float32, shape (n_channels, n_samples)
            `n_samples` is `Loader.n_samples`, and less for the last segment of a recording.

        Raises
        ------
        AudioError
            As `load`, or the file is no longer the one that was examined.
        """
        step = self.n_samples - n_overlap
        with opened(path) as raw, decoder(raw) as file:
            if file_stamp(raw) != facts.stamp:
                raise AudioError("changed", "the file was changed while it was read")
            enter(file, facts.entries)
            reader, offset = ForwardReader(file), facts.source_start
            n_heard = facts.source_stop - offset
            n_values = -(-self.n_samples * facts.source_rate // self.sample_rate) * facts.source_channels
            for stretch in stretches(segments, n_values, is_resampled=facts.source_rate != self.sample_rate):
                n_samples = (len(stretch) - 1) * step + self.n_samples
                window = segment_window(n_heard, facts.source_rate, self.sample_rate, stretch.start * step, n_samples)
                y = self._fold(reader.read(offset + window.start, offset + window.stop))
                y = self._resample_window(y, window, facts.source_rate)
                starts = [(index - stretch.start) * step for index in stretch if index in segments]
                yield [y[:, start : start + self.n_samples] for start in starts]

    def _resample_window(self, y: NDArray[np.float32], window: Window, rate: int) -> NDArray[np.float32]:
        """Return the samples that a window of a source is for."""
        if rate != self.sample_rate:
            # soxr may round the length of a part otherwise than that of the whole.
            n_spare = 1 + rate // self.sample_rate
            (y,) = resample_stacked([y], rate, self.sample_rate, self.quality, n_spare)
        return y[:, window.skip : window.skip + window.n_samples]

    def _read(
        self,
        source: str | os.PathLike[str] | bytes,
        trusted_only: bool = False,
        progress: Progress = lambda: None,
    ) -> Recording:
        """Return the start of a recording at its own rate."""
        # Opened once for both, so that the digest is of the bytes that are decoded.
        with opened(source) as raw:
            content = read_small(raw, _SMALL_BYTES) if self.trim_db is None else None
            wav = plain_wav.parse(content) if content is not None else None
            if content is not None and wav is not None:
                sha256 = hashlib.sha256(content).hexdigest()
                n_wanted = count_samples(self.duration_s, wav.rate)
                found = Decoded(wav.start(n_wanted), wav.rate, len(wav.samples), "libsndfile")
            elif trusted_only and not is_trusted(raw):
                raise UntrustedError("untrusted", "its decoder could die of it")
            else:
                raw.seek(0)
                sha256 = file_hash(raw)
                found = self._decode(raw) if self.trim_db is None else self._decode_heard(raw, progress)
        self._check_length(len(found.samples), found.rate)
        if wav is None or not wav.is_integer:
            check_values(found.samples)
        n_channels = found.samples.shape[1]
        y = self._fold(found.samples)
        if self.min_level_db is not None:
            check_level(float(np.abs(y).max()), self.min_level_db)
        stop = found.n_total if found.stop is None else found.stop
        return Recording(y, found.rate, n_channels, found.n_total, found.start, stop, sha256, found.library)

    def _decode(self, raw: BinaryIO) -> Decoded:
        """Return the first samples of an open file."""
        with decoder(raw) as file:
            return read_start(file, raw, count_samples(self.duration_s, file.samplerate))

    def _decode_heard(self, raw: BinaryIO, progress: Progress) -> Decoded:
        """Return the first samples of an open file after the silence at its start."""
        with decoder(raw) as file:
            rate = file.samplerate
            n_total, entries = count_frames(file, raw, progress)
        self._check_length(n_total, rate)
        start, stop, _ = listen(raw, n_total, self._fold, self.trim_db, progress)
        with decoder(raw) as file:
            enter(file, entries)
            samples = ForwardReader(file).read(start, min(stop, start + count_samples(self.duration_s, rate)))
        return Decoded(samples, rate, n_total, library_of(file), start, stop)

    def _check_length(self, n_samples: int, rate: int) -> None:
        """Refuse a recording of which nothing is left."""
        if not n_samples:
            raise AudioError("empty", "file holds no samples")
        if not count_resampled(n_samples, rate, self.sample_rate):
            raise AudioError("empty", f"{n_samples} samples at {rate} Hz are none at {self.sample_rate} Hz")

    def _fold(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return samples (n_samples, n_channels) as channels (n_channels, n_samples), folded where that is wanted."""
        # Copied before the mean, which is slow over numbers that lie side by side.
        y = np.ascontiguousarray(samples.T)
        if not self.mono or len(y) == 1:
            return y
        if self.fold != "mean":
            return y[:1] if self.fold == "left" else y[1:2]
        folded: NDArray[np.float32] = y.mean(axis=0, keepdims=True)
        return folded

    def _resample(self, recordings: list[Recording]) -> list[Recording]:
        """Bring recordings to the loader's rate, up to `STACKED` of one rate and of like lengths at a time."""
        y = [recording.y for recording in recordings]
        rates = [recording.source_rate for recording in recordings]
        order = [place for place, rate in enumerate(rates) if rate != self.sample_rate]
        order.sort(key=lambda place: (rates[place], y[place].shape[1]))
        for (rate, _), stack in groupby(enumerate(order), key=lambda item: (rates[item[1]], item[0] // STACKED)):
            places = [place for _, place in stack]
            resampled = resample_stacked([y[place] for place in places], rate, self.sample_rate, self.quality)
            for place, each in zip(places, resampled, strict=True):
                y[place] = each
        return [
            recording
            if each is recording.y and each.shape[1] <= self.n_samples
            else replace(recording, y=each[:, : self.n_samples])
            for recording, each in zip(recordings, y, strict=True)
        ]
