"""Padder: signals of one length, and long signals as segments of one length and back."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ParameterError


class Padder:
    """Pads signals at either end, and cuts long ones into segments that overlap.

    Parameters
    ----------
    mode : {'constant', 'edge', 'reflect'}
        As for `numpy.pad`; `'constant'` pads with zeros.
    """

    def __init__(self, mode: Literal["constant", "edge", "reflect"] = "constant") -> None:
        self.mode = mode

    def left_pad(self, y: NDArray[np.float32], n_missing: int) -> NDArray[np.float32]:
        """Return `y` (..., n_samples) with `n_missing` samples before it."""
        return np.pad(y, [(0, 0)] * (y.ndim - 1) + [(n_missing, 0)], mode=self.mode)

    def right_pad(self, y: NDArray[np.float32], n_missing: int) -> NDArray[np.float32]:
        """Return `y` (..., n_samples) with `n_missing` samples after it."""
        if self.mode == "constant":  # for which numpy.pad takes far longer
            padded = np.zeros((*y.shape[:-1], y.shape[-1] + n_missing), dtype=y.dtype)
            padded[..., : y.shape[-1]] = y
            return padded
        return np.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, n_missing)], mode=self.mode)

    def pad(self, y: NDArray[np.float32], n_samples: int) -> NDArray[np.float32]:
        """Return `y` (..., n) with samples after it, up to `n_samples`.

        Raises
        ------
        ParameterError
            `y` is longer than `n_samples`: padding never cuts.
        """
        self._check_length(y, n_samples)
        n_missing = n_samples - y.shape[-1]
        return self.right_pad(y, n_missing) if n_missing else y

    def stack(self, signals: Sequence[NDArray[np.float32]], n_samples: int) -> NDArray[np.float32]:
        """Return signals (n_channels, n), each padded as `pad` does, one below the other: (n_rows, n_samples)."""
        if self.mode != "constant":
            return np.concatenate([self.pad(y, n_samples) for y in signals])
        stacked = np.zeros((sum(map(len, signals)), n_samples), dtype=np.float32)
        start = 0
        for y in signals:
            self._check_length(y, n_samples)
            stacked[start : start + len(y), : y.shape[-1]] = y
            start += len(y)
        return stacked

    def _check_length(self, y: NDArray[np.float32], n_samples: int) -> None:
        if y.shape[-1] > n_samples:
            raise ParameterError(f"y has {y.shape[-1]} samples and must have at most n_samples={n_samples}")

    def count_segments(self, n_total: int, n_samples: int, n_overlap: int) -> int:
        """Return how many segments of `n_samples` a signal of `n_total` samples is cut into."""
        return 1 + max(0, -(-(n_total - n_samples) // (n_samples - n_overlap)))

    def cut(self, y: NDArray[np.float32], n_samples: int, n_overlap: int) -> NDArray[np.float32]:
        """Cut a signal into segments of one length, the last one padded.

        Parameters
        ----------
        y : ndarray, shape (n,)
            The signal.
        n_samples, n_overlap : int
            Length of a segment, and how many samples it shares with the next; at most half of it.

        Returns
        -------
        ndarray, shape (n_segments, n_samples)
        """
        step = n_samples - n_overlap
        n_segments = self.count_segments(y.shape[-1], n_samples, n_overlap)
        padded = self.pad(y, n_samples + (n_segments - 1) * step)
        return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, n_samples)[::step])

    def join(self, segments: NDArray[np.float32], n_overlap: int, n_total: int) -> NDArray[np.float32]:
        """Put segments together again, each fading linearly into the next: the inverse of `cut`.

        Parameters
        ----------
        segments : ndarray, shape (n_segments, n_samples)
            As `cut` returned them, or reconstructions of those.
        n_overlap, n_total : int
            What `cut` was given, and the length of its signal.

        Returns
        -------
        ndarray, shape (n_total,)
        """
        n_segments, n_samples = segments.shape
        step = n_samples - n_overlap
        y = np.zeros(n_samples + (n_segments - 1) * step, dtype=np.float32)
        rise = (np.arange(n_overlap, dtype=np.float32) + 0.5) / max(n_overlap, 1)
        for index, segment in enumerate(segments):
            faded = segment.copy()
            if index:
                faded[:n_overlap] *= rise
            if index < n_segments - 1:
                faded[step:] *= 1 - rise
            y[index * step : index * step + n_samples] += faded
        return y[:n_total]
