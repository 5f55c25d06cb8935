"""Pictures of a corpus and of its spectrograms. Matplotlib without a screen."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline import columns
from pipeline.parts import Parts
from pipeline.store import Store
from pipeline.summary import durations_s, first_lines

N_EXAMPLES = 8
# Quieter than any recording; silence stands there.
_FLOOR_DB = -100.0


def draw_corpus(path: Path, store: Store, n_examples: int = N_EXAMPLES) -> None:
    """Draw histograms of length, rate and level, and some spectrograms, evenly spaced.

    Parameters
    ----------
    path : Path
        Of the PNG.
    store : Store
    n_examples : int
        At most.
    """
    table = store.table
    which = np.unique(np.linspace(0, len(table) - 1, min(n_examples, len(table)), dtype=np.int64))
    n_columns = (len(which) + 1) // 2
    figure = Figure(figsize=(12.0, 10.0), dpi=100, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 2))
    upper, lower = halves
    _draw_histograms(upper.subplots(1, 3), table)
    parts = Parts.of(store.format.parameters)
    axes = lower.subplots(2, n_columns, squeeze=False)
    for place in axes.ravel()[len(which) :]:
        place.set_axis_off()
    _draw_spectrograms(lower, axes.ravel()[: len(which)], store, parts, which)
    _save(figure, path)


def draw_rows(path: Path, store: Store, which: NDArray[np.int64]) -> None:
    """Draw the spectrograms of some rows side by side, on one scale."""
    figure = Figure(figsize=(3.0 * len(which) + 1.5, 4.0), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(which), squeeze=False)
    _draw_spectrograms(figure, axes.ravel(), store, Parts.of(store.format.parameters), which)
    _save(figure, path)


def _draw_histograms(axes: Any, table: pa.Table) -> None:
    """Draw how many clips have which length, rate and level."""
    clips = first_lines(table)
    length, rate, level = axes
    length.hist(durations_s(clips), bins=40, color="#444477")
    length.set(xlabel="length of the file (s)", ylabel="clips", yscale="log", ylim=(0.8, None))
    rates, counts = np.unique(columns.values(clips["source_rate"]), return_counts=True)
    rate.bar([f"{each:,}" for each in rates.tolist()], counts, color="#444477")
    rate.set(xlabel="rate of the file (Hz)", ylabel="clips")
    rate.tick_params(axis="x", rotation=90 if len(rates) > 4 else 0)
    peak = columns.values(table["peak"]).astype(np.float64)
    level.hist(20 * np.log10(np.maximum(peak, 10 ** (_FLOOR_DB / 20))), bins=40, color="#444477")
    level.set(xlabel="highest level of a row (dB of full scale)", ylabel="rows")


def _draw_spectrograms(figure: Any, axes: Any, store: Store, parts: Parts, which: NDArray[np.int64]) -> None:
    """Draw rows in dB, each under its name."""
    lines = store.table.take(columns.numbers(which, pa.int64())).to_pylist()
    extremes = (np.asarray([line[name] for line in lines], dtype=np.float32) for name in ("min_db", "max_db"))
    S_db = parts.to_db(store.rows(which), *extremes)
    extractor, sample_rate = parts.extractor, parts.loader.sample_rate
    seconds = S_db.shape[2] * extractor.hop_length / sample_rate
    # At least a decibel, or the last bits of silence would have all colours.
    lowest, highest = float(S_db.min()), max(float(S_db.max()), float(S_db.min()) + 1.0)
    kilohertz = extractor.n_bins * sample_rate / extractor.n_fft / 1000
    for place, line, picture in zip(axes, lines, S_db, strict=True):
        start_s = line["start_s"]
        image = place.imshow(
            picture,
            origin="lower",
            aspect="auto",
            extent=(start_s, start_s + seconds, 0.0, kilohertz),
            vmin=lowest,
            vmax=highest,
            cmap="magma",
            interpolation="nearest",
        )
        place.set_title(line["clip_id"][-40:], fontsize=8, parse_math=False)
        place.set(xlabel="time (s)", ylabel="frequency (kHz)")
    figure.colorbar(image, ax=list(axes), label="level (dB)")


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # Not every name is in a script that Matplotlib's font has; boxes stand for the letters then.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(path, metadata={"Software": None})
