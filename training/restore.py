"""Code, parameters and data of an MLflow run, in a folder of their own, and the run once more from there.

`python -m training.restore RUN`, where RUN is a run's id or the name of the DVC experiment that it was part of. The
folder is a git worktree beside the project that shares its DVC cache and its MLflow database; what is in the project,
committed or not, stays as it is.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import command
from pipeline.corpus import list_clips
from pipeline.errors import CorpusError, ResourceError
from pipeline.params import PARAMS_FILE, read_params
from pipeline.paths import REJECTED, SAMPLE_CORPUS, SUMMARY, TABLE
from pipeline.storage import file_sha256
from training import provenance, tracking, tracking_origin
from training.params import Params

_SHOWN = 5


def make_worktree(folder: Path, commit: str, recorded: Path) -> None:
    """Make a worktree of a commit, with the uncommitted changes, parameters and locks that a run had.

    Parameters
    ----------
    folder : Path
        Which is not there yet.
    commit : str
    recorded : Path
        Folder of what the run recorded.

    Raises
    ------
    ResourceError
        The commit is not in this repository, or git refuses.
    """
    if folder.exists():
        raise ResourceError(f"{folder}: is there already; name another folder, or remove it")
    try:
        provenance.git("cat-file", "-e", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise ResourceError(f"commit {commit} of the run is not in this repository; fetch it first") from error
    try:
        provenance.git("worktree", "add", "--quiet", "--detach", str(folder), commit)
        if (patch := recorded / tracking_origin.PATCH).is_file():
            provenance.git("-C", str(folder), "apply", "--whitespace=nowarn", str(patch))
    except subprocess.CalledProcessError as error:
        raise ResourceError(f"git: {' '.join(os.fsdecode(error.stderr).split())}") from error
    for name in provenance.RECORDED:
        if (recorded / name).is_file():
            shutil.copyfile(recorded / name, folder / name)


def share_cache(folder: Path) -> None:
    """Let a worktree's DVC use the cache, and the other local settings, of the project."""
    cache = _dvc(Path(), "cache", "dir").strip()
    local = Path(".dvc", "config.local")
    if local.is_file():
        shutil.copyfile(local, folder / local)
    _dvc(folder, "cache", "dir", "--local", str(Path(cache).absolute()))


def link_corpus(folder: Path, corpus: Path) -> None:
    """Link a corpus that neither git nor DVC has brought into a worktree to where it lies in the project."""
    if (folder / corpus).exists() or corpus == SAMPLE_CORPUS:
        return
    if not corpus.exists():
        raise CorpusError(f"corpus folder {str(corpus)!r} does not exist, and neither git nor DVC has it")
    if ".." in corpus.parts:
        raise CorpusError(
            f"corpus folder {str(corpus)!r} is not seen from {folder}; choose a folder beside the project"
        )
    (folder / corpus).parent.mkdir(parents=True, exist_ok=True)
    (folder / corpus).symlink_to(corpus.absolute())


def check_corpus(corpus: Path, recorded: Path) -> None:
    """Compare a corpus with the clips that a run's table names.

    Raises
    ------
    CorpusError
        Clips are missing, changed or new; the message names the first of each.
    """
    rows = pq.read_table(recorded / "data" / TABLE.name, columns=["clip_id", "sha256"]).to_pylist()
    expected = {row["clip_id"]: row["sha256"] for row in rows}
    with (recorded / "data" / REJECTED.name).open(newline="", encoding="utf-8") as file:
        rejected = {row["clip_id"] for row in csv.DictReader(file)}
    found = {clip.clip_id: Path(clip.path) for clip in list_clips(corpus).clips}
    both = sorted(expected.keys() & found.keys())
    differences = {
        "missing": sorted(expected.keys() - found.keys()),
        "changed": [clip_id for clip_id in both if file_sha256(found[clip_id]) != expected[clip_id]],
        "new": sorted(found.keys() - expected.keys() - rejected),
    }
    if any(differences.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in differences.items() if names)
        raise CorpusError(f"corpus folder {str(corpus)!r} is not what the run heard: {listed}")
    print(f"restore: the {len(expected)} clips in {corpus} are those of the run", flush=True)


def differing_outputs(folder: Path, recorded: Path) -> list[str]:
    """Return what has come out of the stages otherwise than in the run, by path.

    The summary of preprocessing is left out: it counts what had to be computed, which here is nothing.
    """
    differing = []
    for lock in provenance.LOCKS:
        now = provenance.read_lock(folder / lock)
        for stage, entry in provenance.read_lock(recorded / lock).items():
            made = {each["path"]: each.get("md5") for each in now.get(stage, {}).get("outs", [])}
            expected = {each["path"]: each.get("md5") for each in entry.get("outs", [])}
            expected.pop(SUMMARY.as_posix(), None)
            differing += [path for path, md5 in expected.items() if made.get(path) != md5]
    return differing


def _warn_of_versions(run: tracking_origin.Origin) -> None:
    """Name the packages of which other versions are installed than the run had."""
    now = provenance.versions()
    if differing := [f"{name} {now[name]} (was {was})" for name, was in run.versions.items() if now.get(name) != was]:
        print(f"restore: other versions than the run had: {', '.join(differing)}", flush=True)


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _dvc(folder: Path, *arguments: str) -> str:
    """Return what a DVC command prints, run in a folder by this interpreter."""
    finished = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise ResourceError(f"dvc {' '.join(arguments)} in {folder}: {' '.join(finished.stderr.split())}")
    return finished.stdout


def main(arguments: argparse.Namespace) -> None:
    """Restore a run, and reproduce it."""
    with tempfile.TemporaryDirectory() as temporary, tracking.connect() as client:
        recorded = Path(temporary)
        run = tracking_origin.origin_of(client, arguments.run, recorded)
        folder = arguments.folder or Path("..", f"{Path.cwd().name}-{run.run_id[:8]}")
        make_worktree(folder, run.commit, recorded)
        share_cache(folder)
        _warn_of_versions(run)
        _dvc(folder, "checkout", "--quiet", "--allow-missing")
        corpus = Path(read_params(Params, folder / PARAMS_FILE).corpus.dir)
        link_corpus(folder, corpus)
        if (folder / corpus).exists():
            check_corpus(folder / corpus, recorded)
        print(f"restore: run {run.run_id}, commit {run.commit}, is in {folder}", flush=True)
        if arguments.only:
            return
        reproduce(folder, arguments.force)
        if differing := differing_outputs(folder, recorded):
            raise ResourceError(f"{folder}: not as in the run came out: {', '.join(differing)}")
    print("restore: every output of every stage is as the run had it")


def reproduce(folder: Path, force: bool) -> None:
    """Run the pipeline in a folder, tracked where this project is."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": programs, "MLFLOW_TRACKING_URI": tracking.tracking_uri()}
    options = ["--force"] if force else []
    finished = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *options], cwd=folder, env=environment, check=False
    )
    if finished.returncode:
        raise ResourceError(f"dvc repro in {folder} ended with exit status {finished.returncode}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="id of an MLflow run, or name of a DVC experiment")
    parser.add_argument(
        "folder", type=Path, nargs="?", help="to make (default: beside the project, with the run's first letters)"
    )
    parser.add_argument("--only", action="store_true", help="restore, and do not run the pipeline")
    parser.add_argument("--force", action="store_true", help="run every stage, also those whose outputs DVC has")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    command.run(main, parser.parse_args())
