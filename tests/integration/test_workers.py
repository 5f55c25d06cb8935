"""Workers change the time, and neither the spectrograms nor, but for rounding, the training."""

import csv

import numpy as np
import pytest

from pipeline.params import PipelineParams, read_params
from pipeline.stages import preprocess
from tests.integration.outcomes import EPOCHS
from tests.projects import hashes

pytestmark = pytest.mark.timeout(600)


def read_curves(project):
    """Return the columns of `curves.csv` that have values."""
    with project.path("reports/train/curves.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {name: np.array([float(line[name]) for line in lines]) for name in lines[0] if lines[0][name]}


@pytest.fixture(scope="module")
def alone(finished, projects):
    """A finished project in which preprocess and train ran again with one worker each."""
    project = projects.copy(finished, "alone")
    project.set_params({"resources.preprocess_workers": 1, "resources.train_workers": 1})
    project.run("dvc", "repro", "--force", "--single-item", "preprocess")
    project.run("dvc", "repro", "--force", "--single-item", "train")
    return project


def test_spectrograms_are_the_same_from_one_worker_two_and_none(finished, alone, monkeypatch):
    assert finished.params["resources"]["preprocess_workers"] == 2
    expected = hashes(finished.path("data"))
    assert hashes(alone.path("data")) == expected
    # Without Ray, in this process.
    for name in expected:
        if "sample_corpus" not in name and name != ".gitignore":
            alone.path(f"data/{name}").unlink()
    monkeypatch.chdir(alone.folder)
    params = read_params(PipelineParams)
    preprocess.build(params).preprocess(params.corpus.dir)
    assert hashes(alone.path("data")) == expected


def test_curves_of_one_worker_and_two_are_close(finished, alone):
    two, one = read_curves(finished), read_curves(alone)

    np.testing.assert_array_equal(one["epoch"], EPOCHS)
    np.testing.assert_array_equal(one["learning_rate"], two["learning_rate"])
    # A step's sums in another order differ by 1e-7, which Adam passes on from step to step; over these 72 steps it came
    # to 3e-7. Two seeds differ by more than a tenth.
    for name in ("train_mse", "val_mse"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3)
