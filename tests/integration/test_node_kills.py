"""`kill -9` of a worker, a node and the driver while a cluster preprocesses, at seeded moments: no byte is another."""

import contextlib
import json
import random
import shutil

import numpy as np
import psutil
import pytest

from pipeline.params import PipelineParams, read_params
from pipeline.stages import preprocess
from pipeline.versions import processor
from tests.clusters import workers_of
from tests.projects import clone, hashes, snapshot
from tests.sounds import write

pytestmark = pytest.mark.timeout(600)

STAGE = ("python", "-m", "pipeline.stages.preprocess")
# Long recordings in short segments, so that there are many units of work.
CHANGES = {
    "corpus.dir": "sounds",
    "split.group": None,
    "preprocess.segment": "all",
    "preprocess.overlap": 0.5,
    "preprocess.duration_s": 0.032,
    "resources.preprocess_workers": "all",
}
N_RECORDINGS, N_UNITS = 6, 30
# Samples of 1024 segments.
N_SAMPLES = 1024 * 128


@pytest.fixture(scope="module")
def project(cluster, tmp_path_factory):
    """That person's project, of a few long recordings."""
    original = snapshot(tmp_path_factory.mktemp("original") / "project", cluster.home)
    made = clone(original, tmp_path_factory.mktemp("kills") / "project", CHANGES)
    rng = np.random.default_rng(1)
    for index in range(N_RECORDINGS):
        write(made.path(f"sounds/{index}.wav"), rng.integers(-8000, 8000, 5 * N_SAMPLES).astype(np.int16))
    yield made
    made.close()
    original.close()


@pytest.fixture(scope="module")
def quiet(project, tmp_path_factory):
    """What comes out where nothing dies: without Ray, in this process."""
    here = project.copy(tmp_path_factory.mktemp("quiet") / "project")
    with contextlib.chdir(here.folder):
        params = read_params(PipelineParams)
        preprocess.build(params).preprocess(params.corpus.dir)
    found = hashes(here.path("data"))
    here.close()
    assert len(found) >= N_UNITS
    return found


class Run:
    """A preprocessing from nothing, and what dies in it."""

    def __init__(self, project, cluster, rng):
        shutil.rmtree(project.path("data/spectrograms"), ignore_errors=True)
        self.project = project
        self.cluster = cluster
        self.rng = rng
        self.started = project.start(*STAGE, RAY_ADDRESS=cluster.address)

    @property
    def n_shards(self):
        return len(list(self.project.path("data/spectrograms").glob("*.npy")))

    def wait(self, moment, workers):
        """Wait until some shards are made, and one of these is at work; return those that are."""
        wanted = self.rng.randint(*moment)
        return self.started.wait_until(lambda: self.n_shards >= wanted and workers())

    def kill_a_worker(self, moment):
        workers = self.wait(moment, self.cluster.workers)
        while True:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.rng.choice(workers).kill()
                return
            workers = self.cluster.workers()

    def kill_a_node(self, raylet, moment):
        self.wait(moment, lambda: workers_of(raylet.pid))
        raylet.kill()

    def kill_the_driver(self, moment):
        self.wait(moment, self.cluster.workers)
        assert self.started.process.poll() is None
        assert self.started.kill() >= 1

    def end(self):
        """Wait for its end, and return the hashes of what it made."""
        assert self.n_shards < N_UNITS, "everything was done before the last kill"
        output = self.started.wait()
        assert self.started.process.returncode == 0, output
        assert f"preprocess: {N_RECORDINGS} clips, " in output
        return hashes(self.project.path("data"))


def test_a_driver_a_worker_and_a_node_that_die(project, cluster, quiet):
    rng = random.Random(20240229)
    with cluster.mortal_node() as raylet:
        Run(project, cluster, rng).kill_the_driver((1, 6))
        run = Run(project, cluster, rng)
        run.kill_a_worker((1, 6))
        run.kill_a_node(raylet, (8, 14))
        assert run.end() == quiet


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["worker", "node", "driver"])
def test_kills_at_any_moment(project, cluster, quiet, kind, seed):
    moment = (1, N_UNITS - 8)
    rng = random.Random(f"{kind} {seed}")
    with cluster.mortal_node() as raylet:
        run = Run(project, cluster, rng)
        if kind == "worker":
            run.kill_a_worker(moment)
        elif kind == "node":
            run.kill_a_node(raylet, moment)
        else:
            run.kill_the_driver(moment)
            run = Run(project, cluster, rng)
        assert run.end() == quiet


@pytest.mark.soak
def test_a_node_with_another_kind_of_processor_is_told_of(project, cluster):
    feature = processor()["simd"][-1]
    with cluster.node(environment={"NPY_DISABLE_CPU_FEATURES": feature}):
        output = project.run(*STAGE, RAY_ADDRESS=cluster.address)

    (line,) = (line for line in output.splitlines() if line.startswith("warning: "))
    assert ": not the kind of processor that " in line
    assert json.loads(project.read("data/spectrograms/format.json"))["versions"]["simd"] == processor()["simd"]
