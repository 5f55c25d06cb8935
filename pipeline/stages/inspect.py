"""Show a store: what it holds, one clip as a picture and as sound, and whether every byte is as it was written.

python -m pipeline.stages.inspect                                  # what there is
python -m pipeline.stages.inspect a/b.wav --picture a.png --sound a.wav
python -m pipeline.stages.inspect --verify
"""

import argparse
import csv
import difflib
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from pipeline import command
from pipeline.errors import AudioError, CorpusError, ParameterError, ResourceError
from pipeline.params import PARAMS_FILE, PipelineParams, read_params
from pipeline.parts import Parts
from pipeline.paths import REJECTED, SPECTROGRAMS, TABLE
from pipeline.resampler import count_resampled
from pipeline.store import Store
from pipeline.summary import durations_s, first_lines

# More segments than that are too narrow to see, and too many lines to read.
_SHOWN = 12


def describe(store: Store) -> list[str]:
    """Return what a store holds, a line each."""
    described, clips = store.format, first_lines(store.table)
    n_bytes = sum(shard.n_bytes for shard in described.shards)
    splits = Counter(clips["split"].to_pylist())
    return [
        f"{described.n_rows} rows of {described.shape[0]} bins and {described.shape[1]} frames, "
        f"from {len(clips)} clips of {durations_s(clips).sum() / 3600:.2f} hours",
        f"{len(described.shards)} shards, {n_bytes / 2**20:,.1f} MiB",
        "splits: " + ", ".join(f"{splits[name]} {name}" for name in ("train", "validation", "test")),
        *(f"{name}: {value}" for name, value in sorted(described.parameters.items())),
        "made with " + ", ".join(f"{name} {value}" for name, value in described.versions.items() if name != "simd"),
    ]


def check_not_rejected(clip_id: str) -> None:
    """Say of a clip that the preprocess stage has left out, why.

    Raises
    ------
    CorpusError
    """
    if not REJECTED.exists():
        return
    with REJECTED.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["clip_id"] == clip_id:
                raise CorpusError(f"{clip_id!r} was rejected: {line['reason']}: {line['detail']} ({REJECTED})")


def find(store: Store, clip_id: str, channel: int) -> NDArray[np.int64]:
    """Return the rows of one channel of a clip, in the order of its segments.

    Raises
    ------
    CorpusError
        The store holds no such clip or channel.
    """
    ids = store.table["clip_id"].to_pylist()
    if clip_id not in (known := set(ids)):
        # A path through the corpus ends in an id.
        nearest = [each for each in known if clip_id.endswith(f"/{each}")]
        nearest = nearest or difflib.get_close_matches(clip_id, known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise CorpusError(f"{store.folder} holds no clip {clip_id!r}{hint}")
    channels, segments = (np.asarray(store.table[name]) for name in ("channel", "segment"))
    rows = np.flatnonzero((np.asarray(ids, dtype=object) == clip_id) & (channels == channel))
    if not len(rows):
        raise CorpusError(f"{store.folder} holds no channel {channel} of clip {clip_id!r}")
    return rows[np.argsort(segments[rows])]


def write_sound(path: Path, store: Store, rows: NDArray[np.int64]) -> float:
    """Write what the spectrograms of a clip sound like, and return its length in seconds."""
    parts, lines = Parts.of(store.format.parameters), store.table.take(rows)
    line = lines.slice(0, 1).to_pylist()[0]
    rate = parts.loader.sample_rate
    n_total = count_resampled(line["source_stop"] - line["source_start"], line["source_rate"], rate)
    if store.format.parameters["segment"] == "first":
        n_total = min(n_total, parts.loader.n_samples)
    min_db, max_db, gain_db = (np.asarray(lines[name], dtype=np.float32) for name in ("min_db", "max_db", "gain_db"))
    y = parts.invert(parts.to_db(store.rows(rows), min_db, max_db), gain_db, n_total)
    try:
        sf.write(path, y, rate, subtype="FLOAT", format="WAV")
    except (OSError, sf.LibsndfileError) as error:
        raise AudioError("unwritable", f"{path}: {error}") from error
    return n_total / rate


def draw(path: Path, store: Store, rows: NDArray[np.int64]) -> None:
    """Draw rows into a file."""
    from pipeline.pictures import draw_rows  # noqa: PLC0415 - a second of Matplotlib

    try:
        draw_rows(path, store, rows)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror or error}") from error


def open_store(arguments: argparse.Namespace) -> Store:
    """Return the project's store, with its shards where `resources.storage` says, or the one that was asked for."""
    if arguments.folder is not None:
        return Store(arguments.folder, arguments.table, arguments.storage)
    storage = arguments.storage or read_params(PipelineParams, arguments.params).resources.storage
    return Store(SPECTROGRAMS, arguments.table, storage)


def main(arguments: argparse.Namespace) -> None:
    """Show what was asked for."""
    if arguments.clip_id is None and (arguments.picture or arguments.sound):
        raise ParameterError("--picture and --sound are of one clip, and none is named")
    store = open_store(arguments)
    if arguments.verify:
        store.verify()
        print(f"inspect: every byte of {store.folder} and {store.table_path.name} is as it was written")
    if arguments.clip_id is None:
        print("\n".join(f"inspect: {line}" for line in describe(store)))
        return
    if arguments.folder is None:
        check_not_rejected(arguments.clip_id)
    rows = find(store, arguments.clip_id, arguments.channel)
    for line in store.table.take(rows[:_SHOWN]).to_pylist():
        print("inspect: " + ", ".join(f"{name} {value}" for name, value in line.items() if value is not None))
    if len(rows) > _SHOWN:
        print(f"inspect: and {len(rows) - _SHOWN} more segments")
    if arguments.picture:
        draw(arguments.picture, store, rows[:_SHOWN])
        print(f"inspect: {arguments.picture}, the first {min(len(rows), _SHOWN)} of {len(rows)} segments")
    if arguments.sound:
        print(f"inspect: {arguments.sound}, {write_sound(arguments.sound, store, rows):.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip_id", nargs="?", help="a clip's path relative to the corpus (default: all of the store)")
    parser.add_argument("--channel", type=int, default=0, help="of a clip whose channels were not folded")
    parser.add_argument("--picture", type=Path, help="the PNG to draw")
    parser.add_argument("--sound", type=Path, help="the WAV file (32-bit float) to write what it sounds like into")
    parser.add_argument("--verify", action="store_true", help="compare every file with its hash")
    parser.add_argument("--folder", type=Path, help=f"of another store than the project's, {SPECTROGRAMS}")
    parser.add_argument("--table", type=Path, default=TABLE, help="its table (default: %(default)s)")
    parser.add_argument("--storage", help="where its shards lie (default: the project's resources.storage; its folder)")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="the parameter file (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    command.run(main, parser.parse_args())
