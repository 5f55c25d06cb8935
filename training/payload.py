"""Sounds and numbers as requests carry them, and how much sound a request may hold."""

import base64
import binascii
import io
import math
import os

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from pipeline.errors import AudioError, ParameterError
from pipeline.loader import Loader
from training.requests import RequestError

MAX_SECONDS = "GENERATIVE_MUSIC_MAX_SECONDS"
DEFAULT_MAX_SECONDS = 600.0
# A second of stereo at 48 kHz. Few bytes of a compressed file may be a great many samples.
_SAMPLES_PER_S = 2 * 48_000
# What libsndfile says of a file that does not state its length, which the loader refuses.
_FRAMES_UNKNOWN = 2**62
# Far beyond what any recording has, on either side; and its power is a number that float32 holds.
_MOST_DB = 300.0


def max_seconds() -> float:
    """Return the operator's limit on the sound in one request, in seconds.

    Raises
    ------
    ParameterError
        The variable is set to what is no number above zero.
    """
    given = os.environ.get(MAX_SECONDS) or DEFAULT_MAX_SECONDS
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ParameterError(f"{MAX_SECONDS}={given} must be a number of seconds above zero")
    return seconds


class Budget:
    """The sound that one request may still hold, given and asked for together.

    Parameters
    ----------
    seconds : float
    """

    def __init__(self, seconds: float) -> None:
        self._limit = seconds
        self._spent = 0.0

    def spend(self, field: str, seconds: float) -> None:
        """Take note of some sound.

        Raises
        ------
        RequestError
            It is more than what is left.
        """
        self._spent += seconds
        if self._spent > self._limit:
            whole = "" if self._spent == seconds else f", with which the request has {self._spent:.1f} s"
            raise RequestError(
                field, f"is {seconds:.1f} s of sound{whole}; the limit is {self._limit:g} s ({MAX_SECONDS})"
            )

    def check_samples(self, field: str, n_samples: int, n_channels: int) -> None:
        """Refuse a file that is within the limit only because of its rate or of its number of channels."""
        most = self._limit * _SAMPLES_PER_S
        if n_samples * n_channels > most:
            raise RequestError(
                field,
                f"holds {n_samples} samples in each of {n_channels} channels; the limit is {most:.0f} samples in all",
            )


def read_audio(field: str, text: str, loader: Loader, budget: Budget) -> NDArray[np.float32]:
    """Return the sound (n_channels, n_samples) of base64 text, at the loader's rate.

    Parameters
    ----------
    field : str
        Where the text stands.
    text : str
    loader : Loader
        Of whole recordings.
    budget : Budget
        Which the sound is taken from, before it is decoded.

    Raises
    ------
    RequestError
        It is no base64, no sound, damaged, empty, or too long.
    """
    try:
        # `base64` on a command line breaks lines.
        content = base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(field, f"is not base64: {error}") from error
    if not content:
        raise RequestError(field, "is empty")
    try:
        with sf.SoundFile(io.BytesIO(content)) as file:
            n_samples, rate, n_channels = file.frames, file.samplerate, file.channels
        if n_samples < _FRAMES_UNKNOWN:
            budget.spend(field, n_samples / rate)
            budget.check_samples(field, n_samples, n_channels)
        return loader.load_bytes(content).y
    except sf.LibsndfileError as error:
        raise RequestError(field, f"is not audio: {str(error.error_string).strip()}") from error
    except AudioError as error:
        raise RequestError(field, f"is {error.reason}: {error.detail}") from error


def write_audio(y: NDArray[np.float32], sample_rate: int) -> str:
    """Return base64 of the bytes of a WAV file, 16 bits a sample, of a sound (n_channels, n_samples)."""
    file = io.BytesIO()
    sf.write(file, y.T, sample_rate, subtype="PCM_16", format="WAV")
    return base64.b64encode(file.getvalue()).decode("ascii")


def read_matrix(field: str, rows: list[list[float]], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return rows of numbers as an array, of the shape that they must have."""
    if len(rows) != shape[0]:
        raise RequestError(field, f"has {len(rows)} rows, and must have {shape[0]}")
    return np.stack([read_vector(f"{field}[{number}]", row, shape[1]) for number, row in enumerate(rows)])


def read_vector(field: str, values: list[float], length: int) -> NDArray[np.float32]:
    """Return numbers as an array, of the length that they must have."""
    if len(values) != length:
        raise RequestError(field, f"has {len(values)} values, and must have {length}")
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=np.float64).astype(np.float32)
    if not np.isfinite(array).all():
        raise RequestError(field, "holds a number that is none in single precision")
    return array


def check_levels(field: str, S_db: NDArray[np.float32]) -> None:
    """Refuse levels that no sound has."""
    if np.abs(S_db).max() > _MOST_DB:
        raise RequestError(
            field, f"holds {S_db.flat[np.abs(S_db).argmax()]:g} dB, and levels are within {_MOST_DB:g} dB of zero"
        )


def example_inputs() -> list[dict[str, str]]:
    """Return a request that any model can answer: the latent vector of a tenth of a second of a sine."""
    sample_rate = 8000
    y = 0.5 * np.sin(2 * np.pi * 440 * np.arange(sample_rate // 10) / sample_rate)
    return [{"task": "encode", "audio": write_audio(y[None].astype(np.float32), sample_rate)}]
