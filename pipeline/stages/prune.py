"""List the shards in `resources.storage` that no revision names any more, and remove them with `--remove`.

python -m pipeline.stages.prune
python -m pipeline.stages.prune --remove

A shard stays when a working tree, a run under way, or a commit that git still reaches (by branches, tags, stashes,
reflogs, DVC's experiments) names it, and when it is young. Files that are not named as shards are never touched.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline import command
from pipeline.artifact import PARTIAL_NAME, SHARD_NAME
from pipeline.errors import ParameterError, ResourceError
from pipeline.params import PipelineParams, read_params
from pipeline.references import References, find_references
from pipeline.storage import Entry, Storage
from pipeline.store import shard_storage

_SHOWN = 20
_REMOVED_AT_ONCE = 8


def ours(entries: Sequence[Entry]) -> list[Entry]:
    """Return those files that `Saver` has named: shards, and what killed runs left of some."""
    return [entry for entry in entries if SHARD_NAME.fullmatch(entry.name) or PARTIAL_NAME.fullmatch(entry.name)]


def unreferenced(entries: Sequence[Entry], references: References, before_s: float) -> list[Entry]:
    """Return the files that nothing names, and that were written before a time."""
    return [entry for entry in entries if entry.name not in references.shards and entry.modified_s < before_s]


def describe(entries: Sequence[Entry], found: Sequence[Entry], references: References, shards: Storage) -> list[str]:
    """Return what there is, a line each."""
    n_named = sum(entry.name in references.shards for entry in entries)
    n_young = len(entries) - n_named - len(found)
    lines = [
        f"{len(entries)} shards in {shards.location}, {_gigabytes(entries)}; {n_named} are named in "
        f"{references.n_revisions} revisions and the working trees, {n_young} are new"
    ]
    lines += [f"unreferenced: {shards.where(entry.name)}" for entry in found]
    lines += [f"not known: {each}" for each in references.unknown[:_SHOWN]]
    if len(references.unknown) > _SHOWN:
        lines.append(f"not known: {len(references.unknown) - _SHOWN} more")
    return lines


def main(arguments: argparse.Namespace) -> None:
    """List, and remove if asked to."""
    storage = read_params(PipelineParams, arguments.params).resources.storage
    if storage is None:
        raise ParameterError("resources.storage is null: shards lie in the project, where each run removes old ones")
    if arguments.grace_hours < 0:
        raise ParameterError(f"--grace-hours={arguments.grace_hours} must be at least 0")
    shards = shard_storage(arguments.params.parent, storage)
    before_s = time.time() - 3600 * arguments.grace_hours
    # Listed before references are read: what a run adds meanwhile is not among these.
    entries = ours(shards.entries())
    references = find_references()
    found = unreferenced(entries, references, before_s)
    print("\n".join(f"prune: {line}" for line in describe(entries, found, references, shards)))
    if not arguments.remove:
        print(f"prune: {len(found)} shards, {_gigabytes(found)}, would be removed with --remove")
        return
    if references.unknown and not arguments.despite_unknown:
        raise ResourceError(
            f"nothing is removed, since {len(references.unknown)} places above may name any shard; `dvc fetch "
            "--all-commits` brings what a remote has of them, --despite-unknown gives them up"
        )
    with ThreadPoolExecutor(_REMOVED_AT_ONCE) as executor:
        list(executor.map(lambda entry: shards.remove(entry.name), found))
    print(f"prune: {len(found)} shards, {_gigabytes(found)}, were removed")


def _gigabytes(entries: Sequence[Entry]) -> str:
    return f"{sum(entry.n_bytes for entry in entries) / 2**30:,.2f} GiB"


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--remove", action="store_true", help="remove what is listed as unreferenced")
    parser.add_argument("--grace-hours", type=float, default=24.0, help="what is younger stays (default: %(default)s)")
    parser.add_argument(
        "--despite-unknown", action="store_true", help="remove also when what a revision names cannot be found out"
    )
    command.run(main, parser.parse_args())
