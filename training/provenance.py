"""Where a run comes from: the commit and what differs from it, DVC's hashes, versions of packages.

Knows git and DVC's lock files, and nothing of MLflow.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.params import PARAMS_FILE

LOCKS = (Path("dvc.lock"), Path("pipeline/dvc.lock"))
# Together with a commit, everything that a run follows from but sounds.
RECORDED = (PARAMS_FILE, *LOCKS)
PACKAGES = "ray tensorflow keras mlflow dvc numpy librosa soxr soundfile".split()
# What a run writes itself, which is no change of its code.
_MADE = (":(exclude,glob)**/dvc.lock", ":(exclude)reports")
_CODE = ("*.py", "*.yaml", "*.toml", "*.dvc", "*.gitignore")


def commit_tags() -> dict[str, str]:
    """Return the git commit, and whether code or parameters differ from it; nothing outside of a repository."""
    try:
        return {"git_commit": git("rev-parse", "HEAD").strip(), "git_dirty": str(bool(uncommitted())).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def uncommitted() -> str:
    """Return what code and parameters differ in from the commit, new files included, as a patch for `git apply`."""
    index = Path(git("rev-parse", "--git-path", "index").strip())
    with tempfile.TemporaryDirectory() as folder:
        # An index of its own: the person's stays as it is. As old as that one, since git looks into files that may have
        # changed in the second in which the index was written, or later.
        copied = Path(folder, "index")
        if index.is_file():
            shutil.copy2(index, copied)
        environment = {"GIT_INDEX_FILE": str(copied)}
        new = git("ls-files", "-z", "--others", "--exclude-standard", "--", *_CODE, *_MADE)
        for name in filter(None, new.split("\0")):
            git("add", "--intent-to-add", "--", name, **environment)
        return git("diff", "--binary", "--no-color", "--no-ext-diff", "HEAD", "--", ".", *_MADE, **environment)


def experiment() -> str:
    """Return the name of the DVC experiment that this is part of, or nothing."""
    return os.environ.get("DVC_EXP_NAME", "")


def dependency_hashes() -> dict[str, str]:
    """Return DVC's hashes of what the preprocess stage read and made, by path."""
    preprocess = read_lock(LOCKS[0]).get("preprocess", {})
    entries = [*preprocess.get("deps", []), *preprocess.get("outs", [])]
    return {entry["path"]: entry["md5"] for entry in entries if "md5" in entry}


def read_lock(path: Path) -> dict[str, Any]:
    """Return the stages of one of DVC's lock files; none when there is no such file."""
    if not path.is_file():
        return {}
    content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    return dict(content.get("stages") or {})


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape what comes out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        # The package that brings a module may have another name, as TensorFlow without CUDA has.
        found[name] = importlib.metadata.version(_distribution(name))
    return found


def all_packages() -> str:
    """Return every installed package as `name==version`, one a line."""
    found = {f"{each.metadata['Name']}=={each.version}" for each in importlib.metadata.distributions()}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def git(*arguments: str, **environment: str) -> str:
    """Return what a git command prints.

    Raises
    ------
    subprocess.CalledProcessError
        It fails; what it says is in `stderr`.
    """
    finished = subprocess.run(["git", *arguments], capture_output=True, check=True, env={**os.environ, **environment})
    # As Python reads the names of files; and ends of lines as they are.
    return os.fsdecode(finished.stdout)


def _distribution(name: str) -> str:
    for candidate in (name, f"{name}-cpu"):
        try:
            importlib.metadata.distribution(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
        return candidate
    return importlib.metadata.packages_distributions()[name][0]
