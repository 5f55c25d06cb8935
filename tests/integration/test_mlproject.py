"""`mlflow run`: the same commands, with the training in the run that MLflow starts; and a changed learning rate."""

import pytest

from tests.integration.outcomes import EPOCHS, STAGES, points_of, ran, runs_of, tracking

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def project(finished, projects):
    """A finished project, without a database of MLflow, in which `mlflow run` meets another learning rate."""
    project = projects.copy(finished, "mlproject")
    project.set_params({"train.learning_rate": 0.001})
    project.output = project.run("mlflow", "run", ".", "--env-manager", "local", timeout=500)
    return project


def test_another_learning_rate_runs_training_and_all_after(project):
    assert ran(project.output) == STAGES[2:]
    assert "Stage 'preprocess' didn't change, skipping" in project.output


def test_training_fills_the_run_that_mlflow_started(project):
    (run,) = runs_of(project)

    assert f"(ID '{run.info.run_id}')" in project.output
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.project.entryPoint"] == "main"
    assert run.data.params["train.learning_rate"] == "0.001"
    assert [step for step, _ in points_of(project, run, "val_mse")] == EPOCHS
    assert "test_mse" in run.data.metrics
    assert tracking(project).get_model_version_by_alias("autoencoder", "champion").run_id == run.info.run_id


def test_the_artifacts_are_in_the_project_from_wherever_one_asks(project):
    (run,) = runs_of(project)
    experiment = tracking(project).get_experiment(run.info.experiment_id)

    assert experiment.artifact_location.startswith(("file:///", "/")), experiment.artifact_location
    assert experiment.artifact_location.removeprefix("file://").startswith(f"{project.folder}/")
    assert {item.path for item in tracking(project).list_artifacts(run.info.run_id)} >= {"params.yaml", "evaluate"}


def test_a_stage_alone_is_an_entry_point(project):
    output = project.run("mlflow", "run", ".", "--env-manager", "local", "-e", "preprocess")

    assert ran(output) == []
    assert "Stage 'preprocess' didn't change, skipping" in output
