"""Recordings that nobody here made: packages of Debian, each preprocessed whole, and every file of them accounted for.

    python -m benchmarks.corpora
    python -m benchmarks.corpora hydrogen-drumkits wesnoth-1.16-music --segment first

Fetches packages by `apt-get download` and unpacks them into a folder that goes again; nothing is installed. Wants
Debian or one of its kin, with lists of packages (`apt-get update`). By default: prompts of a telephone exchange,
samples of drums and instruments, letters and syllables spoken in many languages, sounds of a desktop, music and sounds
of a game.

Every file must be a clip, ignored, or rejected with a reason: ends with exit status 1 where the numbers do not add up,
and prints what was rejected. All segments of each recording are made, or the first with `--segment first`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

PACKAGES = (
    "asterisk-core-sounds-en-wav",
    "lmms-common",
    "klettres-data",
    "sound-theme-freedesktop",
    "frozen-bubble-data",
)


def unpack(package: str, folder: Path) -> tuple[str, Path]:
    """Download a package into a folder, and return its version and where its files are."""
    try:
        # As who runs this: apt's own user cannot write here, and says so.
        options = ["-qq", "-o", "APT::Sandbox::User=root"]
        subprocess.run(["apt-get", *options, "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"error: {package!r} cannot be had from apt: {error}") from error
    version = archive.name.split("_")[1].replace("%3a", ":")
    archive.unlink()
    return version, folder / package


def count_files(folder: Path) -> int:
    """Return how many files and links to none there are, by another way than that of `list_clips`."""
    return sum(len(names) for _, _, names in os.walk(folder, followlinks=True))


def preprocess(folder: Path, out: Path, segment: Any) -> Any:
    """Return the report of a store of all that is in a folder."""
    from pipeline.loader import Loader
    from pipeline.normaliser import MinMaxNormaliser
    from pipeline.padder import Padder
    from pipeline.preprocessing import PreprocessingPipeline
    from pipeline.spectrogram import LogSpectrogramExtractor
    from pipeline.store import Saver

    parts = (
        Loader(),
        Padder(),
        LogSpectrogramExtractor(),
        MinMaxNormaliser(),
        Saver(out / "rows", out / "table.parquet"),
    )
    return PreprocessingPipeline(*parts, max_rejected_share=1.0, segment=segment, overlap=0.25).preprocess(folder)


def main(arguments: argparse.Namespace) -> None:
    """Preprocess all packages, and print a Markdown table and what was rejected."""
    wrong, rejected = [], []
    columns = "package|version|files|clips|ignored|rejected|suffixes of clips|kHz|hours|rows|resampled|folded|clips/s"
    print(f"|{columns}|\n|{'---|' * len(columns.split('|'))}", flush=True)
    for package in arguments.packages or PACKAGES:
        with tempfile.TemporaryDirectory() as scratch:
            version, folder = unpack(package, Path(scratch))
            started = time.perf_counter()
            report = preprocess(folder, Path(scratch, "out"), arguments.segment)
            seconds = time.perf_counter() - started
            counts, n_files = report.counts, count_files(folder)
            suffixes, rates = describe(Path(scratch, "out", "table.parquet"))
        found = [counts[name] for name in ("clips", "ignored", "rejected")]
        numbers = [f"{number:,}" for number in (n_files, *found)]
        rows = [f"{report.hours:.2f}", *(f"{counts[name]:,}" for name in ("rows", "resampled", "folded"))]
        cells = [package, version, *numbers, suffixes, rates, *rows, f"{counts['clips'] / seconds:.0f}"]
        print(f"|{'|'.join(cells)}|", flush=True)
        rejected += [f"{package}: {each.clip_id}: {each.reason}: {each.detail}" for each in report.rejected]
        if sum(found) != n_files:
            wrong.append(f"{package}: {n_files} files, of which {sum(found)} are accounted for")
    print("\n".join(["", *rejected]))
    if wrong:
        sys.exit("error: " + "; ".join(wrong))


def describe(table_path: Path) -> tuple[str, str]:
    """Return how many clips have which suffix, and the rates that there are."""
    import pyarrow.parquet as pq

    from pipeline.summary import first_lines

    clips = first_lines(pq.read_table(table_path))
    suffixes = Counter(Path(clip_id).suffix.lower() or "none" for clip_id in clips["clip_id"].to_pylist())
    rates = sorted(set(clips["source_rate"].to_pylist()))
    return ", ".join(f"{suffix} {n}" for suffix, n in suffixes.most_common()), ", ".join(f"{r / 1000:g}" for r in rates)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", help="of Debian (default: those above)")
    parser.add_argument("--segment", choices=["first", "all"], default="all")
    main(parser.parse_args())
