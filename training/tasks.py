"""What a served model does, a class per task, in steps between which the inputs of a request become one batch.

A task says which sounds are to be encoded; then, of their codes, which codes are to be decoded; then what it replies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pipeline.loader import Loader, count_samples
from training import requests
from training.codes import Codes
from training.density import Density
from training.metrics import log_spectral_distance_db, mean_squared_error
from training.payload import Budget, check_levels, read_audio, read_matrix, read_vector, write_audio
from training.requests import Reply, RequestError
from training.sound import SoundAutoencoder, Spectra, below_full_scale

Decoded = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Tools:
    """What tasks are done with.

    Attributes
    ----------
    sound : SoundAutoencoder
    density : Density
    loader : Loader
        Of whole recordings.
    budget : Budget
        Of the request.
    """

    sound: SoundAutoencoder
    density: Density
    loader: Loader
    budget: Budget

    @property
    def segment_s(self) -> float:
        """Length of a segment."""
        return self.sound.loader.n_samples / self.sound.sample_rate

    def read(self, place: str, wanted: requests.OneSound, end: str = "") -> "Given":
        """Return a sound that was given as audio or as a spectrogram; `end` is that of the fields' names."""
        audio, spectrogram = (getattr(wanted, name + end) for name in ("audio", "spectrogram"))
        if audio is not None:
            y = read_audio(f"{place}.audio{end}", audio, self.loader, self.budget)
            return Given(self.sound.analyse(y), y)
        field = f"{place}.spectrogram{end}"
        self.budget.spend(field, self.segment_s)
        extractor, n_samples = self.sound.extractor, self.sound.loader.n_samples
        S_db = read_matrix(field, spectrogram, (extractor.n_bins, extractor.n_frames(n_samples)))
        check_levels(field, S_db)
        return Given(self.sound.analyse_spectrogram(S_db), np.empty((1, 0), np.float32), S_db)

    def write(self, x: NDArray[np.float32], codes: Codes, n_channels: int, n_samples: int) -> str:
        """Return the sound of normalised spectrograms as a reply carries it."""
        return write_audio(self.sound.synthesise(x, codes, n_channels, n_samples), self.sound.sample_rate)


@dataclass(frozen=True)
class Given:
    """A sound that was given, as the network sees it and as it was: a signal, or else a spectrogram."""

    spectra: Spectra
    y: NDArray[np.float32]
    S_db: NDArray[np.float32] | None = None


class Task(Protocol):
    """One input, on its way to its reply."""

    sounds: list[Spectra]

    def codes(self, encoded: list[Codes]) -> list[Codes]:
        """Return what is to be decoded, given the codes of `sounds`."""

    def reply(self, encoded: list[Codes], codes: list[Codes], decoded: Decoded) -> Reply:
        """Return the reply, given the normalised spectrograms of `codes`."""


class Encode:
    """A sound's latent vectors."""

    def __init__(self, place: str, wanted: requests.Encode, tools: Tools) -> None:
        self._tools = tools
        self.sounds = [tools.read(place, wanted).spectra]

    def codes(self, encoded: list[Codes]) -> list[Codes]:
        """Return nothing: no sound is wanted."""
        return []

    def reply(self, encoded: list[Codes], codes: list[Codes], decoded: Decoded) -> Reply:
        """Return the vectors, with all that `decode` wants back."""
        (spectra,), sample_rate = self.sounds, self._tools.sound.sample_rate
        n_segments = len(spectra.x) // spectra.n_channels
        return Reply.model_construct(
            **_lists(encoded[0]),
            start_s=_starts(self._tools.sound, n_segments, spectra.n_channels),
            channel=np.repeat(np.arange(spectra.n_channels), n_segments).tolist(),
            duration_s=spectra.n_samples / sample_rate,
        )


class Reconstruct:
    """A sound through the network and back."""

    def __init__(self, place: str, wanted: requests.Reconstruct, tools: Tools) -> None:
        self._tools = tools
        self._given = tools.read(place, wanted)
        self.sounds = [self._given.spectra]

    def codes(self, encoded: list[Codes]) -> list[Codes]:
        """Return the sound's own."""
        return encoded

    def reply(self, encoded: list[Codes], codes: list[Codes], decoded: Decoded) -> Reply:
        """Return the sound, and how far it is from what was given."""
        sound, spectra, (x_hat,) = self._tools.sound, self._given.spectra, decoded
        y_hat = sound.synthesise(x_hat, codes[0], spectra.n_channels, spectra.n_samples)
        if self._given.S_db is None:
            spectrogram = None
            distances = log_spectral_distance_db(self._given.y, y_hat)
        else:
            (S_db,) = sound.to_db(x_hat, spectra.min_db, spectra.max_db)
            spectrogram = S_db.tolist()
            distances = np.sqrt(np.mean((self._given.S_db - S_db) ** 2, axis=0))
        return Reply.model_construct(
            audio=write_audio(y_hat, sound.sample_rate),
            spectrogram=spectrogram,
            mse=float(mean_squared_error(spectra.x, x_hat).mean()),
            log_spectral_distance_db=float(distances.mean()),
        )


class Decode:
    """The sound of latent vectors."""

    def __init__(self, place: str, wanted: requests.Decode, tools: Tools) -> None:
        self._place, self._tools = place, tools
        self.sounds: list[Spectra] = []
        n_latent = tools.sound.autoencoder.architecture.latent_space_dim
        z = read_matrix(f"{place}.latent", wanted.latent, (len(wanted.latent), n_latent))
        self._codes = Codes(z, *self._levels(wanted, len(z)))
        self._n_channels, n_segments = self._count(wanted, len(z))
        self._n_samples = self._length(wanted, n_segments)
        tools.budget.spend(f"{place}.latent", self._n_channels * self._n_samples / tools.sound.sample_rate)

    def codes(self, encoded: list[Codes]) -> list[Codes]:
        """Return what was given."""
        return [self._codes]

    def reply(self, encoded: list[Codes], codes: list[Codes], decoded: Decoded) -> Reply:
        """Return the sound."""
        if not np.isfinite(decoded[0]).all():
            raise RequestError(f"{self._place}.latent", "is so large that the decoder's numbers overflow")
        return Reply.model_construct(
            audio=self._tools.write(decoded[0], codes[0], self._n_channels, self._n_samples),
            duration_s=self._n_samples / self._tools.sound.sample_rate,
        )

    def _levels(self, wanted: requests.Decode, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (min_db, max_db) of each segment."""
        extractor = self._tools.sound.extractor
        levels = {}
        for name in ("min_db", "max_db"):
            if (given := getattr(wanted, name)) is not None:
                levels[name] = read_vector(f"{self._place}.{name}", given, n)
                check_levels(f"{self._place}.{name}", levels[name])
        if "max_db" not in levels:
            # That a window of Hann's makes of a sine of half of full scale, or as far above the floor as can be.
            sine_db = 20 * np.log10(0.5 * extractor.n_fft / 4 / extractor.ref)
            levels["max_db"] = levels["min_db"] + extractor.top_db if "min_db" in levels else np.full(n, sine_db)
        min_db = levels.get("min_db", levels["max_db"] - extractor.top_db)
        if (min_db > levels["max_db"]).any():
            raise RequestError(f"{self._place}.min_db", "is above max_db")
        return min_db.astype(np.float32), levels["max_db"].astype(np.float32)

    def _count(self, wanted: requests.Decode, n: int) -> tuple[int, int]:
        """Return the number of channels, and of each one's segments."""
        channel = [0] * n if wanted.channel is None else wanted.channel
        n_channels = max(1, len(set(channel)))
        n_segments = n // n_channels
        if channel != [number for number in range(n_channels) for _ in range(n_segments)]:
            reason = f"must name the channel of each of {n} segments: 0 for some, then 1 for as many, and so on"
            raise RequestError(f"{self._place}.channel", reason)
        if wanted.start_s is not None:
            start_s = read_vector(f"{self._place}.start_s", wanted.start_s, n)
            expected = np.asarray(_starts(self._tools.sound, n_segments, n_channels))
            if wrong := np.flatnonzero(np.abs(start_s - expected) > 1e-3).tolist():
                reason = f"is {start_s[wrong[0]]:g}, and segments that follow each other make it {expected[wrong[0]]:g}"
                raise RequestError(f"{self._place}.start_s[{wrong[0]}]", reason)
        return n_channels, n_segments

    def _length(self, wanted: requests.Decode, n_segments: int) -> int:
        """Return the samples of the sound."""
        sound = self._tools.sound
        if wanted.duration_s is None:
            return sound.loader.n_samples + (n_segments - 1) * sound.step
        n_samples = count_samples(wanted.duration_s, sound.sample_rate)
        if not n_samples or sound.count_segments(n_samples) != n_segments:
            field, expected = f"{self._place}.duration_s", sound.count_segments(n_samples)
            raise RequestError(field, f"is {wanted.duration_s:g}: {expected} segments, and latent has {n_segments}")
        return n_samples


class Generate:
    """New sounds, drawn from the density."""

    def __init__(self, place: str, wanted: requests.Generate, tools: Tools) -> None:
        self._tools = tools
        self.sounds: list[Spectra] = []
        tools.budget.spend(f"{place}.count", wanted.count * tools.segment_s)
        drawn = tools.density.sample(wanted.count, wanted.seed)
        self._codes = [drawn.take(np.array([row])) for row in range(wanted.count)]

    def codes(self, encoded: list[Codes]) -> list[Codes]:
        """Return what was drawn."""
        return self._codes

    def reply(self, encoded: list[Codes], codes: list[Codes], decoded: Decoded) -> Reply:
        """Return the sounds and their codes, so that they can be decoded again."""
        sound = self._tools.sound
        drawn = Codes(*(np.concatenate(part) for part in zip(*((c.z, c.min_db, c.max_db) for c in codes), strict=True)))
        made = (sound.synthesise(*each, 1, sound.loader.n_samples) for each in zip(decoded, codes, strict=True))
        sounds = [write_audio(below_full_scale(y), sound.sample_rate) for y in made]
        return Reply.model_construct(sounds=sounds, **_lists(drawn))


class Interpolate:
    """Sounds on the way from one to another: latent vectors, levels and lengths change in equal steps."""

    def __init__(self, place: str, wanted: requests.Interpolate, tools: Tools) -> None:
        self._tools = tools
        given = [tools.read(place, wanted), tools.read(place, wanted, "_to")]
        self.sounds = self._as_long_as_each_other(place, given)
        self._lengths = [each.spectra.n_samples for each in given]
        self._ways = np.linspace(0, 1, wanted.steps)
        seconds = max(self._lengths) * self.sounds[0].n_channels / tools.sound.sample_rate
        tools.budget.spend(f"{place}.steps", wanted.steps * seconds)

    def codes(self, encoded: list[Codes]) -> list[Codes]:
        """Return those on the way."""
        return [_between(encoded[0], encoded[1], np.float32(way)) for way in self._ways]

    def reply(self, encoded: list[Codes], codes: list[Codes], decoded: Decoded) -> Reply:
        """Return the sounds."""
        n_channels, (start, end) = self.sounds[0].n_channels, self._lengths
        lengths = [round(start + way * (end - start)) for way in self._ways.tolist()]
        steps = zip(decoded, codes, lengths, strict=True)
        return Reply.model_construct(sounds=[self._tools.write(x, each, n_channels, n) for x, each, n in steps])

    def _as_long_as_each_other(self, place: str, given: list[Given]) -> list[Spectra]:
        """Return both sounds with as many segments, the shorter one with silence after it."""
        n_samples = max(each.spectra.n_samples for each in given)
        padder, sound = self._tools.sound.padder, self._tools.sound
        spectra = [
            each.spectra if each.S_db is not None else sound.analyse(padder.pad(each.y, n_samples)) for each in given
        ]
        if spectra[0].x.shape != spectra[1].x.shape or spectra[0].n_channels != spectra[1].n_channels:
            here, there = (f"{len(each.x)} segments in {each.n_channels} channels" for each in spectra)
            raise RequestError(f"{place}.audio_to", f"has {there}, and must have {here} as what it is reached from")
        return spectra


_TASKS: dict[type[BaseModel], Callable[..., Task]] = {
    requests.Reconstruct: Reconstruct,
    requests.Encode: Encode,
    requests.Decode: Decode,
    requests.Generate: Generate,
    requests.Interpolate: Interpolate,
}


def prepare(place: str, wanted: BaseModel, tools: Tools) -> Task:
    """Return the task that is wanted.

    Raises
    ------
    RequestError
        What it is to be done with cannot be used.
    """
    return _TASKS[type(wanted)](place, wanted, tools)


def _lists(codes: Codes) -> dict[str, Any]:
    """Return codes as a reply carries them."""
    return {"latent": codes.z.tolist(), "min_db": codes.min_db.tolist(), "max_db": codes.max_db.tolist()}


def _starts(sound: SoundAutoencoder, n_segments: int, n_channels: int) -> list[float]:
    """Return where each segment starts, in seconds."""
    starts: list[float] = np.tile(np.arange(n_segments) * sound.step / sound.sample_rate, n_channels).tolist()
    return starts


def _between(start: Codes, end: Codes, way: np.float32) -> Codes:
    """Return the codes that are a share of the way from one to another."""
    pairs = ((start.z, end.z), (start.min_db, end.min_db), (start.max_db, end.max_db))
    return Codes(*((1 - way) * one + way * other for one, other in pairs))
