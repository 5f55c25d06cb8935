"""Only what changed is done again, under DVC itself: whatever its links are, after a checkout, and after a pull."""

import json
import sys

import numpy as np
import pytest

from pipeline.store import Store
from tests.projects import ROOT, Project, hashes
from tests.sounds import write

pytestmark = pytest.mark.timeout(600)

# The stage as `dvc.yaml` has it, but in one process, since Ray takes seconds to start.
STAGES = f"""
stages:
  preprocess:
    cmd: {sys.executable} stage.py
    deps: [sounds]
    outs:
      - data/spectrograms: {{persist: true}}
      - data/min_max_values.parquet: {{persist: true}}
    metrics:
      - summary.json: {{cache: false}}
"""
STAGE = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from pipeline import planner, preprocessing
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver
planner.SHARD_BYTES = 4 << 16
saver = Saver("data/spectrograms", "data/min_max_values.parquet")
parts = Loader(), Padder(), LogSpectrogramExtractor(), MinMaxNormaliser(), saver
report = preprocessing.PreprocessingPipeline(*parts).preprocess("sounds")
json.dump(report.counts, open("summary.json", "w"))
"""


def write_sounds(folder, numbers):
    for number in numbers:
        rng = np.random.default_rng(number)
        write(folder / f"{number}.wav", rng.uniform(-0.5, 0.5, 2000))


@pytest.fixture
def home(tmp_path):
    """The folder of a person."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def make_project(tmp_path, home):
    """Return a function that makes a project of a few sounds, with links of one type."""
    made = []

    def make(folder, cache_type):
        project = Project(tmp_path / folder, home)
        made.append(project)
        project.folder.mkdir()
        project.run("git", "init", "--quiet")
        project.run("dvc", "init", "--quiet")
        project.run("dvc", "config", "cache.type", cache_type)
        project.path("dvc.yaml").write_text(STAGES)
        project.path("stage.py").write_text(STAGE)
        write_sounds(project.path("sounds"), range(12))
        return project

    yield make
    for project in made:
        project.close()


def repro(project):
    """Run the stage, check what it left in DVC's cache, and return how many were computed, reused and removed."""
    cache = project.path(".dvc/cache/files/md5")
    before = hashes(cache) if cache.exists() else {}
    project.run("dvc", "repro", "--quiet")
    after = hashes(cache)
    assert before.items() <= after.items()
    Store(project.path("data/spectrograms"), project.path("data/min_max_values.parquet")).verify()
    assert not [path.name for path in project.path("data/spectrograms").iterdir() if path.name.startswith(".")]
    counts = json.loads(project.read("summary.json"))
    return tuple(counts.get(name, 0) for name in ("computed", "reused", "removed"))


@pytest.mark.parametrize("cache_type", ["copy", "symlink", "hardlink"])
def test_only_what_changed_whatever_the_links(tmp_path, home, make_project, cache_type):
    project = make_project("project", cache_type)
    assert repro(project) == (12, 0, 0)
    first, lock = hashes(project.path("data")), project.read("dvc.lock")
    write_sounds(project.path("sounds"), [12, 13])
    project.path("sounds/3.wav").rename(project.path("sounds/x.wav"))
    assert repro(project) == (2, 12, 1)
    second = hashes(project.path("data"))

    # Another revision, and on from there.
    project.path("dvc.lock").write_text(lock)
    project.run("dvc", "checkout", "--quiet", "--force")
    assert hashes(project.path("data")) == first
    assert repro(project) == (2, 12, 1)
    assert hashes(project.path("data")) == second

    if cache_type != "hardlink":
        return
    # A clone that pulled, and a sound more.
    project.run("dvc", "remote", "add", "--quiet", "--default", "storage", str(tmp_path / "storage"))
    project.run("dvc", "push", "--quiet")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "all")
    project.run("git", "clone", "--quiet", str(project.folder), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", home)
    try:
        clone.run("dvc", "pull", "--quiet")
        assert hashes(clone.path("data")) == second
        write_sounds(clone.path("sounds"), [14])
        assert repro(clone) == (1, 14, 0)
    finally:
        clone.close()
