"""Stage `preprocess`: every sound of the corpus as a row of `data/spectrograms`, by Ray."""

import argparse
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline import command, engine, storage
from pipeline.clips import Rejection
from pipeline.corpus import Corpus, Splitter, list_clips
from pipeline.errors import ResourceError
from pipeline.levels import Leveller
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.packages import PREPROCESSING
from pipeline.padder import Padder
from pipeline.params import PipelineParams, read_params
from pipeline.paths import REJECTED, REPORTS, SPECTROGRAMS, SUMMARY, TABLE
from pipeline.pictures import draw_corpus
from pipeline.preprocessing import PreprocessingPipeline, RejectedError, Report, count_rejected
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver, Store
from pipeline.submission import progress_options

PICTURE = REPORTS / "preprocess" / "corpus.png"


def build(params: PipelineParams) -> PreprocessingPipeline:
    """Return the five parts as `params.yaml` describes them."""
    wanted = params.preprocess
    return PreprocessingPipeline(
        Loader(
            wanted.sample_rate,
            wanted.duration_s,
            wanted.mono,
            wanted.fold,
            wanted.resampling,
            wanted.trim_db,
            wanted.min_level_db,
        ),
        Padder(),
        LogSpectrogramExtractor(
            wanted.n_fft, wanted.hop_length, wanted.drop_nyquist, wanted.ref, wanted.amin, wanted.top_db
        ),
        MinMaxNormaliser(*wanted.range),
        Saver(SPECTROGRAMS.absolute(), TABLE.absolute(), params.resources.storage, wanted.dtype),
        Splitter(label=params.corpus.label, **params.split.model_dump()),
        wanted.max_rejected_share,
        wanted.segment,
        wanted.overlap,
        Leveller(wanted.level, wanted.level_db, wanted.sample_rate),
    )


def check_disk(pipeline: PreprocessingPipeline, corpus: Corpus, n_rows: int) -> None:
    """Say how much disk the spectrograms will take, and stop when it is not there."""
    needed = pipeline.row_bytes * n_rows
    n_clips, place, free = len(corpus.clips), pipeline.saver.shards.location, pipeline.saver.shards.free_bytes()
    where = f"in {place}" if pipeline.saver.has_storage else "and as much again in DVC's cache unless it links"
    room = "" if free is None else f"; {_megabytes(free)} free"
    print(f"preprocess: {n_clips} clips, {_megabytes(needed)} of spectrograms {where}{room}", flush=True)
    if free is not None and needed > free:
        raise ResourceError(f"{place} needs {_megabytes(needed)} for {n_clips} clips, and {_megabytes(free)} are free")


def with_progress(results: Iterable[Any], total: int, what: str) -> Iterator[Any]:
    """Pass results on, and show on a terminal how many clips are done."""
    with tqdm(total=total, unit=" clips", desc=f"preprocess: {what}", **progress_options()) as bar:
        for result in results:
            bar.update(result.n_clips)
            yield result


def write_report(counts: dict[str, float], rejected: Iterable[Rejection]) -> None:
    """Write `summary.json` and `rejected.csv`."""
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    SUMMARY.write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    with REJECTED.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "reason", "detail"])
        writer.writerows((each.clip_id, each.reason, each.detail) for each in rejected)


def summarise(report: Report) -> dict[str, float]:
    """Return the counts as DVC metrics, zeros included so that runs compare."""
    names = (
        "clips rows segments ignored rejected quiet cut trimmed padded silent resampled folded levelled "
        "duplicates computed reused removed train validation test"
    ).split()
    return {**{name: report.counts[name] for name in names}, "hours": round(report.hours, 4)}


def main(arguments: argparse.Namespace) -> None:
    """Preprocess the corpus that `params.yaml` names."""
    params = read_params(PipelineParams, arguments.params)
    pipeline = build(params)
    corpus = list_clips(Path(params.corpus.dir))
    if params.resources.storage is not None:
        storage.check(params.resources.storage)
    if pipeline.segment == "first":
        check_disk(pipeline, corpus, len(corpus.clips))
    with engine.connect(arguments.verbose) as cpus:
        some = [Path(params.corpus.dir).absolute(), *(Path(clip.path) for clip in corpus.clips[:1])]
        engine.check_nodes(PREPROCESSING, some, [params.resources.storage or str(SPECTROGRAMS.parent.absolute())])
        engine.warn_of_processors()
        workers = engine.check_workers("resources.preprocess_workers", params.resources.preprocess_workers, 1, cpus)

        def map_units(function: Callable[[Any], Any], units: list[Any]) -> Iterator[Any]:
            return with_progress(engine.map_units(function, units, workers), len(corpus.clips), function.__name__)

        try:
            if pipeline.segment == "first":
                report = pipeline.process_corpus(corpus, map_units)
            else:  # of which the number is known only when every recording's length is
                report = pipeline.process_corpus(corpus, map_units, partial(check_disk, pipeline, corpus))
        except RejectedError as error:
            write_report(dict(count_rejected(error.rejected)), error.rejected)
            raise
    write_report(summarise(report), report.rejected)
    draw_corpus(PICTURE, Store(SPECTROGRAMS, TABLE, params.resources.storage))
    for rejection in report.rejected[:20]:
        print(f"rejected: {rejection.clip_id}: {rejection.reason}: {rejection.detail}")
    if len(report.rejected) > 20:
        print(f"rejected: {len(report.rejected) - 20} more, in {REJECTED}")
    print("preprocess: " + ", ".join(f"{value} {name}" for name, value in summarise(report).items() if value))


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"


if __name__ == "__main__":
    command.run(engine.stage(main, PREPROCESSING), command.parser(__doc__).parse_args())
