"""Answers in process: what a served default model cannot show, such as channels, limits, and what fails inside."""

import base64
import dataclasses
import json
import struct

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from pipeline.errors import ModelError, ParameterError
from tests.sounds import SAMPLE_RATE, sine
from tests.training.conftest import randomised
from tests.training.servers import from_base64, to_base64
from tests.training.test_sound import DESCRIPTION, PREPROCESSING
from training import serving
from training.autoencoder import Autoencoder
from training.density import Density
from training.flow import Flow
from training.inference import CompiledAutoencoder
from training.payload import DEFAULT_MAX_SECONDS, MAX_SECONDS, example_inputs, max_seconds
from training.requests import Request, RequestError
from training.service import Service
from training.sound import SoundAutoencoder

LATENT_DIM = 4


@pytest.fixture(scope="module")
def density():
    rng = np.random.default_rng(3)
    return Density.fit(rng.normal(size=(40, LATENT_DIM)), np.full(40, -60.0), rng.uniform(10, 20, 40), seed=0)


@pytest.fixture(scope="module")
def networks():
    """Return a small network, as it is and compiled."""
    autoencoder = randomised(Autoencoder((256, 64, 1), [4], [16], [16], LATENT_DIM))
    return autoencoder, CompiledAutoencoder(autoencoder)


@pytest.fixture
def make_service(networks, density):
    """Return a function that makes a service of the network behind some preprocessing."""

    def make(max_seconds=60.0, **preprocessing):
        description = dataclasses.replace(DESCRIPTION, preprocessing=PREPROCESSING | preprocessing)
        return Service(SoundAutoencoder(networks[1], description), density, max_seconds)

    return make


def ask(service, *inputs):
    """Return the replies as a server sends them."""
    return [json.loads(reply.model_dump_json()) for reply in service.answer([Request(**each) for each in inputs])]


def stereo(rng, n_samples=28_000):
    return to_base64(rng.uniform(-0.3, 0.3, (n_samples, 2)), SAMPLE_RATE)


# --- the network


@pytest.mark.parametrize("n_rows", [0, 1, 5, 64, 65, 150])
def test_a_compiled_network_is_the_network(networks, rng, n_rows):
    eager, compiled = networks
    x = rng.uniform(size=(n_rows, 256, 64, 1)).astype(np.float32)
    z = compiled.encode(x)

    np.testing.assert_allclose(z, eager.encode(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(compiled.decode(z), eager.decode(z), rtol=1e-4, atol=1e-4)
    for found, expected in zip(compiled.reconstruct(x), eager.reconstruct(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# --- channels


def test_channels_stay_apart(make_service, rng):
    service = make_service(mono=False)
    audio = stereo(rng)
    encoded, reconstructed = ask(service, {"task": "encode", "audio": audio}, {"task": "reconstruct", "audio": audio})
    (decoded,) = ask(service, {"task": "decode", **encoded})

    assert encoded["channel"] == [0, 0, 1, 1]
    assert encoded["start_s"][:2] == encoded["start_s"][2:] == pytest.approx([0, 0.555], abs=1e-4)
    y, y_hat = (from_base64(each["audio"])[0] for each in (reconstructed, decoded))
    assert y.shape == y_hat.shape == (28_000, 2)
    assert np.linalg.norm(y - y_hat) < 0.02 * np.linalg.norm(y)


def test_no_way_from_one_channel_to_two(make_service, rng):
    mono = to_base64(sine(440.0, 28_000), SAMPLE_RATE)
    message = r"^inputs\[0\]\.audio_to: has 4 segments in 2 channels, and must have 2 segments in 1 channels as"
    with pytest.raises(RequestError, match=message):
        ask(make_service(mono=False), {"task": "interpolate", "audio": mono, "audio_to": stereo(rng)})


# --- limits


def test_a_small_file_of_a_great_many_samples(make_service):
    """Silence takes next to nothing in a compressed file, whatever its rate and channels."""
    audio = to_base64(np.zeros((600_000, 8)), 655_350, format="FLAC")
    assert len(audio) < 100_000
    with pytest.raises(
        RequestError, match=r"holds 600000 samples in each of 8 channels; the limit is 192000 samples in all"
    ):
        ask(make_service(2.0), {"task": "encode", "audio": audio})


def test_a_file_that_does_not_state_its_length(make_service):
    content = bytearray(base64.b64decode(to_base64(sine(440.0), SAMPLE_RATE, format="FLAC")))
    # The lower 36 of the 64 bits after block and frame sizes: 0 is unknown.
    start = content.index(b"fLaC") + 8 + 10
    (bits,) = struct.unpack(">Q", content[start : start + 8])
    content[start : start + 8] = struct.pack(">Q", bits & ~0xF_FFFF_FFFF)
    with pytest.raises(RequestError, match=r"^inputs\[0\]\.audio: is unknown length: "):
        ask(make_service(), {"task": "encode", "audio": base64.b64encode(content).decode()})


def test_all_that_a_request_holds_counts(make_service):
    second = {"task": "encode", "audio": to_base64(np.zeros(8000), 8000)}
    service = make_service(2.5)

    assert len(ask(service, second, second)) == 2
    message = r"^inputs\[2\]\.audio: is 1\.0 s of sound, with which the request has 3\.0 s; the limit is 2\.5 s"
    with pytest.raises(RequestError, match=message):
        ask(service, second, second, second)


def test_a_limit_below_a_segment_does_not_keep_it_from_warming_up(make_service):
    make_service(0.1).warm_up()


def test_the_operators_limit(monkeypatch):
    monkeypatch.delenv(MAX_SECONDS, raising=False)
    assert max_seconds() == DEFAULT_MAX_SECONDS
    monkeypatch.setenv(MAX_SECONDS, "2.5")
    assert max_seconds() == 2.5


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "inf", "1 s"])
def test_a_limit_that_is_none(monkeypatch, value):
    monkeypatch.setenv(MAX_SECONDS, value)
    with pytest.raises(ParameterError, match=f"^{MAX_SECONDS}={value} must be a number of seconds above zero$"):
        max_seconds()


# --- what else cannot be answered


def test_latent_vectors_of_which_the_decoder_makes_infinities(make_service):
    wanted = {"task": "decode", "latent": [[3e38, -3e38, 3e38, -3e38]]}
    with pytest.raises(RequestError, match=r"^inputs\[0\]\.latent: is so large that the decoder's numbers overflow$"):
        ask(make_service(), wanted)


def test_a_flow_is_served_as_it_was_saved(networks, density, tmp_path):
    rng = np.random.default_rng(5)
    flow = Flow.identity(LATENT_DIM + 2, 2, rng)
    flow.kernels_out[:] = rng.normal(size=flow.kernels_out.shape)
    dataclasses.replace(density, flow=flow).save(tmp_path)
    bent = Density.load(tmp_path)
    service = Service(SoundAutoencoder(networks[1], DESCRIPTION), bent, 60.0)
    (reply,) = ask(service, {"task": "generate", "count": 3, "seed": 7})
    drawn = bent.sample(3, 7)

    np.testing.assert_allclose(reply["latent"], drawn.z, rtol=1e-6)
    np.testing.assert_allclose(reply["max_db"], drawn.max_db, rtol=1e-6)
    assert np.abs(drawn.z - density.sample(3, 7).z).max() > 0.1


def test_a_density_of_another_model(networks, density):
    sound = SoundAutoencoder(Autoencoder((256, 64, 1), [4], [16], [16], 7), DESCRIPTION)
    with pytest.raises(ModelError, match="a density of vectors of 4 numbers, for a network whose vectors have 7"):
        Service(sound, density, 1.0)


def test_base64_may_be_broken_into_lines(make_service):
    whole = to_base64(sine(440.0), SAMPLE_RATE)
    lines = "\r\n".join(whole[start : start + 76] for start in range(0, len(whole), 76))
    one, other = ask(make_service(), *({"task": "encode", "audio": each} for each in (whole, lines)))

    assert one == other


# --- MLflow's side


class Broken:
    def answer(self, inputs):
        raise ValueError("a secret of the server's")


def test_a_fault_of_the_servers_own_is_no_400_and_tells_nothing(caplog):
    served = serving.ServedAutoencoder()
    served._service = Broken()
    with pytest.raises(MlflowException, match="the server's log says why") as caught:
        served.predict(None, example_inputs())

    assert caught.value.get_http_status_code() == 500
    assert "secret" not in caught.value.serialize_as_json()
    assert "a secret of the server's" in caplog.text


def test_the_example_can_be_answered(make_service):
    (reply,) = ask(make_service(), *example_inputs())

    assert np.shape(reply["latent"]) == (1, LATENT_DIM)
    assert reply["duration_s"] == pytest.approx(0.1)
