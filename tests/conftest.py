"""Fixtures that every test may use."""

import os
from pathlib import Path

import numpy as np
import pytest


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
