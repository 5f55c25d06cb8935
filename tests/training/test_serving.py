"""The logged model where nothing of the project is: real servers in a folder with only the model, and real requests."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.loader import Loader
from pipeline.params import PARAMS_FILE, read_params
from tests.sounds import SAMPLE_RATE, sine, write
from tests.training.conftest import randomised
from tests.training.servers import Server, from_base64, to_base64
from tests.training.test_sound import DESCRIPTION
from training import tracking
from training.autoencoder import Autoencoder
from training.density import Density
from training.description import DESCRIPTION_FILE
from training.params import Params
from training.payload import MAX_SECONDS
from training.requests import TASKS
from training.sound import SoundAutoencoder

LATENT_DIM = 4
LIMIT_S = 20
FORMATS = {"wav": 22050, "flac": 44100, "ogg": 48000, "mp3": 8000}
DURATIONS_S = (0.3, 0.74, 3.0)


def save_model(folder, seed):
    """Write an untrained model as the train stage does, and return the folder."""
    rng = np.random.default_rng(seed)
    randomised(Autoencoder((256, 64, 1), [4], [16], [16], LATENT_DIM), seed).save(folder)
    (folder / DESCRIPTION_FILE).write_text(DESCRIPTION.to_json())
    max_db = rng.uniform(10, 30, 60)
    Density.fit(rng.normal(size=(60, LATENT_DIM)), max_db - 80, max_db, seed=0).save(folder)
    return folder


def difference(y, y_hat):
    """Return the level of the difference of two sounds relative to that of the first, as amplitudes."""
    assert y.shape == y_hat.shape
    return np.linalg.norm(y_hat - y) / np.linalg.norm(y)


def assert_same_sound(y, y_hat):
    """Compare sounds of the same spectrograms.

    The network's last bits depend on the size of the batch, and Griffin-Lim's iterations make more of them in places.
    """
    assert difference(y, y_hat) < 0.02


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return folders as the train stage leaves them, of two trainings."""
    folder = tmp_path_factory.mktemp("trained")
    return [save_model(folder / str(seed), seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def logged(tmp_path_factory, pytestconfig, trained):
    """Return the folder of a model, as MLflow keeps it, that is alone in its parent."""
    folder = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        params = read_params(Params, pytestconfig.rootpath / PARAMS_FILE)
        with tracking.connect() as client, tracking.training_run(client, "key", params) as run:
            tracking.log_model(client, run.info.run_id, trained[0])
        (model,) = client.get_run(run.info.run_id).outputs.model_outputs
        mlflow.set_tracking_uri(None)
        mlflow.tracking.fluent._active_experiment_id = None
    alone = tmp_path_factory.mktemp("alone") / "model"
    shutil.copytree(folder / "mlartifacts" / "models" / model.model_id / "artifacts", alone)
    return alone


@pytest.fixture(scope="module")
def servers(logged, trained):
    """Servers of two models, which differ in what was trained."""
    other = logged.parent / "other"
    shutil.copytree(logged, other)
    shutil.copytree(trained[1], other / "artifacts" / trained[0].name, dirs_exist_ok=True)
    started = [Server(folder, **{MAX_SECONDS: str(LIMIT_S)}) for folder in (logged, other)]
    try:
        yield [each.wait() for each in started]
    finally:
        for each in started:
            each.close()


@pytest.fixture(scope="module")
def server(servers):
    """The server of the first model."""
    return servers[0]


@pytest.fixture(scope="module")
def sound(trained):
    """What the first model's weights do in this process."""
    return SoundAutoencoder.load(trained[0])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Base64 and signals (1, n_samples), at the model's rate, of files in four formats and of three durations."""
    folder, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(5)
    made = {}
    for suffix, rate in FORMATS.items():
        for duration_s in DURATIONS_S:
            n_samples = round(duration_s * rate)
            y = sine(440.0, n_samples, rate)[:, None] * [1.0, 0.5] + 0.1 * rng.normal(size=(n_samples, 2))
            path = write(folder / f"{duration_s}.{suffix}", y, rate)
            content = base64.b64encode(path.read_bytes()).decode("ascii")
            made[suffix, duration_s] = content, Loader(SAMPLE_RATE, 60.0).load(path).y
    return made


# --- what is in the model


def test_nothing_is_pickled(logged):
    """What MLflow keeps of the model: text, weights, arrays, and Python files."""
    suffixes = {path.suffix for path in logged.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert suffixes <= {".css", ".h5", ".html", ".js", ".json", ".lock", ".npz", ".py", ".pyc", ".txt", ".yaml", ""}
    for path in logged.rglob("*.npz"):
        np.load(path, allow_pickle=False)


def test_requirements_are_the_versions_that_are_here(logged):
    lines = (logged / "requirements.txt").read_text().splitlines()

    assert f"mlflow=={mlflow.__version__}" in lines
    assert f"numpy=={np.__version__}" in lines
    names = {line.partition("==")[0] for line in lines}
    assert names & {"tensorflow", "tensorflow-cpu"}
    assert {"keras", "librosa", "scikit-learn", "soundfile", "soxr", "pyarrow", "pydantic"} <= names


# --- tasks


@pytest.mark.parametrize("duration_s", DURATIONS_S)
@pytest.mark.parametrize("suffix", FORMATS)
def test_reconstruct(server, sound, clips, suffix, duration_s):
    """The whole way of a sound is that of the logged weights in this process, segment by segment."""
    content, y = clips[suffix, duration_s]
    (reply,) = server.ask({"task": "reconstruct", "audio": content})
    y_hat, rate = from_base64(reply["audio"])
    spectra = sound.analyse(y)
    x_hat = sound.autoencoder.decode(sound.autoencoder.encode(spectra.x))

    assert set(reply) == {"audio", "mse", "log_spectral_distance_db"}
    assert (rate, y_hat.shape) == (SAMPLE_RATE, y[0].shape)
    assert_same_sound(y_hat, np.clip(sound.reconstruct(y)[0], -1, 1))
    assert difference(y[0], y_hat) > 0.2
    assert reply["mse"] == pytest.approx(np.mean((spectra.x - x_hat) ** 2), rel=1e-4)
    assert reply["log_spectral_distance_db"] > 1


def test_encode_and_decode_are_reconstruct(server, sound, clips):
    content, y = clips["flac", 3.0]
    (encoded,) = server.ask({"task": "encode", "audio": content})
    (decoded,), (reconstructed,) = (
        server.ask(each) for each in ({"task": "decode", **encoded}, {"task": "reconstruct", "audio": content})
    )
    spectra = sound.analyse(y)

    np.testing.assert_allclose(encoded["latent"], sound.autoencoder.encode(spectra.x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(encoded["min_db"], spectra.min_db, atol=1e-4)
    np.testing.assert_allclose(encoded["max_db"], spectra.max_db, atol=1e-4)
    # A segment's 0.74 s less a quarter of them, in whole samples.
    np.testing.assert_allclose(encoded["start_s"], np.arange(6) * (16317 - 16317 // 4) / SAMPLE_RATE)
    assert encoded["channel"] == [0] * 6
    assert encoded["duration_s"] == 3.0
    y_hat, y_again = (from_base64(each["audio"])[0] for each in (decoded, reconstructed))
    assert_same_sound(y_hat, y_again)
    assert decoded["duration_s"] == 3.0


def test_decode_a_vector_alone(server, sound):
    z = np.float32([[0.5, -1.0, 0.25, 2.0]])
    (bare,), (levelled,) = (
        server.ask({"task": "decode", "latent": z.tolist(), **levels})
        for levels in ({}, {"max_db": [20.0], "min_db": [-60.0]})
    )
    expected = sound.invert(sound.autoencoder.decode(z), np.float32([-60]), np.float32([20]))[0]

    assert_same_sound(from_base64(levelled["audio"])[0], np.clip(expected, -1, 1))
    # By default as loud as a sine of half of full scale, whose peak in a window of 512 is 64: 36.1 dB instead of 20.
    loud = np.clip(expected * 10 ** ((20 * np.log10(64) - 20) / 20), -1, 1)
    np.testing.assert_allclose(from_base64(bare["audio"])[0], loud, rtol=0, atol=2e-2)


def test_generate(server, sound, trained):
    first, again, other = (server.ask({"task": "generate", "count": 3, "seed": seed})[0] for seed in (7, 7, 8))
    drawn = Density.load(trained[0]).sample(3, 7)
    expected = sound.autoencoder.decode(drawn.z)

    assert first == again
    assert first["sounds"] != other["sounds"]
    np.testing.assert_allclose(first["latent"], drawn.z, rtol=1e-6)
    for row, content in enumerate(first["sounds"]):
        y_hat = sound.invert(expected[row][None], drawn.min_db[row : row + 1], drawn.max_db[row : row + 1])[0]
        assert_same_sound(from_base64(content)[0], y_hat / max(1, np.abs(y_hat).max()))


def test_interpolate(server, clips):
    (short, _), (long, _) = clips["wav", 0.3], clips["wav", 3.0]
    (reply,) = server.ask({"task": "interpolate", "audio": long, "audio_to": short, "steps": 4})
    ends = [server.ask({"task": "reconstruct", "audio": each})[0]["audio"] for each in (long, short)]
    sounds = [from_base64(each)[0] for each in reply["sounds"]]

    # From one length to the other in equal steps.
    assert [len(each) / SAMPLE_RATE for each in sounds] == pytest.approx([3.0, 2.1, 1.2, 0.3], abs=1e-4)
    assert_same_sound(sounds[0], from_base64(ends[0])[0])
    assert_same_sound(sounds[-1], from_base64(ends[1])[0])


def test_a_spectrogram_instead_of_audio(server, sound, clips):
    content, y = clips["wav", 0.74]
    S_db = sound.extractor.extract(y)[0]
    by_spectrogram, by_audio, encoded, encoded_audio, way = server.ask(
        {"task": "reconstruct", "spectrogram": S_db.tolist()},
        {"task": "reconstruct", "audio": content},
        {"task": "encode", "spectrogram": S_db.tolist()},
        {"task": "encode", "audio": content},
        {"task": "interpolate", "spectrogram": S_db.tolist(), "audio_to": content, "steps": 2},
    )
    shown = np.array(by_spectrogram["spectrogram"])

    y_hat = from_base64(by_audio["audio"])[0]
    assert_same_sound(from_base64(by_spectrogram["audio"])[0], y_hat)
    for content in way["sounds"]:
        assert_same_sound(from_base64(content)[0], y_hat)
    assert by_spectrogram["mse"] == pytest.approx(by_audio["mse"], rel=1e-4)
    np.testing.assert_allclose(encoded["latent"], encoded_audio["latent"], rtol=1e-3, atol=1e-3)
    assert shown.shape == S_db.shape
    distance = np.sqrt(np.mean((shown - S_db) ** 2, axis=0)).mean()
    assert by_spectrogram["log_spectral_distance_db"] == pytest.approx(distance, rel=1e-4)


def sounds_of(reply):
    """Return all sounds of a reply, as it carries them."""
    return [*([reply["audio"]] if "audio" in reply else []), *reply.get("sounds", [])]


def test_several_in_one_request_are_answered_in_their_order(server, clips):
    inputs = [{"task": "reconstruct", "audio": clips[key][0]} for key in clips] + [{"task": "generate"}]
    inputs.insert(3, {"task": "encode", "audio": clips["ogg", 0.3][0]})
    together = server.ask(*inputs)
    apart = [server.ask(each)[0] for each in inputs]

    assert len(together) == len(inputs) == 14
    for one, other in zip(together, apart, strict=True):
        assert one.keys() == other.keys()
        for text, expected in zip(sounds_of(one), sounds_of(other), strict=True):
            assert_same_sound(from_base64(text)[0], from_base64(expected)[0])


def test_two_models_give_two_answers(servers, clips):
    content, _ = clips["wav", 0.74]
    first, second = (server.ask({"task": "reconstruct", "audio": content})[0] for server in servers)

    assert difference(*(from_base64(each["audio"])[0] for each in (first, second))) > 0.2
    assert first["mse"] != pytest.approx(second["mse"], rel=1e-3)


# --- the README's clients


@pytest.fixture
def examples(server, pytestconfig, clips, tmp_path):
    """Return the README's examples by language, for this server, beside a recording `in.flac`."""
    (tmp_path / "in.flac").write_bytes(base64.b64decode(clips["flac", 0.74][0]))
    serving = (
        (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8").split("\n## Serving\n")[1].split("\n## ")[0]
    )
    found = dict(re.findall(r"^```(\w+)\n(.*?)^```$", serving, re.MULTILINE | re.DOTALL))
    return {language: code.replace(":5001", f":{server.port}") for language, code in found.items()}


@pytest.mark.parametrize(("language", "program"), [("python", sys.executable), ("sh", "bash")])
def test_the_readmes_client(server, clips, examples, tmp_path, language, program):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([program, "-c", examples[language]], cwd=tmp_path, env={"PATH": path}, check=True, timeout=120)
    (reply,) = server.ask({"task": "reconstruct", "audio": clips["flac", 0.74][0]})

    assert_same_sound(from_base64(reply["audio"])[0], sf.read(tmp_path / "out.wav", dtype=np.float32)[0])


# --- errors

WAV = to_base64(sine(440.0), SAMPLE_RATE)
VECTOR = [0.0] * LATENT_DIM
WRONG = {
    "no base64": ({"task": "encode", "audio": "#" * 40}, "inputs[0].audio: is not base64: "),
    "no ASCII": ({"task": "encode", "audio": "ü"}, "inputs[0].audio: is not base64: "),
    "no audio": ({"task": "encode", "audio": "aGVsbG8="}, "inputs[0].audio: is not audio: "),
    "nothing": ({"task": "encode", "audio": ""}, "inputs[0].audio: is empty"),
    "no samples": (
        {"task": "encode", "audio": to_base64(np.zeros(0), 8000)},
        "inputs[0].audio: is empty: file holds no samples",
    ),
    "NaN in audio": (
        {"task": "encode", "audio": to_base64(np.full(9, np.nan), 8000, subtype="FLOAT")},
        "inputs[0].audio: is not finite: 9 samples are NaN or infinite",
    ),
    "cut off": ({"task": "encode", "audio": WAV[:2000]}, "inputs[0].audio: is truncated: header promises 32634 bytes"),
    "too long": (
        {"task": "encode", "audio": to_base64(np.zeros(8000 * 25), 8000, format="FLAC")},
        "inputs[0].audio: is 25.0 s of sound; the limit is 20 s (GENERATIVE_MUSIC_MAX_SECONDS)",
    ),
    "too many": ({"task": "generate", "count": 30}, "inputs[0].count: is 22.2 s of sound; the limit is 20 s"),
    "too many steps": (
        {"task": "interpolate", "audio": WAV, "audio_to": WAV, "steps": 900},
        "inputs[0].steps: is 666.0 s of sound, with which the request has 667.5 s; the limit is 20 s",
    ),
    "no task": ({"audio": WAV}, "inputs[0].task: is None, and must be one of reconstruct, encode, decode, "),
    "another task": ({"task": "sing"}, "inputs[0].task: is 'sing', and must be one of reconstruct, "),
    "a task of another type": ({"task": ["encode"]}, "inputs[0].task: is ['encode'], and must be one of "),
    "no field": ({"task": "encode"}, "inputs[0]: audio or spectrogram must be given, and only one of them"),
    "both fields": (
        {"task": "encode", "audio": WAV, "spectrogram": [[0.0]]},
        "inputs[0]: audio or spectrogram must be given, and only one of them",
    ),
    "a field too many": (
        {"task": "generate", "cuont": 3},
        "inputs[0].cuont: is no field of the task 'generate', which has task, count, seed",
    ),
    "a missing field": ({"task": "decode"}, "inputs[0].latent: field required"),
    "audio of another type": ({"task": "encode", "audio": 5}, "inputs[0].audio: should be a valid string, and is 5"),
    "count of another type": (
        {"task": "generate", "count": "3"},
        "inputs[0].count: should be a valid integer, and is '3'",
    ),
    "count out of range": (
        {"task": "generate", "count": 0},
        "inputs[0].count: should be greater than or equal to 1, and is 0",
    ),
    "seed out of range": ({"task": "generate", "seed": 2**63}, "inputs[0].seed: should be less than 92233720368547"),
    "a short vector": (
        {"task": "decode", "latent": [VECTOR, [1.0, 2.0]]},
        "inputs[0].latent[1]: has 2 values, and must have 4",
    ),
    "NaN": (
        {"task": "decode", "latent": [[0.0, float("nan"), 0.0, 0.0]]},
        "inputs[0].latent[0][1]: should be a finite number, and is nan",
    ),
    "infinity": (
        {"task": "decode", "latent": [VECTOR], "max_db": [float("inf")]},
        "inputs[0].max_db[0]: should be a finite number, and is inf",
    ),
    "beyond single precision": (
        {"task": "decode", "latent": [[1e300] * LATENT_DIM]},
        "inputs[0].latent[0]: holds a number that is none in single precision",
    ),
    "levels of no sound": (
        {"task": "decode", "latent": [VECTOR], "max_db": [1000.0]},
        "inputs[0].max_db: holds 1000 dB, and levels are within 300 dB of zero",
    ),
    "levels upside down": (
        {"task": "decode", "latent": [VECTOR], "max_db": [0.0], "min_db": [1.0]},
        "inputs[0].min_db: is above max_db",
    ),
    "levels of other segments": (
        {"task": "decode", "latent": [VECTOR], "max_db": [0.0, 1.0]},
        "inputs[0].max_db: has 2 values, and must have 1",
    ),
    "another duration": (
        {"task": "decode", "latent": [VECTOR], "duration_s": 3.0},
        "inputs[0].duration_s: is 3: 6 segments, and latent has 1",
    ),
    "other starts": (
        {"task": "decode", "latent": [VECTOR, VECTOR], "start_s": [0.0, 0.7]},
        "inputs[0].start_s[1]: is 0.7, and segments that follow each other make it 0.555",
    ),
    "channels mixed up": (
        {"task": "decode", "latent": [VECTOR] * 3, "channel": [0, 1, 0]},
        "inputs[0].channel: must name the channel of each of 3 segments: 0 for some, then 1 for as many",
    ),
    "a small spectrogram": (
        {"task": "encode", "spectrogram": [[0.0, 1.0]]},
        "inputs[0].spectrogram: has 1 rows, and must have 256",
    ),
    "no end of the way": (
        {"task": "interpolate", "audio": WAV},
        "inputs[0]: audio_to or spectrogram_to must be given, and only one of them",
    ),
}


def refused(server, body, content_type="application/json"):
    """Return the last line of the message of a refusal, and check that the server lives."""
    status, text = server.post(body, content_type)
    assert 400 <= status < 500, (status, text)
    content = json.loads(text)
    assert "stack_trace" not in content
    assert server.ping() == 200
    return content["message"].strip().splitlines()[-1]


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_answered(server, name):
    wanted, message = WRONG[name]

    assert refused(server, json.dumps({"inputs": [wanted]})).startswith(message)


def test_an_error_is_a_line_and_says_which_input(server):
    status, text = server.post(json.dumps({"inputs": [{"task": "generate"}, {"task": "encode", "audio": WAV[:2000]}]}))

    assert status == 400
    message = "inputs[1].audio: is truncated: header promises 32634 bytes of samples, the file holds 1456"
    assert json.loads(text) == {"error_code": "INVALID_PARAMETER_VALUE", "message": message}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"inputs": 5}, "Expected list, but got int"),
        ({"inputs": {"task": "generate"}}, "Expected list, but got dict"),
        ({"inputs": ["x"]}, "Expecting example to be a dictionary"),
        ({"instances": []}, "must be a dictionary with 'inputs' key"),
        ({"messages": []}, "Expected list, but got dict"),
        ([], "must be a JSON dictionary"),
        (7, "must be a JSON dictionary"),
    ],
)
def test_a_body_of_another_form_is_mlflows_to_refuse(server, body, reason):
    assert reason in refused(server, json.dumps(body))


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"inputs": [}'])
def test_a_body_that_is_no_json(server, body):
    status, text = server.post(body)

    assert status == 400
    assert "Ensure that input is a valid JSON" in json.loads(text)["message"]
    assert server.ping() == 200


@pytest.mark.parametrize("content_type", ["application/xml", "application/x-www-form-urlencoded", "text/html"])
def test_another_content_type(server, content_type):
    status, text = server.post(b"{}", content_type)

    assert status == 415
    assert "only supports the following content types" in text


def test_no_inputs(server):
    assert server.ask() == []


# --- anything at all

NAMES = sorted({name for model in TASKS.values() for name in model.model_fields})
LETTERS = st.characters(exclude_categories=[])  # lone surrogates too, which JSON can escape
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(LETTERS, max_size=4), each, max_size=4),
    max_leaves=8,
)
NUMBERS = st.floats(-5, 5) | st.floats() | st.integers(-(10**400), 10**400)
ROWS = st.lists(st.lists(NUMBERS, min_size=LATENT_DIM, max_size=LATENT_DIM), min_size=1, max_size=3)


@st.composite
def files(draw):
    """Base64 of a short file in some format, often damaged."""
    n_samples, rate = draw(st.integers(0, 300)), draw(st.sampled_from([1, 50, 8000, 22050, 655_350]))
    name, n_channels = draw(st.sampled_from(["WAV", "FLAC", "OGG", "AIFF", "AU"])), draw(st.integers(1, 3))
    y = 0.5 * np.sin(np.outer(np.arange(n_samples), np.arange(1, n_channels + 1)))
    content = bytearray(base64.b64decode(to_base64(y, 8000 if name == "OGG" else rate, format=name)))
    for place in draw(st.lists(st.integers(0, 1000), max_size=3)):
        if place < len(content):
            content[place] = draw(st.integers(0, 255))
    length = draw(st.just(len(content)) | st.integers(0, len(content)))
    return base64.b64encode(content[:length]).decode("ascii")


# What each field takes, or nearly; the others take numbers.
SUITABLE = {
    "task": st.sampled_from([*TASKS]),
    **dict.fromkeys(["audio", "audio_to"], files()),
    **dict.fromkeys(["latent", "spectrogram", "spectrogram_to"], ROWS),
    **dict.fromkeys(["min_db", "max_db", "start_s"], st.lists(NUMBERS, min_size=1, max_size=3)),
    "channel": st.lists(st.integers(-1, 2), max_size=3),
}


@st.composite
def inputs(draw):
    """One input: the fields of its task, some left out, some with what they do not take, some that it has not."""
    task = draw(SUITABLE["task"])
    wanted = {name for name in TASKS[task].model_fields if draw(st.booleans())} | {"task"}
    wanted |= set(draw(st.lists(st.sampled_from(NAMES) | st.text(LETTERS, max_size=4), max_size=1)))
    made = {name: draw(SUITABLE.get(name, st.integers(-1, 8) | NUMBERS)) for name in sorted(wanted)}
    made["task"] = task
    if draw(st.integers(0, 3)) == 0:
        made[draw(st.sampled_from(sorted(made)))] = draw(JSON)
    return made


BODIES = st.one_of(
    st.fixed_dictionaries({"inputs": st.lists(inputs(), max_size=3)}),
    st.fixed_dictionaries({"inputs": st.lists(inputs() | JSON, max_size=3)}, optional={"params": JSON}),
    st.dictionaries(st.sampled_from(["inputs", "instances", "dataframe_split", "messages", "params", "x"]), JSON),
    JSON,
)


def fuzz(server, n_examples):
    """Send generated bodies: each is answered, or refused in words, and no number of a reply is none."""
    counts = Counter()

    @settings(max_examples=n_examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(BODIES)
    def check(body):
        status, text = server.post(json.dumps(body))
        assert status == 200 or 400 <= status < 500, (status, text)
        content = json.loads(text, parse_constant=pytest.fail)
        assert "stack_trace" not in content
        assert (status == 200) == ("predictions" in content)
        counts[status] += 1

    check()
    assert server.ping() == 200
    # Not all of it was turned away at the door.
    assert counts[200] > n_examples / 50


def test_generated_bodies(server):
    fuzz(server, 300)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_thousands_of_generated_bodies(server):
    fuzz(server, 5000)
