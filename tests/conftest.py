"""Fixtures that every test may use."""

import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from xdist.scheduler import LoadFileScheduling

from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.preprocessing import PreprocessingPipeline
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver, Store
from tests import s3

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

_LOOK_AT_ONE_RUN = {
    f"tests/integration/test_{name}.py"
    for name in ("bad_input", "kills", "mlproject", "remote", "repro", "restore", "workers")
}


class _Scheduling(LoadFileScheduling):
    """Deals tests out by file, but those that look at the project `finished` to one process, which runs it once."""

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return "finished" if file in _LOOK_AT_ONE_RUN else file


def pytest_xdist_make_scheduler(config, log):
    """Deal tests out to processes as `_Scheduling` does."""
    return _Scheduling(config, log)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run and for every test."""
    return np.random.default_rng(20240229)


@pytest.fixture(scope="session")
def fsdd() -> Path:
    """The folder of the Free Spoken Digit Dataset's recordings."""
    folder = os.environ.get("FSDD_DIR", "")
    if not folder:
        pytest.skip("FSDD_DIR is not set: it names the folder of the Free Spoken Digit Dataset's 3,000 WAV files")
    assert list(Path(folder).glob("*.wav")), f"FSDD_DIR={folder} holds no *.wav"
    return Path(folder)


@pytest.fixture
def make_pipeline(tmp_path):
    """Return a function that builds the five parts, writing into a folder of `tmp_path`."""

    def make(folder="out", loader=None, extractor=None, normaliser=None, dtype="float32", **options):
        out = tmp_path / folder
        return PreprocessingPipeline(
            loader or Loader(),
            Padder(),
            extractor or LogSpectrogramExtractor(),
            normaliser or MinMaxNormaliser(),
            Saver(out / "spectrograms", out / "min_max_values.parquet", dtype=dtype),
            **options,
        )

    return make


@pytest.fixture
def open_store(tmp_path):
    """Return a function that reads what `make_pipeline`'s pipelines wrote."""
    return lambda folder="out": Store(tmp_path / folder / "spectrograms", tmp_path / folder / "min_max_values.parquet")


@pytest.fixture(scope="module")
def s3_server():
    """An S3 server on this machine."""
    with s3.running() as server:
        yield server


@pytest.fixture
def s3_let_in(s3_server, tmp_path, monkeypatch):
    """Let this process use that server, with a cache of its own; the folder of the cache."""
    s3.let_in(monkeypatch, s3_server, tmp_path / "cache")
    return tmp_path / "cache"
