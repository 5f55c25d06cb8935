"""The command line, as a person runs it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from tests.sounds import cut, sine, write
from tests.training.conftest import randomised
from tests.training.processes import python_m, said
from tests.training.test_sound import DESCRIPTION
from training.autoencoder import DESCRIPTION_FILE as NETWORK_FILE
from training.autoencoder import Autoencoder
from training.description import DESCRIPTION_FILE
from training.paths import MODEL
from training.reconstruct import name_targets
from training.sound import SoundAutoencoder

RATE = DESCRIPTION.preprocessing["sample_rate"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Return a folder with a model, as the train stage leaves it."""
    folder = tmp_path_factory.mktemp("reconstruct")
    randomised(Autoencoder((256, 64, 1), [4], [16], [16], 4)).save(folder / MODEL)
    (folder / MODEL / DESCRIPTION_FILE).write_text(DESCRIPTION.to_json())
    return folder


@pytest.fixture
def reconstruct(project):
    """Return a function that runs the command in the project."""
    return lambda *arguments: python_m(project, "training.reconstruct", *map(str, arguments))


def error_of(finished):
    """Return the line with which a run ended, and check that there is no more to read than that."""
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    (line,) = said(finished)
    return line


# --- good paths


def test_a_sound_of_the_same_duration_at_the_models_rate(project, tmp_path, pytestconfig, rng):
    """By an interpreter of its own, once; the tests below are forked from one, which is the same in less time."""
    source = write(tmp_path / "my sounds" / "ünd & #1.flac", rng.uniform(-0.5, 0.5, (12_000, 2)), 8000)
    target = tmp_path / "out.wav"
    finished = subprocess.run(
        [sys.executable, "-m", "training.reconstruct", str(source), str(target)],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    y, rate = sf.read(target)

    assert finished.stdout == f"reconstruct: {target}, 1.50 s at {RATE} Hz\n"
    assert (rate, y.shape) == (RATE, (round(1.5 * RATE),))
    assert sf.info(target).subtype == "PCM_16"
    sound = SoundAutoencoder.load(project / MODEL)
    expected = sound.reconstruct(sound.whole_loader().load(source).y)[0]
    # What is written holds at most full scale, in 16 bits.
    np.testing.assert_allclose(y, np.clip(expected, -1, 1), atol=1e-3)


@pytest.mark.parametrize("n_samples", [1, 50_000])
def test_any_length(reconstruct, tmp_path, n_samples):
    source = write(tmp_path / "in.wav", sine(440.0, n_samples), RATE)
    finished = reconstruct(source, tmp_path / "out.wav")

    assert finished.returncode == 0, finished.stderr
    assert sf.info(tmp_path / "out.wav").frames == n_samples


def test_a_model_of_another_folder_that_keeps_channels(reconstruct, project, tmp_path, rng):
    model = tmp_path / "elsewhere"
    Autoencoder.load(project / MODEL).save(model)
    content = json.loads((project / MODEL / DESCRIPTION_FILE).read_text())
    content["preprocessing"]["mono"] = False
    (model / DESCRIPTION_FILE).write_text(json.dumps(content))
    source = write(tmp_path / "in.wav", rng.uniform(-0.5, 0.5, (9000, 2)), RATE)
    finished = reconstruct(source, tmp_path / "out.wav", "--model", model)

    assert finished.returncode == 0, finished.stderr
    assert sf.read(tmp_path / "out.wav")[0].shape == (9000, 2)


# --- folders


def test_a_folder(reconstruct, project, tmp_path, rng):
    """One model for all; each file is what it is alone, and one that is none costs nothing but its line."""
    source, target = tmp_path / "in", tmp_path / "out"
    y = {name: rng.uniform(-0.5, 0.5, n) for name, n in (("kick.wav", 9000), ("deep/er/ünd.flac", 30_000))}
    for name, signal in y.items():
        write(source / name, signal, RATE)
    write(source / "kick.ogg", y["kick.wav"], RATE)
    (source / "bad.wav").write_text("not a sound")
    (source / "notes.txt").write_text("not counted")
    (source / "nowhere.wav").symlink_to("nowhere")
    finished = reconstruct(source, target)

    assert finished.returncode == 1
    errors = said(finished)
    assert len(errors) == 3
    assert errors[0].startswith(f"error: unreadable: {source / 'nowhere.wav'}: No such file")
    assert errors[1].startswith(f"error: not audio: {source / 'bad.wav'}: ")
    assert errors[2] == "error: 2 of 5 recordings are not reconstructed"
    made = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert made == {"kick.wav", "kick.ogg.wav", "deep/er/ünd.wav"}
    assert len(finished.stdout.splitlines()) == 3
    sound = SoundAutoencoder.load(project / MODEL)
    for name in y:
        expected = np.clip(sound.reconstruct(sound.whole_loader().load(source / name).y)[0], -1, 1)
        found = sf.read((target / name).with_suffix(".wav"))[0]
        assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


def test_a_folder_of_good_recordings(reconstruct, tmp_path):
    write(tmp_path / "in" / "a.wav", sine(440.0), RATE)

    assert reconstruct(tmp_path / "in", tmp_path / "out").returncode == 0


@pytest.mark.parametrize("target", [".", "out", ".."])
def test_a_folder_into_itself(reconstruct, tmp_path, target):
    source = tmp_path / "in"
    content = write(source / "a.wav", sine(440.0), RATE).read_bytes()

    assert error_of(reconstruct(source, source / target)).startswith(
        f"error: {source / target}: must be a folder apart"
    )
    assert (source / "a.wav").read_bytes() == content


def test_a_folder_without_recordings(reconstruct, tmp_path):
    (tmp_path / "in").mkdir()

    assert error_of(reconstruct(tmp_path / "in", tmp_path / "out")).endswith("holds no audio file")


def test_names():
    assert name_targets(["a/kick.flac", "b/kick.flac"]) == ["a/kick.wav", "b/kick.wav"]
    assert name_targets(["KICK.mp3", "kick.flac", "kick.WAV"]) == ["KICK.mp3.wav", "kick.flac.wav", "kick.WAV"]


@given(
    st.sets(st.builds("".join, st.lists(st.sampled_from(["a", "A", ".wav", ".flac", ".ogg"]), min_size=1)), max_size=6)
)
def test_no_two_recordings_share_a_name(stems):
    clip_ids = sorted(f"{stem}{suffix}" for stem in stems for suffix in (".wav", ".mp3") if stem.strip("."))
    names = name_targets(clip_ids)

    assert len(set(names)) == len(clip_ids)
    for clip_id, name in zip(clip_ids, names, strict=True):
        assert name.lower().endswith(".wav")
        assert clip_id == name or not clip_id.endswith(".wav")


# --- bad input


@pytest.fixture
def bad(tmp_path, rng):
    """Return files that are no recordings, by name."""
    made = {name: tmp_path / f"{name}.wav" for name in ("text", "no samples", "nan", "cut", "missing")}
    made["text"].write_text("not a sound")
    write(made["no samples"], np.zeros(0))
    write(made["nan"], np.full(9, np.nan), subtype="FLOAT")
    cut(write(made["cut"], rng.uniform(-0.5, 0.5, 5000)))
    return made


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "not audio: {}: "),
        ("no samples", "empty: {}: file holds no samples"),
        ("nan", "not finite: {}: 9 samples are NaN or infinite"),
        ("cut", "truncated: {}: header promises 10000 bytes of samples, the file holds "),
        ("missing", "unreadable: {}: No such file or directory"),
    ],
)
def test_what_is_no_recording(reconstruct, tmp_path, bad, name, message):
    line = error_of(reconstruct(bad[name], tmp_path / "out.wav"))

    assert line.startswith("error: " + message.format(bad[name]))
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize("target", ["", "nowhere/out.wav"])
def test_a_target_that_cannot_be_written(reconstruct, tmp_path, target):
    source = write(tmp_path / "in.wav", sine(440.0), RATE)

    assert error_of(reconstruct(source, tmp_path / target)).startswith(f"error: unwritable: {tmp_path / target}: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (NETWORK_FILE, None, f"{NETWORK_FILE}: missing, expected a folder that Autoencoder.save wrote"),
        (DESCRIPTION_FILE, None, f"{DESCRIPTION_FILE}: missing; the train stage has not finished here"),
        (DESCRIPTION_FILE, '{"format_version": 7}', f"{DESCRIPTION_FILE}: format_version is 7, expected 1"),
    ],
)
def test_a_model_that_is_none(reconstruct, project, tmp_path, name, content, message):
    model = tmp_path / "model"
    Autoencoder.load(project / MODEL).save(model)
    (model / DESCRIPTION_FILE).write_text(DESCRIPTION.to_json())
    (model / name).unlink()
    if content:
        (model / name).write_text(content)
    source = write(tmp_path / "in.wav", sine(440.0), RATE)

    assert error_of(reconstruct(source, tmp_path / "out.wav", "--model", model)) == f"error: {model}/{message}"


def test_no_model_was_trained(tmp_path):
    source = write(tmp_path / "in.wav", sine(440.0), RATE)
    finished = python_m(tmp_path, "training.reconstruct", str(source), str(tmp_path / "out.wav"))

    assert error_of(finished).startswith(f"error: {MODEL}/{NETWORK_FILE}: missing")


def test_the_traceback_is_for_verbose(reconstruct, bad, tmp_path):
    finished = reconstruct(bad["text"], tmp_path / "out.wav", "--verbose")

    assert finished.returncode == 1
    assert "Traceback" in finished.stderr
