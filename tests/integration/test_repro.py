"""`dvc repro` of the whole pipeline on a tiny sample corpus: what it makes, tracks, and runs again."""

import csv
import json
import re

import pytest
import soundfile as sf
from ruamel.yaml import YAML

from pipeline.params import flatten
from pipeline.store import Store
from tests.integration.outcomes import EPOCHS, METRICS, STAGES, points_of, ran, runs_of, tracking

pytestmark = pytest.mark.timeout(600)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- what it makes


def test_every_stage_runs_once_and_in_order(finished):
    assert ran(finished.output) == STAGES


def test_every_artifact_is_there(finished):
    notes = finished.params["sample_corpus"]
    clips = sorted(
        path.relative_to(finished.path("data/sample_corpus")) for path in finished.path("data").rglob("*.wav")
    )
    store = Store(finished.path("data/spectrograms"), finished.path("data/min_max_values.parquet"))
    store.verify()
    description = json.loads(finished.read("models/autoencoder/autoencoder.json"))
    curves = read_csv(finished.path("reports/train/curves.csv"))
    figures = json.loads(finished.read("reports/evaluate/metrics.json"))
    sounds = sorted(finished.path("reports/evaluate/sounds").iterdir())

    assert len(clips) == len(notes["instruments"]) * len(notes["pitches"]) * len(notes["velocities"])
    assert sorted(store.table["clip_id"].to_pylist()) == [path.as_posix() for path in clips]
    assert store.format.shape == (64, 16)
    assert description["input_shape"] == [64, 16, 1]
    assert [int(line["epoch"]) for line in curves] == EPOCHS
    assert figures["test_clips"] == store.table["split"].to_pylist().count("test") > 0
    assert finished.path("reports/evaluate/reconstructions.png").read_bytes().startswith(b"\x89PNG")
    assert len(sounds) == 2 * finished.params["evaluate"]["examples"]
    generated = sorted(finished.path("reports/generate/sounds").iterdir())
    assert len(generated) == 3 + 3 + 1
    assert {sf.info(path).frames for path in [*sounds, *generated]} == {2000}
    assert finished.read("reports/listen.html").startswith("<!doctype html>")
    assert json.loads(finished.read("reports/register/registered.json"))["test_mse"] == figures["test_mse"]


def test_what_git_sees_is_small_and_meant_for_it(finished):
    changed = finished.run("git", "status", "--porcelain", "--untracked-files=all").splitlines()

    assert sorted(line.removeprefix("?? ") for line in changed) == [
        "dvc.lock",
        "pipeline/dvc.lock",
        "reports/evaluate/bands.csv",
        "reports/evaluate/labels.csv",
        "reports/evaluate/metrics.json",
        "reports/generate/densities.csv",
        "reports/generate/metrics.json",
        "reports/preprocess/rejected.csv",
        "reports/preprocess/summary.json",
        "reports/register/registered.json",
        "reports/train/curves.csv",
        "reports/train/metrics.json",
    ]


# --- what it runs again


def test_afterwards_there_is_nothing_to_do(finished):
    assert "Data and pipelines are up to date." in finished.run("dvc", "status")
    assert ran(finished.run("dvc", "repro")) == []


def test_other_resources_run_nothing_again(finished, projects):
    project = projects.copy(finished, "resources")
    project.set_params(
        {
            "resources.preprocess_workers": 1,
            "resources.train_workers": 1,
            "resources.cpus_per_worker": 2,
            "resources.max_failures": 7,
        }
    )

    assert "up to date" in project.run("dvc", "status")
    assert ran(project.run("dvc", "repro")) == []


def test_another_n_fft_runs_preprocess_and_all_after(finished, projects):
    project = projects.copy(finished, "n_fft")
    project.set_params({"preprocess.n_fft": 256})
    output = project.run("dvc", "repro", "preprocess")
    store = Store(project.path("data/spectrograms"), project.path("data/min_max_values.parquet"))

    assert ran(output) == ["preprocess"]
    assert store.format.shape == (128, 16)
    # Train and evaluate read what has changed; register follows evaluate, as the test of a learning rate shows.
    assert {"train", "evaluate"} <= set(ran(project.run("dvc", "repro", "--dry")))


# --- what it tells


def test_metrics_show(finished):
    shown = json.loads(finished.run("dvc", "metrics", "show", "--json"))[""]["data"]

    assert set(shown) == {
        "reports/preprocess/summary.json",
        "reports/train/metrics.json",
        "reports/evaluate/metrics.json",
        "reports/generate/metrics.json",
    }
    figures = shown["reports/evaluate/metrics.json"]["data"]
    assert figures == json.loads(finished.read("reports/evaluate/metrics.json"))
    for name in ("test_mse", "test_mse_db", "mean_predictor_test_mse", "pca_test_mse"):
        assert figures[name] > 0


def test_params_diff(finished, projects):
    project = projects.copy(finished, "params")
    project.set_params({"train.learning_rate": 0.125, "resources.train_workers": 1})
    changed = json.loads(project.run("dvc", "params", "diff", "--json"))["params.yaml"]

    assert changed == {
        "train.learning_rate": {"old": 0.002, "new": 0.125, "diff": 0.123},
        "resources.train_workers": {"old": 2, "new": 1, "diff": -1},
    }


def test_plots_show(finished, tmp_path):
    finished.run("dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text(encoding="utf-8")

    for expected in ("Mean squared error by epoch", "Mean squared error by frequency", "Mean squared error by label"):
        assert expected in page
    pictures = [(tmp_path / "plots" / name).read_bytes() for name in re.findall(r'<img src="([^"]+)"', page)]
    assert finished.path("reports/evaluate/reconstructions.png").read_bytes() in pictures


# --- what MLflow keeps


def test_one_run_per_training(finished):
    (run,) = runs_of(finished)

    assert run.info.status == "FINISHED"
    assert run.info.run_id in finished.output


def test_a_run_has_each_epoch_once(finished):
    (run,) = runs_of(finished)
    curves = read_csv(finished.path("reports/train/curves.csv"))

    for name in ("train_mse", "val_mse", "learning_rate"):
        assert points_of(finished, run, name) == [(int(line["epoch"]), float(line[name])) for line in curves]
    assert [step for step, _ in points_of(finished, run, "samples_per_s")] == EPOCHS


def test_a_run_has_every_parameter_under_its_name(finished):
    (run,) = runs_of(finished)
    expected = flatten(finished.params)

    assert set(run.data.params) == set(expected)
    for name, value in expected.items():
        text = run.data.params[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        assert (float(text) == value) if is_number else (text == str(value)), name


def test_a_run_says_what_it_came_from(finished, tmp_path):
    (run,) = runs_of(finished)
    client = tracking(finished)
    lock = finished.read("dvc.lock")
    client.download_artifacts(run.info.run_id, "dvc.lock", str(tmp_path))
    recorded, now = (YAML(typ="safe", pure=True).load(text) for text in ((tmp_path / "dvc.lock").read_text(), lock))

    assert run.data.tags["git_commit"] == finished.run("git", "rev-parse", "HEAD").strip()
    assert run.data.tags["git_dirty"] == "false"
    for name in ("data/sample_corpus", "data/spectrograms", "data/min_max_values.parquet"):
        assert f"md5: {run.data.tags[f'dvc.{name}']}\n" in lock
    # The lock of the whole, but for the stage that logs it.
    assert recorded["stages"] == {name: stage for name, stage in now["stages"].items() if name != "register"}
    artifacts = {
        item.path for parent in ("", "pipeline", "data") for item in client.list_artifacts(run.info.run_id, parent)
    }
    assert {"params.yaml", "pipeline/dvc.lock", "evaluate", "packages.txt", "data/min_max_values.parquet"} <= artifacts
    assert {each.dataset.name for each in run.inputs.dataset_inputs} == {"corpus", "spectrograms"}
    assert json.loads(finished.read("reports/register/registered.json"))["mlflow_run"] == run.info.run_id


def test_the_evaluation_is_in_the_same_run(finished):
    (run,) = runs_of(finished)
    figures = json.loads(finished.read("reports/evaluate/metrics.json"))
    files = {
        item.path.removeprefix("evaluate/") for item in tracking(finished).list_artifacts(run.info.run_id, "evaluate")
    }

    assert {name: run.data.metrics[name] for name in figures} == pytest.approx(figures, rel=1e-12)
    assert files == {
        "reconstructions.png",
        "bands.csv",
        "labels.csv",
        *(path.name for path in finished.path("reports/evaluate/sounds").iterdir()),
    }
    assert set(METRICS) <= set(run.data.metrics)


def test_the_model_is_registered_as_the_champion(finished):
    (run,) = runs_of(finished)
    client = tracking(finished)
    (version,) = client.search_model_versions("name = 'autoencoder'")
    (logged,) = client.get_run(run.info.run_id).outputs.model_outputs
    figures = json.loads(finished.read("reports/evaluate/metrics.json"))

    assert client.get_model_version_by_alias("autoencoder", "champion").version == version.version
    assert version.source == f"models:/{logged.model_id}"
    assert version.run_id == run.info.run_id
    assert float(version.tags["test_mse"]) == pytest.approx(figures["test_mse"], rel=1e-5)
    assert version.tags["data_digest"] == json.loads(finished.read("models/autoencoder/training.json"))["data_digest"]


def test_everything_lies_in_the_project(finished):
    client = tracking(finished)
    (run,) = runs_of(finished)
    experiment = client.get_experiment(run.info.experiment_id)

    assert experiment.artifact_location == finished.path("mlartifacts").as_uri()
    assert run.info.artifact_uri.startswith(experiment.artifact_location)
    assert not finished.path("mlruns").exists()
