"""One sound more: what a second run costs beside the first, on this machine and without Ray.

    python -m benchmarks.incremental FOLDER --clips 100000

Repeats the sounds of a folder (or those in `FSDD_DIR`) under other names, makes a store of them, adds one sound, and
makes it again, each run in a process of its own. Hashing, which decides what is new, is measured by itself: reading and
hashing every sound and every shard once. CPU time, not that of a clock; start-up, which is that of both, is left out.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any


def preprocess(corpus: Path, out: Path) -> dict[str, Any]:
    """Make or renew the store, and return what it took."""
    from pipeline.loader import Loader
    from pipeline.normaliser import MinMaxNormaliser
    from pipeline.padder import Padder
    from pipeline.preprocessing import PreprocessingPipeline
    from pipeline.spectrogram import LogSpectrogramExtractor
    from pipeline.store import Saver

    # What is imported late, and planned once.
    Loader().load(next(corpus.iterdir()))
    saver = Saver(out / "spectrograms", out / "table.parquet")
    parts = Loader(), Padder(), LogSpectrogramExtractor(), MinMaxNormaliser(), saver
    started = time.process_time()
    counts = PreprocessingPipeline(*parts).preprocess(corpus).counts
    cpu_s = time.process_time() - started
    return {"cpu_s": cpu_s, **{name: counts[name] for name in ("computed", "reused", "removed")}}


def hash_all(corpus: Path, out: Path) -> dict[str, Any]:
    """Hash every sound and every shard, and return what it took."""
    from pipeline.loader import Loader
    from pipeline.storage import file_sha256

    loader = Loader()
    started = time.process_time()
    for path in corpus.iterdir():
        loader.digest(path)
    for path in (out / "spectrograms").glob("*.npy"):
        file_sha256(path)
    return {"cpu_s": time.process_time() - started}


def run(name: str, corpus: Path, out: Path) -> dict[str, Any]:
    """Return what one step took, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.incremental", str(corpus), "--step", name, "--out", str(out)]
    child = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def main(arguments: argparse.Namespace) -> None:
    """Run all steps, and print a Markdown table."""
    from pipeline.corpus import list_clips

    paths = [Path(clip.path) for clip in list_clips(arguments.corpus).clips]
    with tempfile.TemporaryDirectory() as scratch:
        corpus, out = Path(scratch, "corpus"), Path(scratch, "out")
        corpus.mkdir()
        for index, path in enumerate(islice(cycle(paths), arguments.clips)):
            shutil.copyfile(path, corpus / f"{index:07d}{path.suffix}")
        first = run("preprocess", corpus, out)
        same = run("preprocess", corpus, out)
        # New content: one bit of its last sample differs.
        content = paths[0].read_bytes()
        (corpus / f"new{paths[0].suffix}").write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
        more = run("preprocess", corpus, out)
        hashing = run("hash", corpus, out)
    print("| run | CPU s | share of the first | less hashing | computed | reused |\n|---|---|---|---|---|---|")
    for title, found in (("from nothing", first), ("nothing new", same), ("one more", more)):
        share, less = found["cpu_s"] / first["cpu_s"], (found["cpu_s"] - hashing["cpu_s"]) / first["cpu_s"]
        less_text = "" if found is first else f"{less:.1%}"
        print(
            f"| {title} | {found['cpu_s']:.2f} | {share:.1%} | {less_text} | {found['computed']} | {found['reused']} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fsdd = os.environ.get("FSDD_DIR")
    parser.add_argument("corpus", type=Path, nargs="?", default=fsdd, help="a folder of sounds (default: $FSDD_DIR)")
    parser.add_argument("--clips", type=int, default=10_000, help="how many, most of them again (default: %(default)s)")
    parser.add_argument("--step", choices=["preprocess", "hash"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.corpus is None:
        parser.error("name a folder of sounds, or set FSDD_DIR to one")
    if given.step:
        print(json.dumps((preprocess if given.step == "preprocess" else hash_all)(given.corpus, given.out)))
    else:
        main(given)
