"""What the train stage does before and after the training, from its command line; `tests/integration` has it train."""

import json

import mlflow
import numpy as np
import pytest

from pipeline.artifact import FORMAT_FILE
from pipeline.corpus import Splitter
from pipeline.loader import Loader
from pipeline.params import PARAMS_FILE, read_params
from pipeline.paths import SPECTROGRAMS
from pipeline.spectrogram import LogSpectrogramExtractor
from tests.training.conftest import ABSENT, DURATION_S, NETWORK, SAMPLE_RATE, SHAPE, randomised, write_notes
from tests.training.processes import python_m, said
from training.autoencoder import Autoencoder
from training.checkpoint import Checkpoints
from training.dataset import Spectrograms
from training.description import Description
from training.params import Params
from training.paths import CHECKPOINTS, CURVES, MODEL, TRAIN_METRICS
from training.progress import Epoch, Progress, read_curves
from training.stages.train import Watcher, draw_progress, training_key

_ELSEWHERE = dict.fromkeys(
    ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_STAGE")
)


def run(folder, *arguments, **environment):
    """Run the stage in a project, and return what became of it."""
    return python_m(folder, "training.stages.train", *arguments, **_ELSEWHERE | environment)


def error_of(finished):
    """Return the line with which a run ended."""
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert finished.stderr.splitlines()[-1] == line
    return line


def only_error_of(finished):
    """Return the one line of a run that ended before Ray and MLflow, which tell of things of their own."""
    line = error_of(finished)
    assert said(finished) == [line]
    return line


# --- a training whose driver was killed when all epochs were done


@pytest.fixture
def finished_project(tmp_path, make_project, store):
    """Return a project with checkpoints of all epochs, their history, and the best of their networks."""
    project = make_project(tmp_path / "project")
    key = training_key(read_params(Params, project / PARAMS_FILE), store.digest)
    checkpoints = Checkpoints(project / CHECKPOINTS / key)
    history = [Epoch(n, 0.5 / n, abs(0.3 - n / 10), 1e-3 / n, 99.0, 1_700_000_000_000 + n) for n in (1, 2, 3, 4)]
    networks = []
    for number in range(1, 5):
        networks.append(randomised(Autoencoder(SHAPE, **NETWORK), seed=number))
        networks[-1].compile()
        networks[-1].optimizer.build(networks[-1].model.trainable_variables)
        checkpoints.save(networks[-1], Progress(tuple(history[:number])))
    return project, history, networks[2]


def runs_of(project):
    """Return status and curves of each MLflow run of a project."""
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = []
    for each in client.search_runs(experiments):
        points = client.get_metric_history(each.info.run_id, "val_mse")
        found.append((each.info.status, [point.value for point in sorted(points, key=lambda point: point.step)]))
    return found


def test_its_results_are_written_and_its_checkpoints_stay(finished_project):
    project, history, best = finished_project
    finished = run(project)
    assert finished.returncode == 0, finished.stderr

    assert "train: best val_mse 0.000000 in epoch 3 of 4; MLflow run " in finished.stdout
    assert ", resumed after epoch 4" in finished.stdout
    exported = Autoencoder.load(project / MODEL)
    for found, expected in zip(exported.model.get_weights(), best.model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert Description.load(project / MODEL).target_shape is None
    assert [epoch.val_mse for epoch in read_curves(project / CURVES).history] == [each.val_mse for each in history]
    assert json.loads((project / TRAIN_METRICS).read_text()) == {"epochs": 4, "best_epoch": 3, "val_mse": 0.0}
    (checkpoints,) = (project / CHECKPOINTS).iterdir()  # and nothing that was not delivered
    assert Checkpoints(checkpoints).progress().history == tuple(history)
    assert runs_of(project) == [("FINISHED", [epoch.val_mse for epoch in history])]


def test_when_dvc_took_no_note_of_its_end_it_ends_again_in_the_same_run(finished_project):
    project, history, _ = finished_project
    first, again = run(project), run(project)

    assert (first.returncode, again.returncode) == (0, 0), again.stderr
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert runs_of(project) == [("FINISHED", [epoch.val_mse for epoch in history])]


def test_a_tracking_server_that_is_away_does_not_end_a_training(finished_project):
    """Nothing is lost: the same command, when there is a server, brings it what the first one could not."""
    project, history, _ = finished_project
    finished = run(project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert finished.returncode == 0, finished.stderr

    away, best, left = (line for line in finished.stdout.splitlines() if "MLflow" in line)
    assert away.startswith("train: MLflow at http://127.0.0.1:9: ")
    assert "Connection refused" in away
    assert away.endswith("; the training goes on")
    assert best == "train: best val_mse 0.000000 in epoch 3 of 4; no MLflow run yet"
    assert "; not delivered: epochs 1 to 4, the model, the run's end; all of it is kept, and " in left
    assert (project / MODEL).exists()
    (unsent,) = (project / CHECKPOINTS).glob("*.unsent")

    again = run(project)
    assert again.returncode == 0, again.stderr
    assert runs_of(project) == [("FINISHED", [epoch.val_mse for epoch in history])]
    assert not unsent.exists()


# --- refused before anything is started


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.epochs": ABSENT}, "params.yaml: train.epochs is missing"),
        ({"train.learning_rat": 1}, "params.yaml: train.learning_rat is unknown (did you mean learning_rate?)"),
        ({"train.learning_rate": "fast"}, "params.yaml: train.learning_rate='fast' should be a valid number"),
        (
            {"train.warmup_epochs": 4.5},
            "params.yaml: train: warmup_epochs=4.5 must be fewer than epochs=4",
        ),
        (
            {"autoencoder.conv_kernels": [3, 3, 3]},
            "params.yaml: autoencoder: conv_filters, conv_kernels, conv_strides have 2, 3 and 2 entries, and must have "
            "one per layer",
        ),
        (
            {"resources.train_workers": 3},
            "params.yaml: resources.train_workers=3 must divide train.global_batch_size=16, so that every worker has "
            "an equal slice of each batch",
        ),
        (
            {"autoencoder.conv_strides": [2, [3, 1]]},
            "input_shape=(16, 16, 1): 16 bins are no multiple of 6, the product of conv_strides along bins, so the "
            "decoder cannot mirror the encoder",
        ),
        (
            {"train.target_shape": [16, 10]},
            "input_shape=(16, 10, 1): 10 frames are no multiple of 4, the product of conv_strides along frames, so the "
            "decoder cannot mirror the encoder",
        ),
        (
            {"train.global_batch_size": 4096},
            "train.global_batch_size=4096 is more than the {n_train} spectrograms to train on",
        ),
    ],
)
def test_bad_parameters(tmp_path, make_project, store, changes, message):
    n_train = store.table["split"].to_pylist().count("train")
    line = only_error_of(run(make_project(tmp_path / "project", changes)))

    assert line == "error: " + message.format(n_train=n_train)


def test_a_missing_parameter_file(tmp_path, make_project):
    line = only_error_of(run(make_project(tmp_path / "project"), "--params", "nowhere.yaml"))

    assert line == "error: nowhere.yaml: cannot be read: No such file or directory"


def test_no_spectrograms(tmp_path, make_project):
    project = make_project(tmp_path / "project")
    (project / "data").unlink()

    assert only_error_of(run(project)) == (
        f"error: {project / SPECTROGRAMS / FORMAT_FILE}: missing; the preprocess stage has not finished here"
    )


def test_damaged_spectrograms(tmp_path, make_project, make_pipeline, rng):
    project = make_project(tmp_path / "project")
    (project / "data").unlink()
    pipeline = make_pipeline("project/data", Loader(SAMPLE_RATE, DURATION_S), LogSpectrogramExtractor(32, 32))
    store = pipeline.preprocess(write_notes(tmp_path / "sounds", rng)).store
    shard = project / SPECTROGRAMS / store.shards[0].name
    content = shard.read_bytes()
    shard.write_bytes(content[:-1000])

    assert only_error_of(run(project)) == f"error: {shard}: holds {len(content) - 1000} bytes, expected {len(content)}"


def test_nothing_is_left_for_validation(tmp_path, make_project, make_pipeline, rng):
    project = make_project(tmp_path / "project", {"split.validation_share": 0.0})
    (project / "data").unlink()
    make_pipeline(
        "project/data",
        Loader(SAMPLE_RATE, DURATION_S),
        LogSpectrogramExtractor(32, 32),
        splitter=Splitter(validation_share=0.0, test_share=0.0),
    ).preprocess(write_notes(tmp_path / "sounds", rng))

    assert only_error_of(run(project)) == (
        "error: no spectrogram is left for validation: split.validation_share=0.0 of 144 clips"
    )


def test_a_damaged_checkpoint(tmp_path, make_project, store):
    project = make_project(tmp_path / "project")
    key = training_key(read_params(Params, project / PARAMS_FILE), store.digest)
    latest = project / CHECKPOINTS / key / "epoch-00002"
    latest.mkdir(parents=True)
    (latest / "progress.json").write_text('{"format_version": 3, "history": []}')

    assert only_error_of(run(project)) == f"error: {latest}/progress.json: format_version is 3, expected 1"


def test_the_traceback_is_for_verbose(tmp_path, make_project):
    finished = run(make_project(tmp_path / "project", {"train.global_batch_size": 4096}), "--verbose")

    assert finished.returncode == 1
    assert "Traceback" in finished.stderr
    assert "ParameterError: train.global_batch_size=4096 is more than" in finished.stderr.splitlines()[-1]


# --- refused by what others run


def test_an_address_of_another_kind(tmp_path, make_project):
    line = error_of(run(make_project(tmp_path / "project"), RAY_ADDRESS="ray://127.0.0.1:10001"))

    assert line == (
        "error: RAY_ADDRESS=ray://127.0.0.1:10001 is Ray Client's, which Ray Train does not support; must be unset, "
        "'auto' or host:port on a machine that is part of the cluster, or http://head:8265 on any other"
    )


def test_more_workers_than_ray_reaches(tmp_path, make_project):
    changes = {"resources.train_workers": 16, "resources.cpus_per_worker": 1000}
    project = make_project(tmp_path / "project", changes)
    line = error_of(run(project))

    assert line.startswith("error: resources.train_workers=16 of 1000 CPU each is more than Ray reaches: ")
    assert line.endswith(" CPUs")


# --- the training key


@pytest.fixture
def key_of(tmp_path, make_project):
    """Return a function that returns the key of a training with some parameters changed."""
    numbers = iter(range(100))

    def key(changes=None, data="a digest"):
        project = make_project(tmp_path / str(next(numbers)), changes)
        return training_key(read_params(Params, project / PARAMS_FILE), data)

    return key


def test_the_key_follows_from_data_and_parameters(key_of):
    keys = [
        key_of(),
        key_of(data="another"),
        key_of({"autoencoder.latent_space_dim": 7}),
        key_of({"train.learning_rate": 1e-4}),
        key_of({"train.seed": 1}),
        key_of({"train.epochs": 5}),
        key_of({"train.target_shape": [16, 16]}),
    ]

    assert len(set(keys)) == len(keys)
    assert key_of() == keys[0]
    assert all(len(key) == 32 for key in keys)


def test_where_it_runs_is_no_part_of_the_key(key_of):
    resources = {"resources.train_workers": 4, "resources.cpus_per_worker": 2, "resources.max_failures": 9}

    assert key_of(resources | {"evaluate.examples": 3, "corpus.dir": "elsewhere"}) == key_of()


def test_the_key_follows_from_the_code(key_of, monkeypatch):
    before = key_of()
    monkeypatch.setattr("training.stages.train.file_sha256", lambda path: f"another {path.name}")

    assert key_of() != before


# --- what the driver shows


def test_epochs_are_printed_once_and_sent_from_the_first(tmp_path, capsys):
    autoencoder = Autoencoder((8, 8, 1), [3], [3], [2], 2)
    autoencoder.compile()
    autoencoder.optimizer.build(autoencoder.model.trainable_variables)
    history = [Epoch(n, 0.5 / n, 0.25 / n, 1e-3, 1234.5, 1_700_000_000_000 + n) for n in (1, 2, 3)]
    checkpoints = Checkpoints(tmp_path / "key")
    checkpoints.save(autoencoder, Progress(tuple(history[:1])))
    sent = []

    # As when a killed training is resumed after its first epoch.
    with Watcher(checkpoints, sent.append, epochs=3) as watcher:
        for number in (2, 3):
            checkpoints.save(autoencoder, Progress(tuple(history[:number])))
            watcher.look()

    # Whether it looked before the second epoch is a matter of timing.
    assert [list(each) for each in sent][-2:] == [history[:2], history]
    assert capsys.readouterr().out.splitlines() == [
        "train: epoch 2/3  train_mse 0.250000  val_mse 0.125000  learning_rate 1.00e-03  1234 samples/s",
        "train: epoch 3/3  train_mse 0.166667  val_mse 0.083333  learning_rate 1.00e-03  1234 samples/s",
    ]


def test_pictures_are_of_the_newest_weights_five_times(tmp_path, store, autoencoder):
    validation = Spectrograms(store, "validation")
    description = Description("key", store.digest, store.format.parameters, None)
    checkpoints = Checkpoints(tmp_path / "key")
    logged, drawn = [], []
    draw_progress(checkpoints, description, validation, 3, lambda path, epoch: logged.append(epoch), 1)
    assert logged == []  # there is no checkpoint yet

    autoencoder.compile()
    autoencoder.optimizer.build(autoencoder.model.trainable_variables)
    history = [Epoch(n, 0.5 / n, 0.25 / n, 1e-3, 1234.5, 1_700_000_000_000 + n) for n in range(1, 11)]
    watcher = Watcher(checkpoints, lambda history: None, epochs=10, draw=drawn.append)
    for number in range(1, 11):
        checkpoints.save(autoencoder, Progress(tuple(history[:number])))
        watcher.look()
    draw_progress(checkpoints, description, validation, 3, lambda path, epoch: logged.append(path.read_bytes()[:4]), 10)

    assert drawn == [2, 4, 6, 8, 10]
    assert logged == [b"\x89PNG"]
