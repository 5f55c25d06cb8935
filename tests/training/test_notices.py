"""TensorFlow's notices on import, in child interpreters."""

import os
import subprocess
import sys

import pytest

from training.notices import without_notices


def stderr_of(code):
    """Return what a child interpreter says whose TensorFlow uses oneDNN, whatever the processor."""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr


def test_tensorflow_is_imported_without_a_word():
    assert stderr_of("import training, keras") == ""
    assert "oneDNN custom operations are on" in stderr_of("import tensorflow")


def test_everything_else_is_said(capfd):
    notices = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795684671.899105   12764 port.cc:153] oneDNN custom operations are on. You may see",
    ]
    others = ["W0000 00:00:1795684671.899105   12764 port.cc:153] oneDNN", "a warning"]

    def load():
        os.write(2, "\n".join([notices[0], others[0], notices[1], ""]).encode())
        print(others[1], file=sys.__stderr__)
        raise ImportError("no such library")

    with pytest.raises(ImportError, match="no such library"), without_notices():
        load()

    assert capfd.readouterr().err.splitlines() == others
