"""Pictures of spectrograms, with axes in Hz, seconds and dB. Matplotlib without a screen."""

import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.spectrogram import LogSpectrogramExtractor


def reconstruction_grid(
    path: Path,
    originals_db: NDArray[np.float32],
    reconstructions_db: NDArray[np.float32],
    titles: list[str],
    extractor: LogSpectrogramExtractor,
    sample_rate: int,
) -> None:
    """Draw originals above reconstructions, both on the original's scale of dB.

    Parameters
    ----------
    path : Path
        Of the PNG.
    originals_db, reconstructions_db : ndarray, shape (n, n_bins, n_frames)
    titles : list of str
        One per column.
    extractor : LogSpectrogramExtractor
        That made them: it knows the width of a bin and of a frame.
    sample_rate : int
        In Hz.
    """
    n_columns = len(titles)
    figure = Figure(figsize=(2.4 * n_columns + 1.2, 6.0), dpi=100, layout="constrained")
    axes = figure.subplots(2, n_columns, sharex=True, sharey=True, squeeze=False)
    seconds = originals_db.shape[2] * extractor.hop_length / sample_rate
    kilohertz = extractor.n_bins * sample_rate / extractor.n_fft / 1000
    low, high = float(originals_db.min()), float(originals_db.max())
    for row, (name, pictures) in enumerate((("original", originals_db), ("reconstruction", reconstructions_db))):
        for column in range(n_columns):
            image = axes[row, column].imshow(
                pictures[column],
                origin="lower",
                aspect="auto",
                extent=(0.0, seconds, 0.0, kilohertz),
                vmin=low,
                vmax=high,
                cmap="magma",
                interpolation="nearest",
            )
        axes[row, 0].set_ylabel(f"{name}\nfrequency (kHz)")
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=8, parse_math=False)
        axes[1, column].set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="level (dB)")
    with warnings.catch_warnings():
        # Not every name is in a script that Matplotlib's font has; boxes stand for the letters then.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(path, metadata={"Software": None})
