"""What there is to see of a store, from the command line and as pictures."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import soundfile as sf

from pipeline.clips import Rejection
from pipeline.errors import CorpusError
from pipeline.pictures import draw_corpus, draw_rows
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.stages import inspect
from pipeline.stages.preprocess import write_report
from tests.sounds import sine, write


@pytest.fixture
def stored(tmp_path, make_pipeline, open_store):
    """A store of all segments of a few recordings, one of them long."""
    write(tmp_path / "corpus" / "a" / "long.wav", sine(1000.0, 240_000, 48_000), 48_000)
    write(tmp_path / "corpus" / "日本.wav", sine(3000.0, 5000, 8000), 8000)
    write(tmp_path / "corpus" / "silent.wav", np.zeros(8000), 8000)
    make_pipeline(segment="all", overlap=0.25).preprocess(tmp_path / "corpus")
    return open_store()


@pytest.fixture
def command(pytestconfig, tmp_path, stored):
    """Return a function that runs the command on that store."""

    def run(*arguments):
        places = ["--folder", stored.folder, "--table", stored.table_path]
        return subprocess.run(
            [sys.executable, "-m", "pipeline.stages.inspect", *map(str, [*arguments, *places])],
            cwd=pytestconfig.rootpath,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def test_a_store_is_described_and_verified(stored, command):
    finished = command("--verify")
    lines = finished.stdout.splitlines()

    assert finished.returncode == 0, finished.stderr
    assert "as it was written" in lines[0]
    assert lines[1] == f"inspect: {len(stored.table)} rows of 256 bins and 64 frames, from 3 clips of 0.00 hours"
    assert "inspect: splits: 1 train, 1 validation, 1 test" in lines
    assert "inspect: hop_length: 256" in lines


def test_a_damaged_byte_is_found(stored, command):
    path = stored.folder / stored.format.shards[0].name
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    finished = command("--verify")

    assert finished.returncode == 1
    assert finished.stderr.startswith(f"error: {path}: sha256 is ")


def test_a_clip_as_picture_and_as_sound(tmp_path, stored, command):
    finished = command("a/long.wav", "--picture", tmp_path / "long.png", "--sound", tmp_path / "long.wav")

    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("clip_id a/long.wav") == 9
    assert matplotlib.image.imread(tmp_path / "long.png").ndim == 3
    y, rate = sf.read(tmp_path / "long.wav")
    # 5 s, to the sample, and still the sine that it was; where segments fade, of other phases, a bin beside it.
    assert (len(y), rate) == (110_250, 22_050)
    S_db = LogSpectrogramExtractor().extract(y.astype(np.float32))
    off = np.abs(S_db[:, 5:-5].argmax(axis=0) - round(1000 * 512 / 22_050))
    assert off.max() <= 1
    assert off.mean() < 0.1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--picture", "a.png"], "--picture and --sound are of one clip, and none is named"),
        (["silent.wav", "--picture", "/nowhere/a.png"], "/nowhere/a.png: cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_drawn(command, arguments, problem):
    finished = command(*arguments)

    assert finished.returncode == 1
    assert finished.stderr == f"error: {problem}\n"


def test_silence_has_one_colour(tmp_path, stored):
    draw_rows(tmp_path / "silent.png", stored, inspect.find(stored, "silent.wav", 0))
    picture = matplotlib.image.imread(tmp_path / "silent.png")
    black = (picture[..., :3] < 0.02).all(axis=2)

    # Two spectrograms of it fill most of the picture.
    assert black.mean() > 0.4


def test_a_clip_that_is_not_there(stored):
    with pytest.raises(CorpusError, match=r"holds no clip 'a/lonk\.wav'; did you mean 'a/long\.wav'\?$"):
        inspect.find(stored, "a/lonk.wav", 0)
    with pytest.raises(CorpusError, match=r"did you mean 'a/long\.wav'\?$"):
        inspect.find(stored, "data/sounds/a/long.wav", 0)
    with pytest.raises(CorpusError, match=r"holds no channel 1 of clip 'silent\.wav'$"):
        inspect.find(stored, "silent.wav", 1)


def test_a_clip_that_was_rejected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inspect.check_not_rejected("a, b.wav")
    write_report({}, [Rejection("a, b.wav", "empty", "file holds no samples")])

    inspect.check_not_rejected("b.wav")
    with pytest.raises(CorpusError, match=r"^'a, b\.wav' was rejected: empty: file holds no samples \(reports/preproc"):
        inspect.check_not_rejected("a, b.wav")


def test_a_silent_clip_comes_back_silent(tmp_path, stored):
    rows = inspect.find(stored, "silent.wav", 0)
    length_s = inspect.write_sound(tmp_path / "a.wav", stored, rows)

    assert length_s == 1.0
    assert np.abs(sf.read(tmp_path / "a.wav")[0]).max() < 1e-4


def test_pictures_of_any_store(tmp_path, stored):
    draw_corpus(tmp_path / "corpus.png", stored)
    draw_corpus(tmp_path / "again.png", stored)
    draw_corpus(tmp_path / "one.png", stored, n_examples=1)
    draw_rows(tmp_path / "row.png", stored, np.array([0]))

    assert (tmp_path / "corpus.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    for name in ("corpus", "one", "row"):
        picture = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert picture.std() > 0.05
