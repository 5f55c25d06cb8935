"""Ray ends workers when a node is short of memory: work is done again with less beside it, and one line says so."""

import re
import sys

import psutil
import pytest

from tests.projects import ROOT, Project

pytestmark = pytest.mark.timeout(300)

# Maps units that take so many bytes, little by little, and then some seconds.
PROGRAM = """
import argparse, sys, time
import numpy as np
from pipeline import command, engine

def work(unit):
    n_bytes, seconds = unit
    taken = []
    for _ in range(8):
        taken.append(np.ones(n_bytes // 8, np.uint8))
        time.sleep(0.2)
    time.sleep(seconds)
    return sum(map(len, taken)) == n_bytes // 8 * 8

def main(_):
    with engine.connect():
        print("done:", *sorted(engine.map_units(work, {units}, 2)))

command.run(main, argparse.Namespace(verbose=False))
"""
REASON = r"\d+ worker\(s\) were killed due to the node running low on memory\. [^\n]{0,200}\n"


@pytest.fixture
def run(tmp_path):
    """Return a function that maps units on a Ray that ends workers when a share of the memory is taken."""
    project = Project(tmp_path, tmp_path)

    def run(units, threshold, refresh_ms, **options):
        monitor = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": str(refresh_ms)}
        program = PROGRAM.format(units=units)
        return project.run(sys.executable, "-c", program, PYTHONPATH=str(ROOT), **monitor, **options)

    yield run
    project.close()


def test_a_node_that_is_always_short_of_memory(run):
    output = run([(0, 600), (0, 600)], 0.0, 250, fails=True)

    told = f"memory is short, and less is done at a time from now on: {REASON}"
    assert re.fullmatch(f"({told})?error: a unit of work lost its worker process 3 times: {REASON}", output), output


@pytest.mark.soak
def test_units_that_fit_into_the_memory_only_one_after_the_other(run):
    memory = psutil.virtual_memory()
    n_bytes = memory.available // 3
    # Room for one and a half: what else this machine takes or gives back meanwhile is less than the other half.
    output = run([(n_bytes, 3)] * 4, 1 - (memory.available - 1.5 * n_bytes) / memory.total, 100)

    told = f"memory is short, and less is done at a time from now on: {REASON}"
    assert re.fullmatch(f"{told}done: True True True True\n", output), output
