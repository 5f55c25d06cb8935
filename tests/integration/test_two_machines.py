"""A cluster of two machines, as far as one can be two: the second node in namespaces of its own, as another user.

It has another address, another name, its own environment under another path, and neither this project nor its `.venv`.
What both see is a bucket and the folder of the sounds.
"""

import contextlib
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.params import PipelineParams, read_params
from pipeline.stages import preprocess
from tests import s3
from tests.clusters import Cluster, workers_of, write_token
from tests.integration.outcomes import Outcome
from tests.namespaces import FIRST, SECOND, TwoMachines, why_not
from tests.projects import ROOT, Project, hashes
from tests.sounds import write, write_corpus

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

STAGE = ("python", "-m", "pipeline.stages.preprocess")
# Long recordings in short segments, so that there are units of work for both nodes.
LONG = {"preprocess.segment": "all", "preprocess.overlap": 0.5, "preprocess.duration_s": 0.032, "split.group": None}
N_LONG, N_SAMPLES = 6, 5 * 1024 * 128


class Machines:
    """The second node, and what a project on the first machine is told."""

    def __init__(self, shared, node, environment, location):
        self.shared = shared
        self.node = node
        self.environment = environment
        self.location = location


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Two machines with a node of one CPU each, a bucket, a tracking server and a shared folder; this is the first."""
    if reason := why_not():
        pytest.skip(f"no namespaces can be made here, which two machines on one need: {reason}")
    home = tmp_path_factory.mktemp("home")
    write_token(home)
    with contextlib.ExitStack() as stack:
        two = stack.enter_context(TwoMachines())
        stack.enter_context(two.first())
        shared = Path(tempfile.mkdtemp(prefix="gm", dir="/var/tmp"))
        stack.callback(shutil.rmtree, shared)
        shared.chmod(0o755)
        server = stack.enter_context(s3.running(FIRST))
        cluster = Cluster(home, cpus=1, has_jobs=False, host=FIRST, environment=server.environment)
        stack.callback(cluster.close)
        hidden = [Path(sys.prefix), ROOT, Path.home()]
        python, environment = two.second(shared, hidden, home / ".ray" / "auth_token")
        node = stack.enter_context(cluster.node_elsewhere(python, {**environment, **server.environment}, SECOND))
        told = {
            **server.environment,
            "RAY_ADDRESS": cluster.address,
            "RAY_AUTH_TOKEN_PATH": str(home / ".ray" / "auth_token"),
            "MLFLOW_TRACKING_URI": stack.enter_context(tracking_server(tmp_path_factory.mktemp("mlflow"), home)),
            "GENERATIVE_MUSIC_CACHE": str(tmp_path_factory.mktemp("cache")),
        }
        yield Machines(shared, node, told, server.location)


@contextlib.contextmanager
def tracking_server(folder, home):
    """Run a tracking server on the first machine for a `with` block, and yield its address."""
    project = Project(folder, home)
    (port,) = s3.free_ports(1)
    options = ("--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    started = project.start(
        *("mlflow", "server", "--backend-store-uri", "sqlite:///runs.db", *options),
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    address = f"http://127.0.0.1:{port}"

    def answers():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=10) as reply:
            return reply.status == 200
        return False

    started.wait_until(answers, timeout=240, interval=0.5)
    yield address
    started.kill()
    project.close()


def test_the_second_node_is_another_machine(machines):
    (raylet,) = (each for each in psutil.Process(machines.node).children() if each.name() == "raylet")
    root = Path(f"/proc/{raylet.pid}/root")

    assert raylet.username() == "nobody"
    assert raylet.environ()["HOME"] == "/mnt/home"
    assert Path(f"/proc/{raylet.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    for folder in (ROOT, Path(sys.prefix)):
        assert not list((root / folder.relative_to("/")).glob("*"))
    assert not [each.name for each in (root / "tmp").iterdir() if "pytest" in each.name]


def test_both_nodes_preprocess_to_the_bytes_of_one_process(machines, projects, monkeypatch):
    sounds = machines.shared / "long"
    rng = np.random.default_rng(1)
    for index in range(N_LONG):
        write(sounds / f"{index}.wav", rng.integers(-8000, 8000, N_SAMPLES).astype(np.int16))
    changes = {**LONG, "corpus.dir": str(sounds), "resources.preprocess_workers": "all"}
    here = projects.new("here", changes)
    monkeypatch.chdir(here.folder)
    params = read_params(PipelineParams)
    preprocess.build(params).preprocess(params.corpus.dir)
    there = projects.new("there", {**changes, "resources.storage": machines.location("long")})
    started = there.start(*STAGE, **machines.environment)
    at_work = started.wait_until(lambda: workers_of(machines.node))
    output = started.wait()

    assert started.process.returncode == 0, output
    assert {each.username() for each in at_work if each.is_running()} <= {"nobody"}
    assert_same_data(there, hashes(here.path("data")))


@pytest.mark.parametrize("unseen", ["corpus.dir", "resources.storage"])
def test_what_only_the_first_machine_sees(machines, projects, tmp_path, unseen):
    sounds = tmp_path / "sounds" if unseen == "corpus.dir" else machines.shared / "few"
    write_corpus(sounds, np.random.default_rng(1), 3)
    storage = None if unseen == "resources.storage" else machines.location("unseen")
    project = projects.new("unseen", {"corpus.dir": str(sounds), "resources.storage": storage, "split.group": None})
    output = project.run(*STAGE, fails=True, **machines.environment)

    path = sounds if unseen == "corpus.dir" else project.path("data")
    assert re.match(rf"error: .*{re.escape(str(path))}.*", output.splitlines()[-1])
    assert f"node second ({SECOND})" in output.splitlines()[-1]
    assert not list(project.folder.rglob("*.npy"))


def assert_same_data(project, expected):
    """Compare what is in a project, whose shards are in a bucket, with what another one has."""
    found = hashes(project.path("data"))
    shards = {name for name in expected if name.endswith(".npy")}
    in_sample_corpus = {name for name in expected if name.startswith("sample_corpus")}
    assert found == {name: digest for name, digest in expected.items() if name not in shards | in_sample_corpus}
    # `format.json`, which is the same, names the digest of every shard; this compares the bytes with them.
    project.run("python", "-m", "pipeline.stages.inspect", "--verify", **s3_environment(project))


def s3_environment(project):
    return {
        **s3.CREDENTIALS,
        "AWS_EC2_METADATA_DISABLED": "true",
        "GENERATIVE_MUSIC_CACHE": str(project.home / "cache"),
    }


def test_the_whole_pipeline_is_that_of_one_machine(machines, projects, finished):
    shutil.copytree(finished.path("data/sample_corpus"), machines.shared / "notes")
    changes = {"corpus.dir": str(machines.shared / "notes"), "resources.storage": machines.location("notes")}
    project = projects.new("two-machines", changes)
    without = {name: value for name, value in machines.environment.items() if name != "MLFLOW_TRACKING_URI"}
    refused = project.run("dvc", "repro", fails=True, **without)
    assert "is a file whose locks hold on one machine only, and 2 take part (second, " in refused
    started = project.start("dvc", "repro", **machines.environment)
    trained_there = set()
    while started.process.poll() is None:
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(machines.node).children(recursive=True)
            trained_there |= {each.pid for each in children if each.name().startswith("ray::RayTrain")}
        time.sleep(0.2)
    output = started.wait()

    assert started.process.returncode == 0, output
    assert trained_there
    assert_same_data(project, hashes(finished.path("data")))
    # Two workers in both: two numbers have one sum, whoever adds them.
    found, expected = Outcome.of(project), Outcome.of(finished)
    Outcome({}, found.weights, found.curves).assert_same(Outcome({}, expected.weights, expected.curves))
