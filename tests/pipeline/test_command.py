import signal
import subprocess
import sys

import pytest

# A stage that runs until it has lost its parent for a second, and one that starts it.
STAGE = """
import argparse, os, time
from pipeline import PARENT, command

def main(arguments):
    print("started", flush=True)
    while os.getppid() == PARENT:
        time.sleep(0.05)
    time.sleep(1)
    print("still here", flush=True)

command.run(main, argparse.Namespace(verbose=False))
"""
STARTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"DVC_STAGE": "preprocess"}, "error: DVC, which started this stage, is gone\n"), ({}, "still here\n")],
    ids=["started by DVC", "started by hand"],
)
def test_a_stage_ends_with_the_dvc_that_started_it(pytestconfig, monkeypatch, environment, expected):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, STAGE],
        cwd=pytestconfig.rootpath,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert starter.stdout.readline() == "started\n"
    starter.send_signal(signal.SIGKILL)
    # Ends when the last process that can print has ended.
    output, _ = starter.communicate(timeout=30)

    assert output == expected
