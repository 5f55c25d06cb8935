"""Whole trainings, each by processes of its own."""

import dataclasses
import math
import shutil
import signal
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf
from sklearn.decomposition import PCA

from pipeline.errors import ResourceError
from tests.training.conftest import NETWORK, SHAPE, TRAINING, without_clock
from tests.training.processes import start_workers
from tests.training.workers import save_and_die, stop_after_seven_steps, train_and_die
from training.autoencoder import Autoencoder
from training.checkpoint import Checkpoints
from training.dataset import Spectrograms
from training.loop import check_cuda, initialise, learning_rate_schedule, run_worker
from training.params import AutoencoderSection, TrainSection
from training.progress import Progress

EPOCHS = TRAINING["epochs"]
VARIATIONAL = NETWORK | {"variational": True, "beta": 1e-2}

# --- the learning rate


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 2.0, 9.99])
def test_learning_rate_schedule(schedule, warmup_epochs):
    settings = TrainSection(
        **TRAINING | {"epochs": 10, "schedule": schedule, "warmup_epochs": warmup_epochs, "learning_rate": 2e-3}
    )
    rate = learning_rate_schedule(settings, steps_per_epoch=7)
    warmup_steps = round(7 * warmup_epochs)

    for step in range(71):
        if step < warmup_steps:
            expected = 2e-3 * step / warmup_steps
        elif schedule == "constant":
            expected = 2e-3
        else:
            expected = 1e-3 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, 70 - warmup_steps)))
        found = float(rate(step)) if callable(rate) else rate
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9), step


# --- the start


def test_a_random_start_has_its_output_at_the_mean_of_the_data(store, make_job, tmp_path):
    spectrograms = Spectrograms(store, "train")
    autoencoder = Autoencoder(SHAPE, **NETWORK)
    initialise(autoencoder, spectrograms, make_job(tmp_path).train)
    rows = spectrograms.rows(np.arange(len(spectrograms)))

    (bias,) = autoencoder.decoder.get_layer("decoder_output").bias.numpy()
    assert bias == pytest.approx(rows.mean(dtype=np.float64), rel=1e-6)


# --- whole runs


def finish(children, code=0):
    """Wait for the end of processes."""
    for child in children:
        finished = child.join()
        assert finished.returncode == code, finished.stderr


def result_of(checkpoints):
    """Return history, weights and optimizer of a training."""
    folder = checkpoints
    progress = Checkpoints(folder).progress()
    latest = folder / f"epoch-{progress.epoch:05d}"
    with np.load(latest / "optimizer.npz", allow_pickle=False) as file:
        optimizer = dict(file)
    best = Checkpoints(folder).load_best().model.get_weights()
    return progress, Autoencoder.load(latest).model.get_weights(), best, optimizer


@pytest.fixture(scope="module")
def start(tmp_path_factory, make_job, store):
    """Return a function that starts a run in a folder that all runs share."""
    folder = tmp_path_factory.mktemp("runs")

    def start(name, num_workers=1, function=run_worker, network=NETWORK, **settings):
        job = dataclasses.replace(make_job(folder / name, **settings), autoencoder=AutoencoderSection(**network))
        return start_workers(folder, function, num_workers, job)

    start.folder = folder
    start.steps_per_epoch = len(Spectrograms(store, "train")) // TRAINING["global_batch_size"]
    return start


@pytest.fixture(scope="module")
def trained(start):
    """Return the folder of checkpoints of each whole run: by workers and seed, and of runs that were killed."""
    together = [*start("one"), *start("one other seed", seed=1), *start("variational", network=VARIATIONAL)]
    finish(start("one killed", function=train_and_die), code=-signal.SIGKILL)
    finish(start("variational killed", function=save_and_die, network=VARIATIONAL), code=-signal.SIGKILL)
    finish(together)
    stopped = start.folder / "two stopped"
    for steps in (7, 14):
        finish(start("two stopped", 2, stop_after_seven_steps))
        progress = Checkpoints(stopped).progress()
        assert (progress.epoch, progress.begun.steps) == divmod(steps, start.steps_per_epoch)
        if steps == 7:
            shutil.copytree(stopped, start.folder / "shrunk")
    finish(start("two", 2))
    finish(start("two killed", 2, train_and_die), code=-signal.SIGKILL)
    assert {Checkpoints(start.folder / f"{name} killed").progress().epoch for name in ("one", "two")} == {2}
    begun = Checkpoints(start.folder / "variational killed").progress()
    assert (begun.epoch, begun.begun.steps) == (2, 2)
    together = [*start("one killed"), *start("variational killed", network=VARIATIONAL), *start("shrunk")]
    finish(start("two killed", 2))
    finish(together)
    finish(start("two stopped", 2))
    return start.folder


def curve(checkpoints):
    return np.array([epoch.val_mse for epoch in Checkpoints(checkpoints).progress().history])


def test_a_run_leaves_its_last_and_its_best_epoch(trained):
    progress, *_ = result_of(trained / "one")

    assert progress.epoch == EPOCHS
    assert [epoch.epoch for epoch in progress.history] == list(range(1, EPOCHS + 1))
    assert sorted(path.name for path in (trained / "one").iterdir()) == [
        f"best-{progress.best.epoch:05d}",
        f"epoch-{EPOCHS:05d}",
    ]


def test_what_a_run_reports(trained, store):
    """The validation error is what the saved network has, and training brought it down."""
    progress, weights, best, optimizer = result_of(trained / "one")
    rows = Spectrograms(store, "validation")
    x = rows.rows(np.arange(len(rows)))
    for epoch, values in ((progress.history[-1], weights), (progress.best, best)):
        autoencoder = Autoencoder(SHAPE, **NETWORK)
        autoencoder.model.set_weights(values)
        x_hat, _ = autoencoder.reconstruct(x)
        assert epoch.val_mse == pytest.approx(np.mean((np.float64(x_hat) - x) ** 2), rel=1e-5)

    steps_per_epoch = len(Spectrograms(store, "train")) // TRAINING["global_batch_size"]
    assert int(optimizer["0"]) == EPOCHS * steps_per_epoch
    assert progress.history[-1].train_mse < progress.history[0].train_mse
    assert progress.history[-1].learning_rate == pytest.approx(0.0, abs=1e-9)
    assert all(epoch.samples_per_s > 0 for epoch in progress.history)
    times = [epoch.timestamp_ms for epoch in progress.history]
    assert times == sorted(times)


@pytest.mark.parametrize("name", ["one killed", "two killed", "variational killed", "two stopped"])
def test_a_run_that_did_not_come_to_its_end_goes_on_as_if_nothing_had_happened(trained, name):
    """Killed in the third epoch, or stopped twice within one: all bits of weights, optimizer, history are of one go."""
    whole, resumed = result_of(trained / name.split()[0]), result_of(trained / name)

    assert without_clock(resumed[0]) == without_clock(whole[0])
    for found, expected in zip(resumed[1], whole[1], strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(resumed[2], whole[2], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert resumed[3].keys() == whole[3].keys()
    for name, expected in whole[3].items():
        np.testing.assert_array_equal(resumed[3][name], expected, err_msg=name)


def test_what_a_run_of_a_variational_network_reports(trained, store):
    progress, weights, *_ = result_of(trained / "variational")
    autoencoder = Autoencoder(SHAPE, **VARIATIONAL)
    autoencoder.model.set_weights(weights)
    rows = Spectrograms(store, "validation")
    x = rows.rows(np.arange(len(rows)))
    _, divergences = autoencoder.model([x, np.zeros((len(x), 6), np.float32)], training=False)
    x_hat, _ = autoencoder.reconstruct(x)

    last = progress.history[-1]
    assert last.val_mse == pytest.approx(np.mean((np.float64(x_hat) - x) ** 2), rel=1e-5)
    assert last.val_kl == pytest.approx(np.mean(divergences), rel=1e-5)
    assert last.val_loss == pytest.approx(last.val_mse + VARIATIONAL["beta"] * last.val_kl / x[0].size, rel=1e-9)
    assert all(epoch.train_kl > 0 for epoch in progress.history)


def test_a_run_that_goes_on_with_fewer_workers_is_the_same_but_for_rounding(trained):
    """Two workers stop within the second epoch, whose error begins with theirs and ends with that of one."""
    one, shrunk = (Checkpoints(trained / name).progress().history for name in ("one", "shrunk"))
    for name in ("train_mse", "val_mse", "learning_rate"):
        found, expected = ([getattr(epoch, name) for epoch in history] for history in (shrunk, one))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12, err_msg=name)


def test_another_number_of_workers_changes_less_than_another_seed(trained):
    one, two, other_seed = (curve(trained / name) for name in ("one", "two", "one other seed"))
    by_workers, by_seed = np.abs(two / one - 1), np.abs(other_seed / one - 1)

    assert by_workers.max() < by_seed.min()
    assert by_workers.max() < 1e-5


def test_all_workers_start_as_pca(start, store):
    """With a learning rate at which hardly anything moves, the error is that of PCA, with one worker as with two."""
    layers = {"conv_filters": [32, 32], "conv_kernels": [4, 3], "conv_strides": [4, 1]}
    settings = {"initialisation": "pca", "learning_rate": 1e-9, "warmup_epochs": 0, "epochs": 1}
    for workers in (1, 2):
        finish(start(f"pca {workers}", workers, network=NETWORK | layers, **settings))
    (one,), (two,) = (curve(start.folder / f"pca {workers}") for workers in (1, 2))
    train, validation = (
        rows.rows(np.arange(len(rows))).reshape(len(rows), -1)
        for rows in (Spectrograms(store, "train"), Spectrograms(store, "validation"))
    )
    pca = PCA(6, svd_solver="full").fit(train)
    expected = np.mean((pca.inverse_transform(pca.transform(validation)) - validation) ** 2)

    assert two == pytest.approx(one, rel=1e-5)
    assert one == pytest.approx(expected, rel=0.05)  # moving statistics have followed the last batches a little


def test_a_finished_run_does_nothing(trained, start):
    before = {path: path.stat().st_mtime_ns for path in (trained / "one").rglob("*")}
    finish(start("one"))

    assert {path: path.stat().st_mtime_ns for path in (trained / "one").rglob("*")} == before


def test_early_stopping(start):
    """More epochs, of which none may be worse than the best: the run ends after the first that is."""
    finish(start("patient", epochs=30, patience=1, learning_rate=0.05))
    progress = Checkpoints(start.folder / "patient").progress()
    errors = [epoch.val_mse for epoch in progress.history]

    assert progress.epoch < 30
    assert errors[-1] >= min(errors[:-1]) == errors[-2]
    assert all(later < earlier for earlier, later in pairwise(errors[:-1]))


def test_an_error_that_is_not_finite_is_not_saved(start):
    finish(start("diverging", learning_rate=1e30, warmup_epochs=0))

    assert Checkpoints(start.folder / "diverging").progress() == Progress()


def test_a_tensorflow_without_cuda_does_not_train_beside_a_gpu():
    if tf.test.is_built_with_cuda():
        check_cuda()
    else:
        with pytest.raises(
            ResourceError, match=r"^resources\.use_gpu=true, and the TensorFlow here knows no GPU: make"
        ):
            check_cuda()


def test_another_shape_than_the_stores(start):
    finish(start("small", epochs=1, target_shape=(8, 16)))
    checkpoints = Checkpoints(start.folder / "small")

    assert checkpoints.progress().epoch == 1
    assert checkpoints.load_best().architecture.input_shape == (8, 16, 1)
