import dataclasses
import math

import pytest

from pipeline.errors import ModelError
from tests.training.conftest import make_progress
from training.progress import Progress, read_curves, write_curves

# --- early stopping


@pytest.mark.parametrize(
    ("errors", "best", "finished"),
    [
        ([], None, False),
        ([3.0], 1, False),
        ([3.0, 2.0, 1.0], 3, False),
        ([3.0, 2.0, 1.0, 1.0], 3, False),
        ([3.0, 1.0, 2.0], 2, False),
        ([3.0, 1.0, 2.0, 1.5], 2, True),  # two epochs brought nothing better
        ([1.0, 1.0, 1.0], 1, True),  # neither does the same again
        ([5.0, 4.0, 3.0, 2.0, 1.0], 5, True),  # all epochs are done
        ([5.0, 4.0, 3.0, 2.0, 9.0], 4, True),
    ],
)
def test_when_a_training_is_finished(errors, best, finished):
    progress = make_progress(*errors)

    assert progress.is_finished(epochs=5, patience=2) is finished
    assert progress.epoch == len(errors)
    if best:
        assert progress.best.epoch == best


# --- curves as CSV


def test_curves_come_back(tmp_path):
    progress = make_progress(0.1 + 0.2, 1 / 3, 1e-17)
    write_curves(tmp_path / "reports" / "curves.csv", progress)
    read = read_curves(tmp_path / "reports" / "curves.csv")

    def curves(each):
        return [(epoch.epoch, epoch.train_mse, epoch.val_mse, epoch.learning_rate) for epoch in each.history]

    assert curves(read) == curves(progress)
    assert all(math.isnan(epoch.samples_per_s) for epoch in read.history)
    assert read.best == read.history[2]


def with_divergences(progress):
    """Return the progress of a variational model, whose loss falls while its error rises."""
    return Progress(
        tuple(
            dataclasses.replace(
                epoch, train_kl=9.0 / epoch.epoch, val_kl=1 / 3 / epoch.epoch, val_loss=5.5 / epoch.epoch
            )
            for epoch in progress.history
        )
    )


def test_divergences_come_back(tmp_path):
    progress = with_divergences(make_progress(0.5, 0.25))
    write_curves(tmp_path / "curves.csv", progress)
    read = read_curves(tmp_path / "curves.csv")

    assert [(epoch.train_kl, epoch.val_kl, epoch.val_loss) for epoch in read.history] == [
        (9.0, 1 / 3, 5.5),
        (4.5, 1 / 6, 2.75),
    ]


def test_the_best_epoch_of_a_variational_model_is_that_of_its_loss():
    assert make_progress(0.1, 0.2).best.epoch == 1
    assert with_divergences(make_progress(0.1, 0.2)).best.epoch == 2


def test_an_epoch_in_one_line():
    plain, variational = make_progress(0.5), with_divergences(make_progress(0.5))

    assert plain.best.describe() == "train_mse 0.033333  val_mse 0.500000  learning_rate 1.00e-03  501 samples/s"
    assert variational.best.describe() == (
        "train_mse 0.033333  val_mse 0.500000  train_kl 9.00  val_kl 0.33 nats  learning_rate 1.00e-03  501 samples/s"
    )


def test_curves_are_what_dvc_plots(tmp_path):
    write_curves(tmp_path / "curves.csv", make_progress(0.5, 0.25))

    assert (tmp_path / "curves.csv").read_text().splitlines() == [
        "epoch,train_mse,val_mse,learning_rate,train_kl,val_kl,val_loss",
        f"1,{0.1 / 3},0.5,0.001,,,",
        f"2,{0.1 / 3 / 2},0.25,0.0005,,,",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch,train_mse\n1,2\n", "cannot be read: 'val_mse'"),
        ("epoch,train_mse,val_mse,learning_rate\n1,0,0,0\n", "cannot be read: 'train_kl'"),
        ("epoch,train_mse,val_mse,learning_rate\n1,x,0,0\n", "cannot be read: could not convert string to float: 'x'"),
        ("epoch,train_mse,val_mse,learning_rate\n1,0.5\n", "cannot be read: float"),
        (None, r"cannot be read: \[Errno 2\] No such file or directory"),
    ],
)
def test_curves_that_are_none(tmp_path, content, message):
    if content is not None:
        (tmp_path / "curves.csv").write_text(content)

    with pytest.raises(ModelError, match=rf"curves\.csv: {message}.*; run the train stage again"):
        read_curves(tmp_path / "curves.csv")
