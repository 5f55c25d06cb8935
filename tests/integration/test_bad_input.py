"""Parameters that the training cannot use, through `dvc repro`: one line says so, before anything is started."""

import re

import pytest

from tests.integration.outcomes import ran

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def project(finished, projects):
    return projects.copy(finished, "bad_input")


@pytest.fixture
def refusal(project):
    """Return a function that changes parameters, lets `dvc repro` fail at training, and returns what is said of it."""
    original = project.read("params.yaml")

    def run(changes):
        project.set_params({"train.learning_rate": 0.01, **changes})
        output = project.run("dvc", "repro", fails=True)
        assert ran(output)[-1] == "train"
        assert "Traceback" not in output
        assert output.endswith("failed to run: exec python -m training.stages.train, exited with 1\n")
        (line,) = re.findall("^error: .*", output, re.MULTILINE)
        return line

    yield run
    project.path("params.yaml").write_text(original, encoding="utf-8")


def test_strides_that_cannot_be_mirrored(refusal):
    assert refusal({"autoencoder.conv_strides": [3, 2]}) == (
        "error: input_shape=(64, 16, 1): 64 bins are no multiple of 6, the product of conv_strides along bins, so the "
        "decoder cannot mirror the encoder"
    )


def test_a_batch_larger_than_the_corpus(refusal):
    assert refusal({"train.global_batch_size": 1000}) == (
        "error: train.global_batch_size=1000 is more than the 52 spectrograms to train on"
    )


def test_more_workers_than_ray_reaches(refusal):
    line = refusal({"resources.cpus_per_worker": 5000})

    assert re.fullmatch(r"error: resources\.train_workers=2 of 5000 CPU each is more than Ray reaches: \d+ CPUs", line)


def test_a_misspelt_section(project):
    original = project.read("params.yaml")
    project.path("params.yaml").write_text(original.replace("train:", "trian:"), encoding="utf-8")
    by_make = project.run("make", "repro", fails=True)
    by_dvc = project.run("dvc", "repro", fails=True)
    project.path("params.yaml").write_text(original, encoding="utf-8")

    assert by_make.splitlines()[0] == "error: params.yaml: train is missing; trian is unknown (did you mean train?)"
    # DVC, on its own, stops by itself where the section is wanted.
    assert "ERROR: failed to reproduce 'train': Parameters 'train' are missing from 'params.yaml'." in by_dvc


def test_a_misspelt_parameter_of_training_is_said_before_any_work(project):
    original = project.read("params.yaml")
    project.set_params({"preprocess.top_db": 60.0, "train.lerning_rate": 0.01})
    output = project.run("dvc", "repro", fails=True)
    project.path("params.yaml").write_text(original, encoding="utf-8")

    assert ran(output) == ["preprocess"]
    assert "\nerror: params.yaml: train.lerning_rate is unknown (did you mean learning_rate?)\n" in output
    assert not re.findall("^preprocess:", output, re.MULTILINE)


def test_no_clips_for_validation(refusal):
    assert refusal({"split.validation_share": 0.0}) == (
        "error: no spectrogram is left for validation: split.validation_share=0.0 of 68 clips"
    )
