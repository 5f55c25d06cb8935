"""Leveller: signals brought to one level before they become spectrograms. Off unless asked for."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ParameterError

Level = Literal["peak", "loudness"]
# Of ITU-R BS.1770, over which loudness is measured.
_BLOCK_S = 0.4


class Leveller:
    """Multiplies each signal by the factor that brings it to a level.

    Parameters
    ----------
    level : {'peak', 'loudness'}, optional
        What is brought to `target_db`: the highest sample, in dB of full scale, or the integrated loudness of ITU-R
        BS.1770-4, in LUFS, by `pyloudnorm`. By default signals stay as they are.
    target_db : float
    sample_rate : int
        In Hz.

    Raises
    ------
    ParameterError
        `pyloudnorm` is not installed.
    """

    def __init__(self, level: Level | None = None, target_db: float = -1.0, sample_rate: int = 22050) -> None:
        self.level = level
        self.target_db = float(target_db)
        self.sample_rate = sample_rate
        if level == "loudness":
            self._meter()

    def gains_db(self, y: NDArray[np.float32], peak: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what signals are raised by.

        Parameters
        ----------
        y : ndarray of float32, shape (n, n_samples)
        peak : ndarray of float32, shape (n,)
            Their highest magnitudes.

        Returns
        -------
        ndarray of float32, shape (n,)
            In dB; 0 for silence, and for what is too quiet to have a loudness.
        """
        gains = np.zeros(len(y), dtype=np.float32)
        if self.level is None:
            return gains
        if self.level == "peak":
            heard = peak > 0
            gains[heard] = self.target_db - 20.0 * np.log10(peak[heard].astype(np.float64))
            return gains
        meter = self._meter()
        for place, signal in enumerate(y):
            if peak[place] > 0:
                loudness = meter.integrated_loudness(signal.astype(np.float64))
                gains[place] = self.target_db - loudness if np.isfinite(loudness) else 0.0
        return gains

    def apply(self, y: NDArray[np.float32], gains_db: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return signals (n, n_samples) raised by as many dB; the same array where that is nothing."""
        if not gains_db.any():
            return y
        return y * np.float32(10.0) ** (gains_db[:, None] / np.float32(20.0))

    def _meter(self) -> Any:
        try:
            import pyloudnorm as pyln  # noqa: PLC0415
        except ImportError as error:
            raise ParameterError("preprocess.level='loudness' wants the package pyloudnorm") from error
        return pyln.Meter(self.sample_rate, block_size=_BLOCK_S)
