"""Which shards are still named: by working trees, by commits, and by the experiments that git and DVC know.

A commit's `dvc.lock` has the hash of its spectrograms' folder, and DVC's cache holds that folder's list and the
`format.json` in it, which names the shards. What cannot be followed to its end is reported, never passed over.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.artifact import EARLIER_FILE, FORMAT_FILE
from pipeline.errors import ResourceError
from pipeline.paths import SPECTROGRAMS

_LOCK = "dvc.lock"
# Where DVC runs experiments in copies of the project.
_COPIES = Path(".dvc", "tmp", "exps")


@dataclass(frozen=True)
class References:
    """What is known of the shards that are named.

    Attributes
    ----------
    shards : frozenset of str
        Their names.
    n_revisions : int
        Commits that were looked at.
    unknown : tuple of str
        What may name further ones and could not be read, in words.
    """

    shards: frozenset[str]
    n_revisions: int
    unknown: tuple[str, ...]


def find_references() -> References:
    """Return what the project in this folder names, in every revision.

    Raises
    ------
    ResourceError
        This is no git repository, or no project of DVC's.
    """
    trees = list(_working_trees())
    revisions = _git("rev-list", "--all", "--reflog", "HEAD", *(head for _, head in trees)).split()
    named: set[str] = set()
    unknown = []
    for path in _indexes(folder for folder, _ in trees):
        try:
            named |= _shards_of(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            unknown.append(f"{path}: {error}")
    cache = Path(_run(sys.executable, "-m", "dvc", "cache", "dir").strip())
    for digest, place in _folders(_locks(revisions, [folder for folder, _ in trees]), unknown).items():
        try:
            named |= _shards_of(_read_index(cache, digest))
        except (OSError, ValueError) as error:
            unknown.append(f"{place}: {error}")
    return References(frozenset(named), len(revisions), tuple(unknown))


def _working_trees() -> Iterator[tuple[Path, str]]:
    """Yield the project's folder in each worktree, with the commit that is checked out there, and DVC's copies."""
    prefix = _git("rev-parse", "--show-prefix").strip()
    head = _git("rev-parse", "HEAD").strip()
    for block in _git("worktree", "list", "--porcelain").split("\n\n"):
        values = dict(line.partition(" ")[::2] for line in block.splitlines())
        if "worktree" in values:
            folder = Path(values["worktree"], prefix)
            yield folder, values.get("HEAD", head)
            for copy in (folder / _COPIES).glob("*"):
                yield copy / prefix, head


def _indexes(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield where working trees have what describes their store, or the store of the run before the one under way."""
    for folder in folders:
        for name in (FORMAT_FILE, EARLIER_FILE):
            yield folder / SPECTROGRAMS / name


def _locks(revisions: list[str], folders: list[Path]) -> dict[str, str]:
    """Return the text of each different lock, with where it was found first."""
    found: dict[str, str] = {}
    for folder in folders:
        if (path := folder / _LOCK).is_file():
            found.setdefault(path.read_text(encoding="utf-8"), str(path))
    names = "".join(f"{revision}:./{_LOCK}\n" for revision in revisions)
    blobs: dict[str, str] = {}
    for revision, line in zip(revisions, _git("cat-file", "--batch-check", given=names).splitlines(), strict=True):
        digest, _, kind = line.partition(" ")
        if kind.startswith("blob"):
            blobs.setdefault(digest, f"commit {revision[:10]}")
    for digest, place in blobs.items():
        found.setdefault(_git("cat-file", "blob", digest), place)
    return found


def _folders(locks: dict[str, str], unknown: list[str]) -> dict[str, str]:
    """Return the digest of the spectrograms' folder of each lock that has one, with where it was found first."""
    found: dict[str, str] = {}
    for text, place in locks.items():
        try:
            stages = YAML(typ="safe", pure=True).load(text)["stages"].values()
            outs = [out for stage in stages for out in stage.get("outs", []) if out["path"] == SPECTROGRAMS.as_posix()]
            for out in outs:
                found.setdefault(out["md5"], place)
        except (YAMLError, KeyError, TypeError, AttributeError) as error:
            unknown.append(f"{_LOCK} of {place}: cannot be read: {' '.join(str(error).split())}")
    return found


def _read_index(cache: Path, digest: str) -> bytes:
    """Return the `format.json` of a folder that DVC knows by its digest."""
    listed = json.loads(_read_cached(cache, digest))
    for entry in listed:
        if entry["relpath"] == FORMAT_FILE:
            return _read_cached(cache, entry["md5"])
    raise ValueError(f"its {SPECTROGRAMS} holds no {FORMAT_FILE}")


def _read_cached(cache: Path, digest: str) -> bytes:
    try:
        return (cache / "files" / "md5" / digest[:2] / digest[2:]).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"its {SPECTROGRAMS} ({digest}) is not in DVC's cache") from error


def _shards_of(content: bytes) -> set[str]:
    """Return the shards that a `format.json` names, of whatever version it is."""
    try:
        return {shard["name"] for shard in json.loads(content)["shards"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{FORMAT_FILE} names no shards") from error


def _git(*arguments: str, given: str | None = None) -> str:
    return _run("git", *arguments, given=given)


def _run(*command: str, given: str | None = None) -> str:
    """Return what a command prints."""
    try:
        finished = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ResourceError(f"{command[0]} is not installed, and knows which revisions there are") from error
    if finished.returncode:
        raise ResourceError(f"{os.path.basename(command[0])} {command[1]}: {' '.join(finished.stderr.split())}")  # noqa: PTH119
    return finished.stdout
