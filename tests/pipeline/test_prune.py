"""Unreferenced shards of a project under git and DVC, with a folder or a bucket as storage."""

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from pipeline.artifact import EARLIER_FILE, FORMAT_FILE
from pipeline.paths import SPECTROGRAMS
from pipeline.storage import open_storage

# A stage `preprocess` that makes a store of two shards in a moment: one is always the same.
STAGE = """
import sys
import numpy as np
import pyarrow as pa
from pipeline.artifact import TABLE_SCHEMA
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.store import Saver

saver = Saver(SPECTROGRAMS, TABLE, sys.argv[1])
saver.prepare()
seed = int(open("seed").read())
shards = [saver.save_shard(f"{n}", [np.full((1, 2, 3), n * seed, np.float32)]) for n in (0, 1)]
table = pa.table({field.name: pa.nulls(2, field.type) for field in TABLE_SCHEMA}, schema=TABLE_SCHEMA)
saver.finish(shards, table, (2, 3), {}, {})
"""
DVC_YAML = """
stages:
  preprocess:
    cmd: {python} stage.py '{location}'
    deps: [seed]
    outs:
      - data/spectrograms: {{persist: true}}
      - data/min_max_values.parquet: {{persist: true}}
"""


class Project:
    """A project whose revisions differ in one shard."""

    def __init__(self, folder, root, location, write_params):
        self.folder = folder
        self.shards = open_storage(location).at("shards")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))},
            **{f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            "PYTHONPATH": str(root),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc"),
        }
        folder.mkdir()
        write_params({"resources.storage": location}, folder / "params.yaml")
        (folder / "stage.py").write_text(STAGE)
        (folder / "dvc.yaml").write_text(DVC_YAML.format(python=sys.executable, location=location))
        self.run("git", "init", "--quiet", "--initial-branch=main")
        self.dvc("init", "--quiet")

    def run(self, *command, fails=False):
        finished = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert (finished.returncode != 0) == fails, finished.stdout + finished.stderr
        return finished.stderr if fails else finished.stdout

    def dvc(self, *arguments):
        """Run DVC in this process, since starting one for each command takes most of the time."""
        from dvc.cli import main

        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its libraries' own
            patch.chdir(self.folder)
            for name, value in self._environment.items():
                patch.setenv(name, value)
            assert main(list(arguments)) == 0

    def make(self, seed):
        """Make the store of a seed, and return the name of the shard that only this one has."""
        (self.folder / "seed").write_text(str(seed))
        before = set(self.names())
        self.dvc("repro", "--quiet")
        (new,) = sorted(set(self.names()) - before, reverse=True)[:1]
        return new

    def commit(self):
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "a commit")

    def names(self):
        return [entry.name for entry in self.shards.entries()]

    def prune(self, *arguments, fails=False):
        return self.run(sys.executable, "-m", "pipeline.stages.prune", "--grace-hours", "0", *arguments, fails=fails)

    def unreferenced(self, *arguments):
        prefix = f"prune: unreferenced: {self.shards.where('')}"
        lines = self.prune(*arguments).splitlines()
        return [line.removeprefix(prefix).lstrip("/") for line in lines if line.startswith(prefix)]

    def cached(self, content):
        """Return where DVC's cache has a content."""
        files = [path for path in (self.folder / ".dvc/cache/files").rglob("*") if path.is_file()]
        (found,) = [path for path in files if path.read_bytes() == content]
        return found


@pytest.fixture
def make_project(pytestconfig, tmp_path, write_params):
    return lambda location: Project(tmp_path / "project", pytestconfig.rootpath, location, write_params)


@pytest.fixture
def project(tmp_path, make_project):
    return make_project(str(tmp_path / "storage"))


def test_what_a_revision_names_stays_and_the_rest_goes(make_project, s3_server, s3_let_in):
    project = make_project(s3_server.location("prune"))
    project.make(1)
    project.commit()
    project.run("git", "checkout", "--quiet", "-b", "other")
    on_branch = project.make(2)
    project.commit()
    tagged = project.make(3)
    project.commit()
    project.run("git", "tag", "v1")
    project.run("git", "reset", "--quiet", "--hard", "HEAD~1")
    project.run("git", "reflog", "expire", "--expire=now", "--all")
    lost = project.make(4)
    # What is no shard of ours is not ours to remove.
    for name in ("readme.npy", "1-0123.npy", "notes.txt"):
        project.shards.put(name, [b"mine"])
    project.shards.at("below").put(lost, [b"mine"])
    here = project.make(5)

    assert {on_branch, tagged, here, lost} <= set(project.names())
    before = project.names()
    assert project.unreferenced() == [lost]
    assert project.names() == before
    assert project.unreferenced("--remove") == [lost]
    assert project.names() == [name for name in before if name != lost]
    assert [entry.name for entry in project.shards.at("below").entries()] == [lost]
    assert project.unreferenced("--remove") == []


def test_what_is_young_stays(project):
    project.make(1)
    project.commit()
    lost = project.make(2)
    project.make(3)
    output = project.run(sys.executable, "-m", "pipeline.stages.prune", "--remove")

    assert "prune: 0 shards, 0.00 GiB, were removed" in output
    assert "1 are new" in output
    day_and_more = Path(project.shards.location, lost)
    os.utime(day_and_more, (0, day_and_more.stat().st_mtime - 25 * 3600))
    assert "prune: 1 shards" in project.run(sys.executable, "-m", "pipeline.stages.prune", "--remove")
    assert lost not in project.names()


def test_reflogs_stashes_and_experiments_count(project):
    project.make(1)
    project.commit()
    names = [project.make(2)]
    project.run("git", "stash", "--quiet")
    project.dvc("checkout", "--quiet")
    names.append(project.make(3))
    project.commit()
    project.run("git", "update-ref", "refs/exps/ab/cdef/name", "HEAD")
    project.run("git", "reset", "--quiet", "--hard", "HEAD~1")
    project.run("git", "reflog", "expire", "--expire=now", "HEAD", "refs/heads/main")
    names.append(project.make(4))
    project.commit()
    project.run("git", "reset", "--quiet", "--hard", "HEAD~1")  # which the reflog remembers
    project.dvc("checkout", "--quiet")

    assert set(names) <= set(project.names())
    assert project.unreferenced() == []


def test_worktrees_and_runs_under_way_count(project, tmp_path):
    index = project.folder / SPECTROGRAMS / FORMAT_FILE
    made = []
    for seed in (1, 2, 3, 4):
        made.append((project.make(seed), index.read_bytes()))
    (under_way, first), (in_worktree, second), (in_copy, third), (lost, _) = made
    (project.folder / "dvc.lock").unlink()
    project.commit()
    project.run("git", "worktree", "add", "--quiet", "--detach", str(tmp_path / "worktree"))
    copy = project.folder / ".dvc" / "tmp" / "exps" / "tmp123"
    index.unlink()
    for folder, content, file in (
        (project.folder, first, EARLIER_FILE),
        (tmp_path / "worktree", second, FORMAT_FILE),
        (copy, third, FORMAT_FILE),
    ):
        (folder / SPECTROGRAMS).mkdir(parents=True, exist_ok=True)
        (folder / SPECTROGRAMS / file).write_bytes(content)

    assert {under_way, in_worktree, in_copy, lost} <= set(project.names())
    assert project.unreferenced() == [lost]


def test_what_cannot_be_known_keeps_everything(project, tmp_path):
    known = project.make(1)
    project.commit()
    shutil.copytree(project.folder / SPECTROGRAMS, tmp_path / "first")
    lost = project.make(2)
    unknown = project.make(3)
    project.commit()
    project.dvc("remote", "add", "--quiet", "--default", "remote", str(tmp_path / "remote"))
    project.dvc("push", "--quiet", "--all-commits")
    project.cached((project.folder / SPECTROGRAMS / FORMAT_FILE).read_bytes()).unlink()
    (project.folder / SPECTROGRAMS / FORMAT_FILE).unlink()

    assert project.unreferenced() == sorted([lost, unknown])
    line = project.prune("--remove", fails=True)
    assert line.startswith("error: nothing is removed, since 1 places above may name any shard; `dvc fetch ")
    assert re.search(r"^prune: not known: .*: its data/spectrograms \(\w+\) is not in ", project.prune(), re.M)
    assert {known, lost, unknown} <= set(project.names())

    project.dvc("fetch", "--quiet", "--all-commits")
    assert project.unreferenced("--remove") == [lost]


def test_what_cannot_be_known_can_be_given_up(project):
    project.make(1)
    project.commit()
    content = (project.folder / SPECTROGRAMS / FORMAT_FILE).read_bytes()
    (gone,) = [name for name in project.names() if name.startswith("1-")]
    here = project.make(2)
    project.commit()
    project.cached(content).unlink()

    assert project.unreferenced("--remove", "--despite-unknown") == [gone]
    assert here in project.names()


def test_a_damaged_index_is_not_passed_over(project):
    project.make(1)
    (project.folder / SPECTROGRAMS / FORMAT_FILE).unlink()
    (project.folder / SPECTROGRAMS / FORMAT_FILE).write_text("{")
    project.commit()

    assert f"prune: not known: {project.folder / SPECTROGRAMS / FORMAT_FILE}: Expecting property" in project.prune()
    assert project.prune("--remove", fails=True).startswith("error: nothing is removed")


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"resources.storage": None}, (), "resources.storage is null: shards lie in the project"),
        ({"resources.storage": "/nowhere"}, ("--grace-hours", "-1"), "--grace-hours=-1.0 must be at least 0"),
    ],
)
def test_what_cannot_be_pruned(project, write_params, changes, arguments, message):
    write_params(changes, project.folder / "params.yaml")

    assert project.prune(*arguments, fails=True).startswith(f"error: {message}")


def test_without_git_nothing_is_known(project):
    project.make(1)
    shutil.rmtree(project.folder / ".git")

    assert project.prune("--remove", fails=True).startswith("error: git rev-parse: fatal: not a git repository")
