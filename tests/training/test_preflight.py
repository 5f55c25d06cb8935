"""Whether the network fits the spectrograms, said before they are made."""

import re

import pytest

from pipeline.errors import ParameterError
from pipeline.params import PARAMS_FILE, read_params
from training.params import Params
from training.preflight import check_shape


@pytest.fixture
def changed(pytestconfig):
    """Return a function that returns the default parameters with some of a section changed."""
    params = read_params(Params, pytestconfig.rootpath / PARAMS_FILE)

    def change(section, values):
        return params.model_copy(update={section: getattr(params, section).model_copy(update=values)})

    return change


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("preprocess", {}),
        ("preprocess", {"n_fft": 1024, "hop_length": 128, "duration_s": 0.74, "sample_rate": 22_000}),
        ("train", {"target_shape": (64, 48)}),
        ("autoencoder", {"conv_strides": ((4, 1), 4, (16, 16))}),
    ],
)
def test_what_fits(changed, section, values):
    check_shape(changed(section, values))


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        (
            "preprocess",
            {"n_fft": 500},
            "preprocess makes 250 bins, no multiple of 16, the product of autoencoder.conv_",
        ),
        ("preprocess", {"drop_nyquist": False}, "preprocess makes 257 bins, no multiple of 16"),
        ("preprocess", {"hop_length": 250}, "preprocess makes 66 frames, no multiple of 16"),
        ("autoencoder", {"conv_strides": (16, 2, (1, 3))}, "preprocess makes 64 frames, no multiple of 96"),
        (
            "train",
            {"target_shape": (256, 60)},
            "train.target_shape has 60 frames, .*; 256 bins and 64 frames are made$",
        ),
    ],
)
def test_what_does_not(changed, section, values, problem):
    with pytest.raises(ParameterError, match=f"^{problem}"):
        check_shape(changed(section, values))


@pytest.mark.parametrize("duration_s", [0.02, 0.5, 1.0, 7.7, 300.1])
def test_lengths_that_would_fit_do(changed, duration_s):
    with pytest.raises(ParameterError, match="would fit") as caught:
        check_shape(changed("preprocess", {"duration_s": duration_s}))
    offered = re.search(r"preprocess\.duration_s: (.*) would fit", str(caught.value))[1].split(" or ")

    for each in offered:
        check_shape(changed("preprocess", {"duration_s": float(each)}))
        assert abs(float(each) - duration_s) < 16 * 256 / 22_050 + 0.01
