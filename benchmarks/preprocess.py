"""Preprocessing throughput: ours beside the loop that this project began with, on the same files and cores.

Each measurement runs in processes of its own, one thread each, in alternating order, and makes two passes over the
corpus. Throughput and CPU time are those of the second; what the first took longer, counted from the start of the
process, is the start-up: imports, worker processes, Ray. Medians over `--repeats`, and medians of the ratios within
a repeat. Repeat it with

    python -m benchmarks.preprocess FOLDER
    python -m benchmarks.preprocess FOLDER --no-resample

on a folder of sounds, or with the Free Spoken Digit Dataset's `recordings` in `FSDD_DIR`.

The contenders
--------------
the seed's loop
    For each file `librosa.load`, `numpy.pad`, `librosa.stft`, `librosa.amplitude_to_db`, min-max, `numpy.save`.
the seed's loop, pool
    The same in a pool of as many processes as there are workers.
ours
    `PreprocessingPipeline.preprocess` with `map`.
ours, Ray
    The same with `pipeline.engine.map_units` on an embedded Ray. Its CPU time and memory include Ray's own processes.
floor
    Decode, resample, one transform in double, write: each clip by itself, and nothing checked, hashed or normalised.

Peak memory is the sum over processes of each one's peak, with what they share counted in each.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

RATE, DURATION_S, N_FFT, HOP = 22050, 0.74, 512, 256
Pass = Callable[[Path], object]


def seed_clip(source: str, target: Path) -> None:
    """Do to one file what the seed's loop does."""
    import librosa
    import numpy as np

    y, _ = librosa.load(source, sr=RATE, duration=DURATION_S, mono=True)
    n_missing = int(RATE * DURATION_S) - len(y)
    if n_missing > 0:
        y = np.pad(y, (0, n_missing), mode="constant")
    S_db = librosa.amplitude_to_db(np.abs(librosa.stft(y, n_fft=N_FFT, hop_length=HOP))[:-1])
    np.save(target, (S_db - S_db.min()) / (S_db.max() - S_db.min()))


@contextmanager
def seed_loop(folder: Path, workers: int) -> Iterator[Pass]:
    """Yield a pass in one process."""
    yield lambda out: [seed_clip(*task) for task in seed_tasks(folder, out)]


@contextmanager
def seed_pool(folder: Path, workers: int) -> Iterator[Pass]:
    """Yield a pass in a pool of processes."""
    import multiprocessing

    with multiprocessing.Pool(workers) as pool:
        yield lambda out: pool.starmap(seed_clip, seed_tasks(folder, out))


def seed_tasks(folder: Path, out: Path) -> list[tuple[str, Path]]:
    """Return each file with the place of its spectrogram."""
    return [(str(path), out / f"{path.stem}.npy") for path in sorted(folder.iterdir())]


def ours(folder: Path, out: Path, map_units: Any = map) -> object:
    """Make a store."""
    from pipeline.loader import Loader
    from pipeline.normaliser import MinMaxNormaliser
    from pipeline.padder import Padder
    from pipeline.preprocessing import PreprocessingPipeline
    from pipeline.spectrogram import LogSpectrogramExtractor
    from pipeline.store import Saver

    loader, extractor = Loader(RATE, DURATION_S, mono=True), LogSpectrogramExtractor(N_FFT, HOP)
    saver = Saver(out / "spectrograms", out / "table.parquet")
    pipeline = PreprocessingPipeline(loader, Padder(), extractor, MinMaxNormaliser(0, 1), saver)
    return pipeline.preprocess(folder, map_units)


@contextmanager
def ours_serial(folder: Path, workers: int) -> Iterator[Pass]:
    """Yield a pass in one process."""
    yield lambda out: ours(folder, out)


@contextmanager
def ours_ray(folder: Path, workers: int) -> Iterator[Pass]:
    """Yield a pass on workers of an embedded Ray."""
    from pipeline import engine

    with engine.connect():
        yield lambda out: ours(folder, out, lambda function, units: engine.map_units(function, units, workers))


@contextmanager
def floor(folder: Path, workers: int) -> Iterator[Pass]:
    """Yield a pass in one process that does only what cannot be left out."""
    import numpy as np
    import soundfile as sf
    import soxr

    padded = np.zeros(round(RATE * DURATION_S) + N_FFT)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]

    def run(out: Path) -> None:
        with (out / "all.bin").open("wb") as file:
            for path in sorted(folder.iterdir()):
                with sf.SoundFile(path) as sound:
                    rate, y = sound.samplerate, sound.read(math.floor(DURATION_S * sound.samplerate), dtype="float32")
                y = y if y.ndim == 1 else y.mean(axis=1)
                y = y if rate == RATE else soxr.resample(y, rate, RATE)
                padded[: len(y)] = y
                file.write(np.fft.rfft(frames)[:, :-1].real.astype(np.float32).data)

    yield run


CONTENDERS = {
    "the seed's loop": seed_loop,
    "the seed's loop, pool": seed_pool,
    "ours": ours_serial,
    "ours, Ray": ours_ray,
    "floor": floor,
}


def measure(arguments: argparse.Namespace) -> None:
    """Print what one contender took, in this process and those that it starts."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        CONTENDERS[arguments.measure](arguments.corpus, arguments.workers) as run,
    ):
        first, second = Path(scratch, "first"), Path(scratch, "second")
        first.mkdir()
        second.mkdir()
        run(first)
        first_s = time.time() - arguments.started
        cpu_s, started = _cpu_s(), time.perf_counter()
        run(second)
        wall_s = time.perf_counter() - started
        written = sum(path.stat().st_size for path in second.rglob("*") if path.is_file())
        found = {"wall_s": wall_s, "cpu_s": _cpu_s() - cpu_s, "start_s": first_s - wall_s, "peak": _peak_bytes()}
        print(json.dumps({**found, "written": written}))


def run_contender(name: str, corpus: Path, workers: int) -> dict[str, float]:
    """Measure one contender in a process of its own, with one thread in each process."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "benchmarks.preprocess", str(corpus), "--measure", name]
    command += ["--workers", str(workers), "--started", str(time.time())]
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    if child.returncode:
        raise SystemExit(f"error: {name!r} failed; the lines above say why")
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def main(arguments: argparse.Namespace) -> None:
    """Measure all contenders in alternating order, and print medians as a Markdown table."""
    import soundfile as sf

    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch)
        make_corpus(arguments.corpus, corpus, arguments.clips, arguments.no_resample)
        durations = [sf.info(path).duration for path in corpus.iterdir()]
        for repeat in range(arguments.repeats):
            for name in list(CONTENDERS)[:: 1 if repeat % 2 == 0 else -1]:
                results[name].append(run_contender(name, corpus, arguments.workers))
                rate = len(durations) / results[name][-1]["wall_s"]
                print(f"repeat {repeat + 1}: {name}: {rate:.0f} clips/s", file=sys.stderr, flush=True)
    resampled = "at 22,050 Hz" if arguments.no_resample else "resampled to 22,050 Hz"
    print(f"{len(durations)} clips, {resampled}; {arguments.workers} workers; {arguments.repeats} repeats\n")
    print_table(results, len(durations), sum(durations))


def make_corpus(source: Path, target: Path, n_clips: int | None, rewrite: bool) -> None:
    """Fill a folder with links to the corpus' files, or copies at 22,050 Hz, some again if more are wanted."""
    import soundfile as sf
    import soxr

    from pipeline.corpus import list_clips
    from pipeline.errors import CorpusError

    try:
        paths = [Path(clip.path).absolute() for clip in list_clips(source).clips]
    except CorpusError as error:
        raise SystemExit(f"error: {error}") from error
    for index, path in enumerate(islice(cycle(paths), n_clips or len(paths))):
        place = target / f"{index:07d}{path.suffix}"
        if rewrite:
            y, rate = sf.read(path, dtype="float32")
            sf.write(place.with_suffix(".wav"), soxr.resample(y, rate, RATE), RATE, subtype="PCM_16")
        else:
            place.symlink_to(path)


def print_table(results: dict[str, list[dict[str, float]]], n_clips: int, sound_s: float) -> None:
    """Print the medians."""

    def median(name: str, key: str) -> float:
        return statistics.median(found[key] for found in results[name])

    def ratio(name: str, other: str, key: str = "wall_s") -> str:
        pairs = zip(results[name], results[other], strict=True)
        return f"{statistics.median(theirs[key] / own[key] for own, theirs in pairs):.2f}"

    columns = (
        "clips/s|CPU µs/clip|times real time|speed: loop = 1|speed: pool = 1|CPU: loop = 1|start-up s|peak MiB|MiB"
    )
    print(f"| |{columns}|\n|{'---|' * (1 + len(columns.split('|')))}")
    for name in results:
        wall_s = median(name, "wall_s")
        cells = [f"{n_clips / wall_s:.0f}", f"{median(name, 'cpu_s') / n_clips * 1e6:.0f}", f"{sound_s / wall_s:.0f}"]
        cells += [ratio(name, "the seed's loop"), ratio(name, "the seed's loop, pool")]
        cells += [ratio(name, "the seed's loop", "cpu_s"), f"{median(name, 'start_s'):.1f}"]
        cells += [f"{median(name, key) / 2**20:.0f}" for key in ("peak", "written")]
        print(f"|{name}|{'|'.join(cells)}|")


def _processes() -> list[Any]:
    import psutil

    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def _cpu_s() -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in _processes()))


def _peak_bytes() -> int:
    """Return the sum of the processes' peaks, as Linux keeps them."""
    lines = (Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8") for process in _processes())
    return sum(int(line.split()[1]) << 10 for text in lines for line in text.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fsdd = os.environ.get("FSDD_DIR")
    parser.add_argument("corpus", type=Path, nargs="?", default=fsdd, help="a folder of sounds (default: $FSDD_DIR)")
    parser.add_argument("--clips", type=int, help="how many clips, some of them again if the folder has fewer")
    parser.add_argument("--no-resample", action="store_true", help="on copies that are at 22,050 Hz already")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.corpus is None:
        parser.error("name a folder of sounds, or set FSDD_DIR to one")
    (measure if given.measure else main)(given)
