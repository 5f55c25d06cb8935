"""What `benchmarks.preprocess` compares: ways to make spectrograms of a folder of sounds.

Each is a context manager that starts what it needs, and yields a function that goes over all sounds of a folder once
and writes into another. What a contender imports, it imports there: that is part of its start-up.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

RATE, DURATION_S, N_FFT, HOP = 22050, 0.74, 512, 256
Pass = Callable[[Path, Path], object]


@dataclass(frozen=True)
class Settings:
    """How many processes a contender may have, and whether all of each recording is wanted, as segments."""

    workers: int
    is_long: bool


def seed_spectrogram(y: Any) -> Any:
    """Do to one signal what the seed's loop does."""
    import librosa
    import numpy as np

    n_missing = int(RATE * DURATION_S) - len(y)
    if n_missing > 0:
        y = np.pad(y, (0, n_missing), mode="constant")
    S_db = librosa.amplitude_to_db(np.abs(librosa.stft(y, n_fft=N_FFT, hop_length=HOP))[:-1])
    return (S_db - S_db.min()) / (S_db.max() - S_db.min())


def seed_clip(source: str) -> Any:
    """Do to the start of one file what the seed's loop does."""
    import librosa

    return seed_spectrogram(librosa.load(source, sr=RATE, duration=DURATION_S, mono=True)[0])


def seed_file(settings: Settings, task: tuple[str, str]) -> None:
    """Write the spectrogram of the start of one file, or those of all its segments."""
    import librosa
    import numpy as np

    source, target = task
    if not settings.is_long:
        np.save(f"{target}.npy", seed_clip(source))
        return
    y, _ = librosa.load(source, sr=RATE, mono=True)
    step = int(RATE * DURATION_S)
    for index, start in enumerate(range(0, len(y), step)):
        np.save(f"{target}_{index}.npy", seed_spectrogram(y[start : start + step]))


def seed_tasks(folder: Path, out: Path) -> list[tuple[str, str]]:
    """Return each file with the place of its spectrogram."""
    return [(str(path), str(out / path.stem)) for path in sorted(folder.iterdir())]


@contextmanager
def in_one(
    work: Callable[[Settings, Any], None], plan: Callable[[Path, Path], list[Any]], settings: Settings
) -> Iterator[Pass]:
    """Yield a pass that works on one file after the other, in one process."""
    yield lambda folder, out: [work(settings, task) for task in plan(folder, out)]


@contextmanager
def in_pool(
    work: Callable[[Settings, Any], None], plan: Callable[[Path, Path], list[Any]], settings: Settings
) -> Iterator[Pass]:
    """Yield a pass in a pool of processes."""
    import multiprocessing

    with multiprocessing.Pool(settings.workers) as pool:
        yield lambda folder, out: pool.map(partial(work, settings), plan(folder, out))


@contextmanager
def seed_ray_data(settings: Settings) -> Iterator[Pass]:
    """Yield a pass as a map of Ray Data."""
    import ray
    import ray.data

    from pipeline import engine

    def work(row: dict[str, Any]) -> dict[str, Any]:
        seed_file(settings, (row["source"], row["target"]))
        return {"source": row["source"]}

    def run(folder: Path, out: Path) -> None:
        rows = [{"source": source, "target": target} for source, target in seed_tasks(folder, out)]
        ray.data.from_items(rows).map(work).materialize()

    with engine.connect():
        _quiet_ray_data()
        yield run


def _quiet_ray_data() -> None:
    """Keep what Ray Data reports of each execution off the terminal."""
    import logging

    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False


@contextmanager
def seed_datasets(settings: Settings) -> Iterator[Pass]:
    """Yield a pass as a map of Hugging Face's `datasets`, which keeps what comes out in Arrow files of its own."""
    import datasets

    datasets.disable_progress_bars()
    # The first bin by the first frame, as the seed's.
    features = datasets.Features({"x": datasets.Array2D((N_FFT // 2, 1 + int(RATE * DURATION_S) // HOP), "float32")})

    def run(folder: Path, out: Path) -> None:
        # Absolute paths of recordings only: `datasets.Audio` decodes by PyTorch.
        paths = [source for source, _ in seed_tasks(folder, out)]
        dataset = datasets.Dataset.from_dict({"source": paths})
        dataset.map(
            lambda row: {"x": seed_clip(row["source"])},
            num_proc=settings.workers,
            remove_columns=["source"],
            features=features,
            cache_file_name=str(out / "x.arrow"),
        )

    yield run


def ours(settings: Settings, folder: Path, out: Path, map_units: Any = map) -> object:
    """Make a store, as the stage does."""
    from pipeline.loader import Loader
    from pipeline.normaliser import MinMaxNormaliser
    from pipeline.padder import Padder
    from pipeline.preprocessing import PreprocessingPipeline
    from pipeline.spectrogram import LogSpectrogramExtractor
    from pipeline.store import Saver

    loader, extractor = Loader(RATE, DURATION_S, mono=True), LogSpectrogramExtractor(N_FFT, HOP)
    saver = Saver(out / "spectrograms", out / "table.parquet")
    segment: Any = "all" if settings.is_long else "first"
    pipeline = PreprocessingPipeline(
        loader, Padder(), extractor, MinMaxNormaliser(0, 1), saver, segment=segment, overlap=0.0
    )
    return pipeline.preprocess(folder, map_units)


@contextmanager
def ours_serial(settings: Settings) -> Iterator[Pass]:
    """Yield a pass in one process."""
    yield partial(ours, settings)


@contextmanager
def ours_ray(settings: Settings) -> Iterator[Pass]:
    """Yield a pass on workers of an embedded Ray."""
    from pipeline import engine

    with engine.connect():
        yield partial(ours, settings, map_units=partial(engine.map_units, num_workers=settings.workers))


@contextmanager
def ours_ray_data(settings: Settings) -> Iterator[Pass]:
    """Yield a pass of which Ray Data maps the units of work."""
    import ray
    import ray.data

    from pipeline import engine

    def map_units(function: Callable[[Any], Any], units: list[Any]) -> Iterator[Any]:
        rows = [{"unit": unit} for unit in units]
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            lambda row: {"result": function(row["unit"])}
        )
        return (row["result"] for row in done.iter_rows())

    with engine.connect():
        _quiet_ray_data()
        yield partial(ours, settings, map_units=map_units)


def floor_file(settings: Settings, task: tuple[str, str]) -> None:
    """Do to one file what cannot be left out: decode, resample, one transform in double, write."""
    import numpy as np
    import soundfile as sf
    import soxr

    source, target = task
    with sf.SoundFile(source) as sound:
        rate = sound.samplerate
        y = sound.read(-1 if settings.is_long else math.floor(DURATION_S * rate), dtype="float32")
    y = y if y.ndim == 1 else y.mean(axis=1)
    y = y if rate == RATE else soxr.resample(y, rate, RATE)
    n_samples = round(RATE * DURATION_S)
    padded = np.zeros(n_samples + N_FFT)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    with Path(target).open("ab") as file:
        for start in range(0, len(y), n_samples) if settings.is_long else [0]:
            some = y[start : start + n_samples]
            padded[: len(some)] = some
            padded[len(some) :] = 0.0
            file.write(np.fft.rfft(frames)[:, :-1].real.astype(np.float32).data)


def floor_tasks(folder: Path, out: Path) -> list[tuple[str, str]]:
    """Return each file with one of few files for what comes out."""
    return [(str(path), str(out / f"{index % 64}.bin")) for index, path in enumerate(sorted(folder.iterdir()))]


LOOP, POOL, DATASETS = "the seed's loop", "the seed's loop, pool", "the seed's loop, `datasets`"
CONTENDERS = {
    LOOP: partial(in_one, seed_file, seed_tasks),
    POOL: partial(in_pool, seed_file, seed_tasks),
    "the seed's loop, Ray Data": seed_ray_data,
    DATASETS: seed_datasets,
    "ours": ours_serial,
    "ours, Ray": ours_ray,
    "ours, Ray Data": ours_ray_data,
    "floor": partial(in_one, floor_file, floor_tasks),
    "floor, pool": partial(in_pool, floor_file, floor_tasks),
}
# Those of which the parts of one recording cannot be rows of a map's result.
SHORT_ONLY = frozenset({DATASETS})
# What a peer wants that is no dependency of this project: installed beside it, in an environment that goes again.
PEERS = {DATASETS: "datasets"}


def one_thread() -> dict[str, str]:
    """Return this process's environment, with one thread for each process that has it."""
    return os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
