"""MinMaxNormaliser: each spectrogram to one range, and back with its own extremes."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import ParameterError


class MinMaxNormaliser:
    """Maps each spectrogram onto a range by its own minimum and maximum, and back.

    Parameters
    ----------
    low, high : float
        The range's ends.

    Raises
    ------
    ParameterError
        The range does not rise.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not low < high:
            raise ParameterError(f"low={low} must be below high={high}")
        # As floats, so that 0 and 0.0 are one parameter wherever they are written down.
        self.low = float(low)
        self.high = float(high)

    def normalise(
        self, S_db: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Map each spectrogram onto the range.

        Parameters
        ----------
        S_db : ndarray, shape (..., n_bins, n_frames)
            In dB. A constant one (silence) maps to the range's minimum.
        out : ndarray, shape (..., n_bins, n_frames), optional
            Where `x` goes; may be `S_db`.

        Returns
        -------
        x : ndarray, shape (..., n_bins, n_frames)
        min_db, max_db : ndarray, shape (...)
            Each spectrogram's own extremes, which `denormalise` wants back.
        """
        min_db = S_db.min(axis=(-2, -1))
        max_db = S_db.max(axis=(-2, -1))
        span = max_db - min_db
        scale = np.float32(self.high - self.low) / np.where(span > 0, span, np.float32(1.0))
        x: NDArray[np.float32] = np.subtract(S_db, min_db[..., None, None], out=out)
        x *= scale[..., None, None]
        if self.low:
            x += np.float32(self.low)
        return x, min_db, max_db

    def denormalise(self, x: NDArray[np.float32], min_db: ArrayLike, max_db: ArrayLike) -> NDArray[np.float32]:
        """Map spectrograms back to dB.

        Parameters
        ----------
        x : ndarray, shape (..., n_bins, n_frames)
            In the range, or near it: what a model returns may leave it a little.
        min_db, max_db : array_like, shape (...)
            As `normalise` returned them.

        Returns
        -------
        ndarray, shape (..., n_bins, n_frames)
            In dB.
        """
        low = np.asarray(min_db, dtype=np.float32)[..., None, None]
        span = np.asarray(max_db, dtype=np.float32)[..., None, None] - low
        return (x - np.float32(self.low)) * (span / np.float32(self.high - self.low)) + low


def float16_error(low: float, high: float) -> float:
    """Return by how much float16, of 11 significant bits, may round a value from `low` to `high`: half its widest step.

    As a share of `high - low`, that is the error of a level as a share of the spectrogram's span in dB.
    """
    largest = max(abs(low), abs(high))
    if largest > float(np.finfo(np.float16).max):
        return math.inf
    return 2.0 ** (math.ceil(math.log2(largest)) - 1 - 11)
