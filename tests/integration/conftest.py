"""Projects that several tests look at: a run takes a minute, so they share it."""

import time

import pytest

from tests.clusters import Cluster, write_token
from tests.integration.outcomes import Outcome
from tests.projects import clone, snapshot


class Projects:
    """Makes projects of one person, each in a folder of its own, all of them from this project as it was at first."""

    def __init__(self, tmp_path_factory):
        self._make_folder = tmp_path_factory.mktemp
        self._original = snapshot(self._make_folder("original") / "project", self._make_folder("home"))
        self._projects = [self._original]

    def new(self, name, changes=None):
        """Return a project that has never run, with tiny parameters, some of them changed."""
        return self.keep(clone(self._original, self._make_folder(name) / "project", changes))

    def copy(self, project, name):
        """Return a copy of a project as it is, but for MLflow's runs."""
        copied = self.keep(project.copy(self._make_folder(name) / "project"))
        copied.path("mlflow.db").unlink()
        return copied

    def keep(self, project):
        """Return a project, and see to its end too."""
        self._projects.append(project)
        return project

    def close(self):
        """End with an error when something of a project is still running."""
        for project in self._projects:
            project.close()


@pytest.fixture(scope="session")
def projects(tmp_path_factory):
    """Makes projects, and sees to it that nothing of them runs on after the tests."""
    made = Projects(tmp_path_factory)
    yield made
    made.close()


@pytest.fixture(scope="session")
def finished(projects):
    """A tiny project after its first `dvc repro`, for tests that leave it as it is."""
    project = projects.new("finished")
    started = time.monotonic()
    project.output = project.run("dvc", "repro", timeout=500)
    project.seconds = time.monotonic() - started
    return project


@pytest.fixture(scope="session")
def outcome(finished):
    """What the run of `finished` came to."""
    return Outcome.of(finished)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head with one CPU, and the person who has its token."""
    home = tmp_path_factory.mktemp("home")
    write_token(home)
    started = Cluster(home, cpus=1, has_jobs=False)
    yield started
    started.close()
