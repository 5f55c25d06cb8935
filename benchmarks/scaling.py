"""How far it scales: one worker beside two, and what the driver, the storage and the exchange of gradients cost.

    python -m benchmarks.scaling preprocess FOLDER      # clips per second at 1 and 2 workers
    python -m benchmarks.scaling train FOLDER           # samples per second at 1 and 2 workers
    python -m benchmarks.scaling driver                 # its memory and time per clip and per unit of work

`preprocess` and `train` pin each worker to one core of its own, take turns, and print medians of the ratios within a
repeat; Linux only. What is neither worker nor its decoder (driver, raylet, GCS) is not pinned, and where there are but
two cores, it takes from the second worker what it takes.

`preprocess` links the sounds of FOLDER (or `FSDD_DIR`) as often as `--clips` wants, and first makes a pass that does
not count. `train` trains with the recipe of `params.yaml` on spectrograms of these sounds, without Ray, with batches of
several sizes (`--batches`): what two workers exchange does not grow with the batch, so its table says from which size
on two pay. Beside one and two workers it measures one worker with half of the batch, which is what each of two has to
compute: what a step of two takes longer is the exchange. `driver` lists, hashes and plans `--clips` clips of which no
sound exists, puts the lines of their results together, and lets Ray's workers do nothing with units of them.
"""

import argparse
import fcntl
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import Settings, ours
from benchmarks.preprocess import repeat_files

# Sizes of the batch beside that of `params.yaml`, and how many steps of the largest an epoch has at least.
LARGE_BATCHES, LEAST_STEPS = (128, 512), 4
_pinned: list[Any] = []


def pin(folder: str) -> None:
    """Pin this process to a core that no other process with this folder has, for as long as it lives."""
    for core in sorted(os.sched_getaffinity(0)):
        file = Path(folder, str(core)).open("w", encoding="utf-8")  # noqa: SIM115 - kept until the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            _pinned.append(file)
            os.sched_setaffinity(0, {core})
            return


def pinned(folder: str, function: Callable[[Any], Any], unit: Any) -> Any:
    """Apply a function to a unit of work in a process that is pinned."""
    if not _pinned:
        pin(folder)
    return function(unit)


def preprocess(arguments: argparse.Namespace) -> None:
    """Print clips per second at one worker and at two."""
    from pipeline import engine

    with tempfile.TemporaryDirectory() as scratch, engine.connect():
        corpus, locks = Path(scratch, "corpus"), Path(scratch, "locks")
        locks.mkdir()
        link(arguments.corpus, corpus, arguments.clips)

        def run(num_workers: int) -> float:
            def map_units(function: Callable[[Any], Any], units: list[Any]) -> Iterator[Any]:
                return engine.map_units(partial(pinned, str(locks), function), units, num_workers)

            with tempfile.TemporaryDirectory(dir=scratch) as out:
                started = time.perf_counter()
                ours(Settings(num_workers, is_long=False), corpus, Path(out), map_units)
                return arguments.clips / (time.perf_counter() - started)

        run(2)
        print_ratios("clips/s", run, arguments.repeats)


def train(arguments: argparse.Namespace) -> None:
    """Print samples per second at one worker and at two, by size of the batch, and what two wait for each other."""
    from benchmarks.training import measure_apart
    from pipeline.params import PARAMS_FILE, read_params
    from training.params import Params

    batches = arguments.batches or sorted({read_params(Params, PARAMS_FILE).train.global_batch_size, *LARGE_BATCHES})
    # Of four clips, three and some more are trained on.
    n_clips = arguments.clips or max(1280, LEAST_STEPS * max(batches) * 4 // 3)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch, "corpus")
        link(arguments.corpus, corpus, n_clips)
        ours(Settings(1, is_long=False), corpus, Path(scratch))
        common = {"params": PARAMS_FILE, "spectrograms": Path(scratch, "spectrograms"), "epochs": arguments.epochs}
        common |= {"table": Path(scratch, "table.parquet"), "pinned": True}

        def run(num_workers: int, batch: int) -> float:
            rate = measure_apart("ours", num_workers, argparse.Namespace(**common, cpus=num_workers, batch_size=batch))[
                0
            ]
            assert rate is not None
            return rate

        lines = [measure_batch(run, batch, arguments.repeats) for batch in batches]
    print("| batch | one worker, samples/s | two | two beside one | a step of two (ms) | of which exchange (ms) |")
    print("|---|---|---|---|---|---|", *lines, sep="\n")


def measure_batch(run: Callable[[int, int], float], batch: int, repeats: int) -> str:
    """Return a line of Markdown of how fast one worker and two are with a size of the batch."""
    contenders = {"one": (1, batch), "two": (2, batch), "half": (1, batch // 2)}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in list(contenders)[:: 1 if repeat % 2 == 0 else -1]:
            found[name].append(run(*contenders[name]))
            print(f"batch {batch}, repeat {repeat + 1}: {name}: {found[name][-1]:.0f} samples/s", file=sys.stderr)
    one, two, half = (statistics.median(found[name]) for name in contenders)
    ratio = statistics.median(two / one for one, two in zip(found["one"], found["two"], strict=True))
    step_ms, alone_ms = 1e3 * batch / two, 1e3 * (batch // 2) / half
    return f"| {batch} | {one:.0f} | {two:.0f} | {ratio:.2f} | {step_ms:.1f} | {step_ms - alone_ms:.1f} |"


def link(sounds: Path, folder: Path, n_clips: int) -> None:
    """Make a folder of links to sounds, to some of them again if more are wanted."""
    from pipeline.corpus import list_clips

    folder.mkdir()
    repeat_files([Path(clip.path).absolute() for clip in list_clips(sounds).clips], folder, n_clips)


def print_ratios(unit: str, run: Callable[[int], float], repeats: int) -> None:
    """Let one worker and two take turns, and print what they did."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for repeat in range(repeats):
        for number in sorted(found, reverse=repeat % 2 == 1):
            found[number].append(run(number))
            print(f"repeat {repeat + 1}: {number}: {found[number][-1]:.0f} {unit}", file=sys.stderr, flush=True)
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    for number, values in found.items():
        print(f"{number} pinned: {statistics.median(values):.0f} {unit}")
    print(f"two beside one: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def driver(arguments: argparse.Namespace) -> None:
    """Print what a clip and a unit of work cost the driver."""
    from pipeline.clips import Clips
    from pipeline.corpus import Splitter, list_clips
    from pipeline.params import PipelineParams, read_params
    from pipeline.planner import plan_starts
    from pipeline.stages.preprocess import build

    n_clips, n_files = arguments.clips, arguments.files
    before = _rss()
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(n_files):
            Path(scratch, f"{index // 1000:04d}").mkdir(exist_ok=True)
            Path(scratch, f"{index // 1000:04d}", f"{index:07d}.wav").touch()
        _tell(f"list {n_files} files", n_files, lambda: list_clips(Path(scratch)))
    clips = _tell("hold clips", n_clips, lambda: Clips("/mnt/shared/sounds/", tuple([
        f"{index // 1000:04d}/{index:07d}.wav" for index in range(n_clips)
    ])))  # fmt: skip
    pipeline = build(read_params(PipelineParams))
    pipeline.splitter = Splitter(label=r"^(?P<label>[^/]+)/")
    described = _tell("label, group and split", n_clips, lambda: pipeline._describe(clips.ids))
    units = _tell("hash and plan", n_clips, lambda: plan_starts(clips, 64 << 10))
    results = _tell("hold what comes back", n_clips, lambda: [_result(unit) for unit in units])
    table = _tell("put it together", n_clips, lambda: pipeline._assemble(results, described))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"driver: {len(units)} units; {(peak - before) / n_clips:.0f} bytes of memory per clip in all, at most")
    assert len(table) == n_clips
    _measure_units(units[: arguments.units])


def _measure_units(units: list[Any]) -> None:
    """Print what Ray takes to hand units out of which nothing is made."""
    from pipeline import engine

    def nothing(unit: Any) -> int:
        return len(unit.clips)

    with engine.connect() as cpus:
        list(engine.map_units(nothing, units[:64], cpus))
        wall, cpu = time.perf_counter(), time.process_time()
        list(engine.map_units(nothing, units, cpus))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    each = 1e3 / len(units)
    print(f"driver: {len(units)} empty units of {len(units[0].clips)} clips: "
          f"{wall * each:.2f} ms each, {cpu * each:.2f} ms of the driver's processor")  # fmt: skip


def _result(unit: Any) -> Any:
    """Return what a worker sends back of a unit, as if each clip had been a short recording."""
    import hashlib

    import pyarrow as pa

    from pipeline import columns
    from pipeline.artifact import Shard
    from pipeline.shards import ROW_SCHEMA
    from pipeline.units import UnitResult

    n = len(unit.clips)
    names = [clip.clip_id for clip in unit.clips]
    known = {"clip_id": names, "sha256": [hashlib.sha256(name.encode()).hexdigest() for name in names]}
    arrays = []
    for field in ROW_SCHEMA:
        filler = "libsndfile" if pa.types.is_string(field.type) else 1
        arrays.append(columns.column(known.get(field.name, [filler] * n), field.type))
    shard = Shard(f"{unit.prefix}-{'0' * 16}.npy", n, n << 16, "0" * 64)
    return UnitResult(unit.prefix, n, shard, pa.table(arrays, schema=ROW_SCHEMA), (), n, is_part=False)


def _tell(what: str, number: int, work: Callable[[], Any]) -> Any:
    """Do something for a number of clips, print what each cost of processor and memory, and return what came of it."""
    before, started = _rss(), time.process_time()
    found = work()
    seconds = time.process_time() - started
    print(f"driver: {what}: {seconds / number * 1e6:.2f} us and {(_rss() - before) / number:.0f} bytes per clip")
    return found


def _rss() -> int:
    """Return how much memory this process has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, run, n_clips, repeats in (("preprocess", preprocess, 16000, 5), ("train", train, None, 3)):
        one = commands.add_parser(name)
        one.add_argument("corpus", type=Path, nargs="?", default=os.environ.get("FSDD_DIR"), help="a folder of sounds")
        one.add_argument(
            "--clips",
            type=int,
            default=n_clips,
            help="how many of them, some again if there are fewer; as many as the batches want by default of train",
        )
        one.add_argument("--repeats", type=int, default=repeats)
        one.set_defaults(run=run)
    one.add_argument("--epochs", type=int, default=2, help="timed epochs of each measurement")
    one.add_argument("--batches", type=int, nargs="+", help="global sizes; by default that of params.yaml, 128 and 512")
    one = commands.add_parser("driver")
    one.add_argument("--clips", type=int, default=1_000_000)
    one.add_argument("--files", type=int, default=100_000, help="how many files are really listed")
    one.add_argument("--units", type=int, default=1000, help="how many units are handed out")
    one.set_defaults(run=driver)
    given = parser.parse_args()
    if given.what != "driver" and given.corpus is None:
        parser.error("name a folder of sounds, or set FSDD_DIR to one")
    given.run(given)
