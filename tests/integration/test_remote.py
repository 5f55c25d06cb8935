"""Artifacts shared by a DVC remote: pushed here, pulled in a clone, where there is then nothing to do."""

import pytest

from tests.integration.outcomes import Outcome, ran
from tests.projects import Project, commit

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def clone(finished, projects, tmp_path_factory):
    """A clone of a finished project that was committed and pushed, its artifacts pulled."""
    project = projects.copy(finished, "pushed")
    place = tmp_path_factory.mktemp("elsewhere")
    project.run("dvc", "remote", "add", "--default", "storage", str(place / "storage"))
    commit(project)
    project.pushed = project.run("dvc", "push")
    project.run("git", "clone", "--quiet", str(project.folder), str(place / "project"))
    clone = projects.keep(Project(place / "project", project.home))
    clone.before = sorted(path.name for path in clone.path("data").iterdir())
    clone.pulled = clone.run("dvc", "pull")
    return clone


def test_git_alone_brings_no_data(clone):
    assert clone.before == [".gitignore"]


def test_a_clone_has_the_same_artifacts(clone, outcome):
    Outcome.of(clone).assert_same(outcome)


def test_a_clone_has_nothing_to_do(clone):
    assert "up to date" in clone.run("dvc", "status")
    assert ran(clone.run("dvc", "repro")) == []
    assert "Cache and remote 'storage' are in sync." in clone.run("dvc", "status", "--cloud")
    assert clone.run("git", "status", "--porcelain") == ""
