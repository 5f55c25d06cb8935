"""How near the sounds of spectrograms come to them, and how fast: ways to find phases, side by side.

    python -m benchmarks.inversion                 # after dvc repro, or with --folder and --table

Takes `--clips` spectrograms of the store, seeded, undoes their normalisation, and makes sounds of them on one core in
each way. Spectral convergence is 20 log10(|S - S'| / |S|) in dB, with S the magnitudes and S' those of the sound;
tuning is how far a sine of 220 Hz, preprocessed and brought back, is off. Medians; lower is better for both. CPU time
counts, and batches of 25, of which the fastest of three passes.

The ways
--------
zero phase
    All phases zero, as in `librosa.istft(magnitude)`.
Griffin-Lim
    `librosa.griffinlim`: random first phases, momentum 0.99.
PGHI
    Phase gradient heap integration, by `pghipy` where it is installed (`pip install pghipy`), and Griffin-Lim after it.
peaks
    `pipeline.inversion`: phases that go on as peaks' frequencies say, and Griffin-Lim after it. Ours.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import librosa
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipeline.griffin_lim import griffin_lim
from pipeline.inversion import peak_phases
from pipeline.normaliser import MinMaxNormaliser
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Store

BATCH = 25
TONE_HZ = 220.0
Invert = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def ways(n_fft: int, hop_length: int, length: int, iterations: list[int]) -> dict[str, Invert]:
    """Return functions from magnitudes (n, n_bins, n_frames) to sounds (n, length), by name."""
    options: dict[str, Any] = {"n_fft": n_fft, "hop_length": hop_length, "length": length}

    def after(phases: Callable[[NDArray[np.float32]], Any], n_iter: int) -> Invert:
        return lambda magnitude: griffin_lim(magnitude, phases(magnitude), hop_length, length, n_iter)

    def random(n_iter: int) -> Invert:
        return lambda magnitude: librosa.griffinlim(magnitude, n_iter=n_iter, random_state=0, **options)

    found: dict[str, Invert] = {"zero phase": after(np.ones_like, 0)}
    starts = {"peaks": lambda magnitude: peak_phases(magnitude, n_fft, hop_length)}
    try:
        import pghipy
    except ImportError:
        print("pghipy is not installed, so PGHI is left out")
    else:
        gamma = 0.25645 * n_fft**2  # the Gaussian nearest to Hann's window

        def heap_integrated(magnitude: NDArray[np.float32]) -> Any:
            frames = (np.ascontiguousarray(each.T, dtype=np.float64) for each in magnitude)
            return np.exp(1j * np.stack([pghipy.pghi(each, n_fft, hop_length, gamma).T for each in frames]))

        starts = {"PGHI": heap_integrated} | starts
    for n_iter in iterations:
        found[f"Griffin-Lim, {n_iter}"] = random(n_iter)
    for name, start in starts.items():
        for n_iter in (0, *iterations):
            found[f"{name}, then {n_iter} of Griffin-Lim" if n_iter else name] = after(start, n_iter)
    return found


def convergence_db(extractor: LogSpectrogramExtractor, magnitude: NDArray[np.float32], y: NDArray[np.float32]) -> Any:
    """Return the spectral convergence of each sound, shape (n,)."""
    found = np.abs(librosa.stft(y, n_fft=extractor.n_fft, hop_length=extractor.hop_length))
    differences, norms = (np.linalg.norm(each, axis=(-2, -1)) for each in (found - magnitude, magnitude))
    return 20 * np.log10(differences / norms)


def main(arguments: argparse.Namespace) -> None:
    """Measure each way, and print a Markdown table."""
    store = Store(arguments.folder, arguments.table)
    wanted = store.format.parameters
    extractor = LogSpectrogramExtractor(
        *(wanted[name] for name in ("n_fft", "hop_length", "drop_nyquist", "ref", "amin", "top_db"))
    )
    which = np.sort(np.random.default_rng(0).permutation(store.format.n_rows)[: arguments.clips])
    extremes = (store.table[name].to_numpy()[which] for name in ("min_db", "max_db"))
    S_db = MinMaxNormaliser(*wanted["range"]).denormalise(store.rows(which), *extremes)
    sample_rate, n_samples = wanted["sample_rate"], round(wanted["sample_rate"] * wanted["duration_s"])
    tone = 0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(n_samples) / sample_rate)
    magnitudes = [extractor.magnitude(each) for each in (S_db, extractor.extract(tone[None].astype(np.float32)))]
    length = (magnitudes[0].shape[-1] - 1) * extractor.hop_length
    print(f"{len(which)} clips of {wanted['duration_s']} s, n_fft {extractor.n_fft}, hop {extractor.hop_length}\n")
    print(
        f"| phases | spectral convergence (dB) | {TONE_HZ:.0f} Hz off by (cents) | times real time |\n|---|---|---|---|"
    )
    for name, invert in ways(extractor.n_fft, extractor.hop_length, length, arguments.iterations).items():
        invert(magnitudes[0][:1])  # compiles what is compiled
        took_s = []
        for _ in range(3):
            start_s = time.process_time()
            y = np.concatenate([invert(magnitudes[0][start : start + BATCH]) for start in range(0, len(which), BATCH)])
            took_s.append(time.process_time() - start_s)
        error_db = np.median(convergence_db(extractor, magnitudes[0], y))
        (sung,) = invert(magnitudes[1])
        spectrum = np.abs(np.fft.rfft(sung * np.hanning(length), 1 << 21))
        cents = 1200 * np.log2(spectrum.argmax() * sample_rate / (1 << 21) / TONE_HZ)
        faster = len(which) * wanted["duration_s"] / min(took_s)
        print(f"| {name} | {error_db:.1f} | {abs(cents):.1f} | {faster:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=SPECTROGRAMS)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--iterations", type=int, nargs="+", default=[16, 32, 64])
    with threadpool_limits(1):
        main(parser.parse_args())
