"""Projects that several tests look at: a run takes a minute, so they share it."""

import os
import time
from pathlib import Path

import pytest

from tests.integration.outcomes import Outcome
from tests.projects import Project, new_project


@pytest.fixture(scope="session")
def projects(tmp_path_factory):
    """Makes projects, and sees to it that nothing of them runs on after the tests."""
    made = Projects(tmp_path_factory)
    yield made
    made.close()


class Projects:
    """Projects of one person, each in a folder of its own."""

    def __init__(self, tmp_path_factory):
        self._make_folder = tmp_path_factory.mktemp
        self._home = tmp_path_factory.mktemp("home")
        self._projects = []

    def new(self, name, changes=None):
        """Return a project that has never run."""
        return self.keep(new_project(self._make_folder(name) / "project", self._home, changes))

    def copy(self, project, name):
        """Return a copy of a project as it is, but for MLflow's runs."""
        copied = self.keep(project.copy(self._make_folder(name) / "project"))
        copied.path("mlflow.db").unlink()
        return copied

    def keep(self, project):
        self._projects.append(project)
        return project

    def close(self):
        """End with an error when something of a project is still running."""
        for project in self._projects:
            project.close()


@pytest.fixture(scope="session")
def finished(projects):
    """A tiny project after its first `dvc repro`, for tests that leave it as it is."""
    if os.environ.get("REUSE"):
        pr = projects.keep(Project(Path(os.environ["REUSE"]), projects._home))
        pr.seconds = 100
        pr.output = (pr.folder.with_name("log")).read_text()
        return pr
    project = projects.new("finished")
    started = time.monotonic()
    project.output = project.run("dvc", "repro", timeout=500)
    project.seconds = time.monotonic() - started
    return project


@pytest.fixture(scope="session")
def outcome(finished):
    """What the run of `finished` came to."""
    return Outcome.of(finished)
