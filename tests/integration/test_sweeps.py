"""Sweeps: DVC's queue and a search by Ray Tune, all in the one tracking database of the project."""

import json
import re
import time

import pytest

from tests.integration.outcomes import points_of, runs_of, tracking
from tests.projects import commit

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

FEW = ["-S", "train.epochs=2", "-S", "resources.train_workers=1"]


@pytest.fixture(scope="module")
def project(finished, projects):
    """A copy of the finished project with everything committed."""
    project = projects.copy(finished, "sweeps")
    commit(project)
    return project


@pytest.fixture(scope="module")
def queued(project):
    """The runs of two queued experiments, by the names of these."""
    dims = "autoencoder.latent_space_dim=2,4"
    output = project.run("dvc", "exp", "run", "--queue", "-S", dims, *FEW)
    names = re.findall(r"Queued experiment '([\w-]+)'", output)
    project.run("dvc", "queue", "start")
    end = time.monotonic() + 400
    while (status := project.run("dvc", "queue", "status")).count("Success") < len(names):
        assert "Failed" not in status, project.run("dvc", "queue", "logs", names[0])
        assert time.monotonic() < end, status
        time.sleep(1)
    project.run("dvc", "queue", "stop", "--kill")
    return {run.data.tags["dvc_experiment"]: run for run in runs_of(project)}, names


def test_queued_experiments_arrive_in_the_projects_database(project, queued):
    runs, names = queued

    assert sorted(runs) == sorted(names)
    assert [runs[name].data.params["autoencoder.latent_space_dim"] for name in names] == ["2", "4"]
    for name in names:
        run = runs[name]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test_mse"] > 0
        assert run.info.artifact_uri.startswith(project.path("mlartifacts").as_uri())
        assert [step for step, _ in points_of(project, run, "val_mse")] == [1, 2]


def test_from_an_experiment_to_its_run_and_back(project, queued):
    runs, names = queued
    shown = json.loads(project.run("dvc", "exp", "show", "--json", "--no-pager"))
    revisions = {each["name"]: each["revs"][0]["rev"] for each in shown[-1]["experiments"] or []}

    for name in names:
        marker = json.loads(project.run("git", "show", f"{revisions[name]}:reports/register/registered.json"))
        assert marker["mlflow_run"] == runs[name].info.run_id
        tags = runs[name].data.tags
        # The commit on which the experiment stands, and what it changed of the parameters.
        assert tags["git_commit"] == project.run("git", "rev-parse", "HEAD").strip()
        assert tags["git_dirty"] == "true"
        listed = {item.path for item in tracking(project).list_artifacts(runs[name].info.run_id)}
        assert "code.patch" in listed


def test_a_search_is_a_parent_and_its_trials(project):
    before = {run.info.run_id for run in runs_of(project)}
    output = project.run(
        *("python", "-m", "training.search", "--trials", "2", "--grace", "1"),
        *("--space", "train.learning_rate=loguniform(1e-4, 1e-2)", "autoencoder.latent_space_dim=choice(3, 5)"),
    )
    new = [run for run in runs_of(project) if run.info.run_id not in before]
    (parent,) = (run for run in new if "mlflow.parentRunId" not in run.data.tags)
    trials = [run for run in new if run is not parent]

    assert len(trials) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {parent.info.run_id}
    assert {run.info.status for run in new} == {"FINISHED"}
    for run in trials:
        steps = [step for step, _ in points_of(project, run, "val_mse")]
        assert steps == list(range(1, len(steps) + 1))
        assert (len(steps) < project.params["train"]["epochs"]) == (run.data.tags["stopped_early"] == "true")
        assert 1e-4 <= float(run.data.params["train.learning_rate"]) <= 1e-2
        assert run.data.params["autoencoder.latent_space_dim"] in {"3", "5"}
        assert run.data.params["train.global_batch_size"] == "8"
    best = min(trials, key=lambda run: min(value for _, value in points_of(project, run, "val_mse")))
    assert output.splitlines()[-1] == "dvc exp run " + " ".join(
        f"-S '{name}={best.data.params[name]}'" for name in ("train.learning_rate", "autoencoder.latent_space_dim")
    )
    assert not list(project.path("checkpoints").glob("search-*"))
