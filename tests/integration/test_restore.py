"""A run that is brought back and reproduced by one command, beside a project in which somebody works."""

import re

import pytest

from tests.integration.outcomes import Outcome, ran, runs_of
from tests.projects import hashes

pytestmark = pytest.mark.timeout(600)


def work_of(project):
    """Return the digests of what a person has in a project; not those of what DVC, git and MLflow keep there."""
    found = hashes(project.folder)
    return {
        name: digest for name, digest in found.items() if not re.match(r"\.git/|\.dvc/|mlflow|mlart|.*\.pyc$", name)
    }


def test_a_run_comes_back_and_the_work_of_others_stays(finished, outcome, projects, tmp_path):
    (run,) = runs_of(finished)
    project = projects.keep(finished.copy(tmp_path / "project"))
    project.set_params({"train.epochs": 2, "autoencoder.latent_space_dim": 3})
    project.path("training/loop.py").write_text("half an idea")
    project.path("notes.txt").write_text("not committed")
    before = work_of(project)
    output = project.run("python", "-m", "training.restore", run.info.run_id)
    restored = projects.keep(type(project)(tmp_path / f"project-{run.info.run_id[:8]}", project.home))

    assert f"restore: the 80 clips in ../{restored.folder.name}/data/sample_corpus are those of the run" in output
    assert "restore: every output of every stage is as the run had it" in output
    assert "train" not in ran(output)
    Outcome.of(restored).assert_same(outcome)
    assert restored.params == finished.params
    assert work_of(project) == before

    again = project.run("python", "-m", "training.restore", run.info.run_id, fails=True)
    assert again == f"error: ../{restored.folder.name}: is there already; name another folder, or remove it\n"
    unknown = project.run("python", "-m", "training.restore", "0" * 32, fails=True)
    assert unknown.splitlines()[-1].startswith("error: MLflow at sqlite")
