"""Projects that several tests look at: a run takes a minute, so they share it."""

import pytest

from tests.integration.outcomes import Outcome
from tests.projects import new_project


@pytest.fixture(scope="session")
def open_project():
    """Return a function that passes a project on, and sees to it that nothing of it runs on after the tests."""
    projects = []

    def register(project):
        projects.append(project)
        return project

    yield register
    for project in projects:
        project.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory, open_project):
    """A tiny project after its first `dvc repro`, for tests that leave it as it is; `copy_of` is for the others."""
    project = open_project(new_project(tmp_path_factory.mktemp("finished") / "project"))
    project.output = project.run("dvc", "repro", timeout=500)
    return project


@pytest.fixture(scope="session")
def outcome(finished):
    """What the first run of `finished` came to."""
    return Outcome.of(finished)


@pytest.fixture(scope="session")
def copy_of(tmp_path_factory, open_project):
    """Return a function that copies a project, MLflow's runs left behind."""

    def copy(project, name):
        copied = open_project(project.copy(tmp_path_factory.mktemp(name) / "project"))
        copied.path("mlflow.db").unlink()
        return copied

    return copy
