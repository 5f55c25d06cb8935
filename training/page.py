"""The page to hear and see a trained model: one self-contained file of sounds, spectrograms and a map. Matplotlib."""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import Any

import matplotlib as mpl
import numpy as np
import soundfile as sf
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

_TEMPLATES = Path(__file__).parent / "templates"
_FEW_LABELS = 10
Rows = Sequence[dict[str, str]]


class SoundWriter:
    """Turns signals into what the page holds of a sound: FLAC and a picture, as data addresses.

    Parameters
    ----------
    to_db : callable
        From a signal (n_samples,) to its spectrogram in dB, (n_bins, n_frames).
    sample_rate : int
        In Hz.
    """

    def __init__(self, to_db: Callable[[NDArray[np.float32]], NDArray[np.float32]], sample_rate: int) -> None:
        self._to_db = to_db
        self._sample_rate = sample_rate

    def audio(self, y: NDArray[np.float32]) -> str:
        """Return a signal (n_samples,) as FLAC, which every browser plays and which loses nothing."""
        file = io.BytesIO()
        sf.write(file, y, self._sample_rate, format="FLAC", subtype="PCM_16")
        return _address("audio/flac", file.getvalue())

    def sound(self, y: NDArray[np.float32], title: str = "") -> dict[str, str]:
        """Return a signal's sound, spectrogram and title."""
        return {"title": title, "audio": self.audio(y), "image": spectrogram_png(self._to_db(y))}


def spectrogram_png(S_db: NDArray[np.float32]) -> str:
    """Return a spectrogram (n_bins, n_frames) as the data address of a PNG, low frequencies at the bottom."""
    low, high = float(S_db.min()), float(S_db.max())
    levels = np.round((S_db - low) * (255 / (high - low if high > low else 1.0))).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels[::-1]))
    image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return _address("image/png", file.getvalue())


def label_colours(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour for each label, as `#rrggbb`; readable on light and on dark ground."""
    known = sorted(set(labels))
    if len(known) <= _FEW_LABELS:
        return {label: to_hex(mpl.colormaps["tab10"](number)) for number, label in enumerate(known)}
    # Neighbours in hue differ in brightness.
    return {
        label: to_hex(tuple(hsv_to_rgb((number / len(known), 0.75, 0.9 if number % 2 else 0.65)).tolist()))
        for number, label in enumerate(known)
    }


def map_svg(points: NDArray[np.float64], colours: Sequence[str]) -> str:
    """Return points (n, 2) of the unit square as SVG, each a group named `point-<number>`."""
    with mpl.rc_context({"svg.hashsalt": "map", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9.0, 5.6))
        axes = figure.add_axes((0.02, 0.03, 0.96, 0.94))
        axes.set_axis_off()
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        for number, ((x, y), colour) in enumerate(zip(points.tolist(), colours, strict=True)):
            axes.plot([x], [y], "o", markersize=9, markeredgewidth=0, color=colour, gid=f"point-{number}")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # What stands before the drawing and about it is for a file of its own.
    return re.sub(r"^.*?(?=<svg)|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.DOTALL)


def figure_rows(figures: dict[str, float]) -> list[tuple[str, ...]]:
    """Return the evaluation's figures as lines: name, the model's, PCA's, the difference; with intervals."""
    # With so many decimals, of the difference one more; `z` is zero without a sign.
    named = {
        "mse": ("mean squared error (normalised)", 5),
        "psnr_db": ("peak signal-to-noise ratio (dB)", 1),
        "log_spectral_distance_db": ("log-spectral distance of the sounds (dB)", 1),
        "multi_resolution_stft": ("multi-resolution STFT distance", 2),
        "spectral_convergence_db": ("spectral convergence of the sounds (dB)", 1),
    }
    rows = []
    for key, (name, decimals) in named.items():
        cells = []
        for prefix, form in (
            ("test_", f"z.{decimals}f"),
            ("pca_test_", f"z.{decimals}f"),
            ("difference_test_", f"+z.{decimals + 1}f"),
        ):
            values = [figures.get(f"{prefix}{key}{suffix}", math.nan) for suffix in ("", "_low", "_high")]
            cells.append("{} ({} to {})".format(*(format(value, form) for value in values)))
        rows.append((name, *cells))
    return rows


def render(content: dict[str, Any], svg: str) -> str:
    """Return the page: everything that people named goes in as JSON, and the script sets it as text."""
    # In a script element only `</` and `<!--` end or change what JSON says.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    template = Template((_TEMPLATES / "listen.html").read_text(encoding="utf-8"))
    style, script = ((_TEMPLATES / f"listen.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return template.substitute(style=style, script=script, data=data, map=svg)


def _address(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@lru_cache(maxsize=1)
def _palette() -> list[int]:
    colours = mpl.colormaps["magma"](np.arange(256), bytes=True)[:, :3]
    return [int(value) for value in colours.ravel()]
