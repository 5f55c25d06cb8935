"""Preprocessing throughput: ours beside the loop that this project began with, on the same files and cores.

    python -m benchmarks.preprocess FOLDER
    python -m benchmarks.preprocess FOLDER --clips 30000 100000 --repeats 1 --long 4

on a folder of sounds, or with the Free Spoken Digit Dataset's `recordings` in `FSDD_DIR`. Each corpus is the folder's
sounds (again and again under other names, if `--clips` wants more), as they are and once more at 22,050 Hz; `--long N`
is N recordings of an hour each, of these sounds one after the other, of which all segments are wanted. Each is a table.

Each measurement runs in processes of its own, one thread each, in alternating order: some sounds first, a unit of work
for each worker, which takes the start-up (imports, worker processes, Ray), then all of them, which is what is measured.
Medians over `--repeats`, and medians of the ratios within a repeat.

The contenders
--------------
the seed's loop
    For each file `librosa.load`, `numpy.pad`, `librosa.stft`, `librosa.amplitude_to_db`, min-max, `numpy.save`.
the seed's loop, pool; Ray Data; `datasets`
    The same in a pool of as many processes as there are workers, as `ray.data.Dataset.map`, and as Hugging Face's
    `datasets.Dataset.map`, which is installed from PyPI for the time of the benchmark. (Lhotse wants PyTorch.)
ours
    `PreprocessingPipeline.preprocess` with `map`.
ours, Ray; Ray Data
    The same with `pipeline.engine.map_units` on an embedded Ray, and with a map of Ray Data over the same units.
    CPU time and memory include Ray's own processes.
floor; floor, pool
    Decode, resample, one transform in double, write: each clip by itself, and nothing checked, hashed or normalised.

Peak memory is the sum over processes of each one's peak, with what they share counted in each. `driver B/clip` is what
the peak of the first process alone grew by while the corpus was made, for each clip.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS, DURATION_S, LOOP, PEERS, POOL, RATE, SHORT_ONLY, Settings, one_thread

Results = dict[str, list[dict[str, float]]]
# Of the pass that takes the start-up, for each worker: as many as fill one of our units of work.
WARM_CLIPS = 512


def measure(arguments: argparse.Namespace) -> None:
    """Print what one contender took, in this process and those that it starts."""
    settings = Settings(arguments.workers, arguments.is_long)
    with tempfile.TemporaryDirectory() as scratch, CONTENDERS[arguments.measure](settings) as run:
        warm, few, out = (Path(scratch, name) for name in ("warm", "few", "out"))
        for folder in (warm, few, out):
            folder.mkdir()
        n_few = 1 if arguments.is_long else arguments.workers * WARM_CLIPS
        for path in islice(sorted(arguments.corpus.iterdir()), n_few):
            (few / path.name).symlink_to(path)
        run(few, warm)
        start_s, before, cpu_s, started = time.time() - arguments.started, _peaks(), _cpu_s(), time.perf_counter()
        run(arguments.corpus, out)
        wall_s, cpu_s, after = time.perf_counter() - started, _cpu_s() - cpu_s, _peaks()
        written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        driver = after[os.getpid()] - before[os.getpid()]
        found = {"wall_s": wall_s, "cpu_s": cpu_s, "start_s": start_s, "peak": sum(after.values()), "driver": driver}
        print(json.dumps({**found, "written": written}))


def run_contender(name: str, corpus: Path, settings: Settings, python: str) -> dict[str, float]:
    """Measure one contender in a process of its own."""
    command = [python, "-m", "benchmarks.preprocess", str(corpus), "--measure", name, "--started", str(time.time())]
    command += ["--workers", str(settings.workers), *["--is-long"] * settings.is_long]
    child = subprocess.run(command, env=one_thread(), stdout=subprocess.PIPE, check=False)
    if child.returncode:
        raise SystemExit(f"error: {name!r} failed; the lines above say why")
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def main(arguments: argparse.Namespace) -> None:
    """Measure all contenders on all corpora, and print medians as Markdown tables."""
    with tempfile.TemporaryDirectory() as scratch:
        pythons = install_peers(Path(scratch, "peers"), arguments.only)
        names = [name for name in arguments.only if name in pythons]
        for number, (title, make, is_long) in enumerate(corpora(arguments)):
            corpus = Path(scratch, str(number))
            corpus.mkdir()
            n_clips, sound_s = make(corpus)
            settings = Settings(arguments.workers, is_long)
            wanted = [name for name in names if not (is_long and name in SHORT_ONLY)]
            results: Results = {name: [] for name in wanted}
            for repeat in range(arguments.repeats):
                for name in wanted[:: 1 if repeat % 2 == 0 else -1]:
                    results[name].append(run_contender(name, corpus, settings, pythons[name]))
                    rate = n_clips / results[name][-1]["wall_s"]
                    print(f"{title}, repeat {repeat + 1}: {name}: {rate:.0f} clips/s", file=sys.stderr, flush=True)
            workers, repeats = arguments.workers, arguments.repeats
            print(f"\n{n_clips:,} clips, {title}; {workers} workers; repeats: {repeats}\n")
            print_table(results, n_clips, sound_s)


def install_peers(folder: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Return each contender's Python: this one, or that of an environment on top of it, into which a peer goes."""
    pythons = {name: sys.executable for name in wanted if name not in PEERS}
    for name in set(wanted).intersection(PEERS):
        package, place = PEERS[name], folder / PEERS[name]
        try:
            subprocess.run([sys.executable, "-m", "venv", place], check=True, stdout=subprocess.DEVNULL)
            (site,) = place.glob("lib/python*/site-packages")
            paths = "\n".join(path for path in sys.path if path.endswith("site-packages"))
            (site / "this.pth").write_text(f"{paths}\n", encoding="utf-8")
            pip = [place / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", package]
            subprocess.run(pip, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            pythons[name] = str(place / "bin" / "python")
        except (OSError, subprocess.CalledProcessError):
            print(f"left out: {name}, since `pip install {package}` failed", file=sys.stderr)
    return pythons


def corpora(arguments: argparse.Namespace) -> Iterator[tuple[str, Any, bool]]:
    """Yield the title of each corpus, what fills a folder with it, and whether all of each recording is wanted."""
    from pipeline.corpus import list_clips
    from pipeline.errors import CorpusError

    try:
        paths = [Path(clip.path).absolute() for clip in list_clips(arguments.corpus).clips]
    except CorpusError as error:
        raise SystemExit(f"error: {error}") from error
    for n_clips in arguments.clips or [len(paths)]:
        if "own" in arguments.rates:
            yield "resampled to 22,050 Hz", lambda target, n=n_clips: repeat_files(paths, target, n), False
        if "22050" in arguments.rates:
            yield "at 22,050 Hz", lambda target, n=n_clips: repeat_resampled(paths, target, n), False
    if arguments.long:
        yield (
            f"of {arguments.long} h in recordings of an hour",
            lambda target: join(paths, target, arguments.long),
            True,
        )


def repeat_files(paths: Sequence[Path], target: Path, n_clips: int) -> tuple[int, float]:
    """Fill a folder with links to files, some again if more are wanted; return how many, and seconds of sound."""
    import soundfile as sf

    for index, path in enumerate(islice(cycle(paths), n_clips)):
        place = target / f"{index:07d}{path.suffix}"
        try:
            place.hardlink_to(path)
        except OSError:  # on another disk
            place.symlink_to(path)
    lengths = [sf.info(path).duration for path in paths[:n_clips]]
    return n_clips, sum(islice(cycle(lengths), n_clips))


def repeat_resampled(paths: Sequence[Path], target: Path, n_clips: int) -> tuple[int, float]:
    """Do as `repeat_files` with copies at 22,050 Hz."""
    with hidden(target) as folder:
        copies = []
        for index, path in enumerate(paths[:n_clips]):
            copies.append(folder / f"{index}.wav")
            write(copies[-1], [path], RATE)
        return repeat_files(copies, target, n_clips)


def join(paths: Sequence[Path], target: Path, n_files: int) -> tuple[int, float]:
    """Fill a folder with recordings of an hour; return how many segments they have, and seconds of sound."""
    import soundfile as sf

    infos = [sf.info(path) for path in paths]
    rate = infos[0].samplerate
    for index in range(n_files):
        missing_s, some = 3600.0, []
        for path, info in cycle(zip(paths[index:] + paths[:index], infos[index:] + infos[:index], strict=True)):
            some.append(path)
            missing_s -= info.duration
            if missing_s <= 0:
                break
        write(target / f"{index}.wav", some, rate)
    seconds = [sf.info(path).duration for path in target.iterdir()]
    return sum(int(-(-length // DURATION_S)) for length in seconds), sum(seconds)


def write(target: Path, sources: Sequence[Path], rate: int) -> None:
    """Write recordings one after the other, at one rate, in 16 bits."""
    import soundfile as sf
    import soxr

    with sf.SoundFile(target, "w", rate, 1, subtype="PCM_16") as file:
        for source in sources:
            y, its_rate = sf.read(source, dtype="float32", always_2d=True)
            file.write(soxr.resample(y.mean(axis=1), its_rate, rate) if its_rate != rate else y.mean(axis=1))


@contextmanager
def hidden(target: Path) -> Iterator[Path]:
    """Yield a folder beside another for files that it links to."""
    folder = target.with_name(f"{target.name}_files")
    folder.mkdir()
    yield folder


def print_table(results: Results, n_clips: int, sound_s: float) -> None:
    """Print the medians."""

    def median(name: str, key: str) -> float:
        return statistics.median(found[key] for found in results[name])

    def ratio(name: str, other: str, key: str = "wall_s") -> str:
        if other not in results:
            return ""
        pairs = zip(results[name], results[other], strict=True)
        return f"{statistics.median(theirs[key] / own[key] for own, theirs in pairs):.2f}"

    columns = (
        "clips/s|CPU µs/clip|times real time|speed: loop = 1|speed: pool = 1|speed: floor = 1|floor, pool = 1|"
        "CPU: loop = 1|start-up s|peak MiB|driver B/clip|MiB"
    )
    print(f"| |{columns}|\n|{'---|' * (1 + len(columns.split('|')))}")
    for name in results:
        wall_s = median(name, "wall_s")
        cells = [f"{n_clips / wall_s:.0f}", f"{median(name, 'cpu_s') / n_clips * 1e6:.0f}", f"{sound_s / wall_s:.0f}"]
        cells += [ratio(name, other) for other in (LOOP, POOL, "floor", "floor, pool")]
        cells += [ratio(name, LOOP, "cpu_s"), f"{median(name, 'start_s'):.1f}", f"{median(name, 'peak') / 2**20:.0f}"]
        cells += [f"{median(name, 'driver') / n_clips:.0f}", f"{median(name, 'written') / 2**20:.0f}"]
        print(f"|{name}|{'|'.join(cells)}|")
    sys.stdout.flush()


def _processes() -> list[Any]:
    import psutil

    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def _cpu_s() -> float:
    """Return the seconds of processors of the processes that there are, and of their children that there were."""
    return float(sum(sum(process.cpu_times()[:4]) for process in _processes()))


def _peaks() -> dict[int, int]:
    """Return the peak of each process in bytes, as Linux keeps them."""
    peaks = {}
    for process in _processes():
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        peaks[process.pid] = sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return peaks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fsdd = os.environ.get("FSDD_DIR")
    parser.add_argument("corpus", type=Path, nargs="?", default=fsdd, help="a folder of sounds (default: $FSDD_DIR)")
    parser.add_argument("--clips", type=int, nargs="*", help="how many clips, a corpus each (default: the folder's)")
    parser.add_argument("--rates", nargs="*", choices=["own", "22050"], default=["own", "22050"])
    parser.add_argument("--long", type=int, default=0, help="hours of long recordings (default: none)")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--is-long", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    given = _parser().parse_args()
    if given.corpus is None:
        _parser().error("name a folder of sounds, or set FSDD_DIR to one")
    (measure if given.measure else main)(given)
