"""Spectrograms and checkpoints in a bucket of a real server, which is killed meanwhile: the artifacts are the same.

Whole pipelines take minutes: those of the parts, in `tests/pipeline/test_stored_elsewhere.py` and
`tests/training/test_loop_storage.py`, run every time.
"""

import hashlib
import json
import re

import pytest

from tests import s3
from tests.integration.outcomes import EPOCHS, Outcome, ran
from tests.projects import TINY, hashes

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
_EPOCH = re.compile(r"/epoch-(\d+)\.json$")


def epochs_in(server, prefix):
    """Return how many epochs the newest whole checkpoint below a prefix holds."""
    return max((int(found[1]) for key in server.keys(prefix) if (found := _EPOCH.search(key))), default=0)


def shards_of(project):
    """Return the names that `format.json` gives."""
    return sorted(shard["name"] for shard in json.loads(project.read("data/spectrograms/format.json"))["shards"])


def without_shards(data):
    return {name: digest for name, digest in data.items() if not name.endswith(".npy")}


def assert_same(project, outcome):
    """Compare what is in a project, whose shards are elsewhere, with the outcome of one that has them."""
    found = Outcome.of(project)
    assert not [name for name in found.data if name.endswith(".npy")]
    Outcome(without_shards(outcome.data), outcome.weights, outcome.curves).assert_same(found)


@pytest.fixture(scope="module")
def server():
    with s3.running() as server:
        yield server


@pytest.fixture(scope="module")
def environment(server, tmp_path_factory):
    """What commands need to use the server, with a cache of their own."""
    return {**server.environment, "GENERATIVE_MUSIC_CACHE": str(tmp_path_factory.mktemp("cache"))}


class Bereft:
    """A project whose driver and workers are killed in training, and a copy of it that goes on, with another cache.

    Meanwhile the server is killed by its id, and started again.
    """

    def __init__(self, projects, server, environment, folder):
        changes = {"resources.storage": server.location("killed")}
        self.first = projects.new("first", changes)
        started = self.first.start("dvc", "repro", "evaluate", **environment)
        started.wait_until(lambda: epochs_in(server, "killed/checkpoints") >= 3, timeout=400)
        started.kill()
        self.epochs_when_killed = epochs_in(server, "killed/checkpoints")
        self.local_checkpoints = self.first.path("checkpoints").exists()
        self.project = projects.keep(self.first.copy(folder / "project"))
        started = self.project.start(
            "dvc", "repro", "evaluate", **environment | {"GENERATIVE_MUSIC_CACHE": str(folder / "cache")}
        )
        started.wait_until(lambda: epochs_in(server, "killed/checkpoints") > self.epochs_when_killed, timeout=400)
        server.kill()
        self.n_alive = len(self.project.processes("ray::RayTrainWorker"))
        server.start()
        self.output = started.wait(400)
        assert started.process.returncode == 0, self.output


@pytest.fixture(scope="module")
def bereft(projects, server, environment, tmp_path_factory):
    return Bereft(projects, server, environment, tmp_path_factory.mktemp("bereft"))


def test_a_training_goes_on_elsewhere_from_the_bucket(bereft):
    assert 3 <= bereft.epochs_when_killed < EPOCHS[-1]
    assert not bereft.local_checkpoints
    assert ran(bereft.output) == ["train", "evaluate"]
    assert f"resumed after epoch {bereft.epochs_when_killed}\n" in bereft.output
    assert bereft.n_alive == TINY["resources.train_workers"]


def test_the_artifacts_are_those_of_a_project_without_a_storage(bereft, outcome):
    assert_same(bereft.project, outcome)


def test_the_bucket_holds_the_shards_and_no_checkpoints(bereft, server, outcome):
    shards = [f"killed/shards/{name}" for name in shards_of(bereft.project)]

    assert server.keys("killed") == shards
    for name in shards_of(bereft.project):
        with server.client().open_input_file(f"{s3.BUCKET}/killed/shards/{name}") as file:
            assert outcome.data[f"spectrograms/{name}"] == hashlib.sha256(file.readall()).hexdigest()


@pytest.fixture(scope="module")
def moved(finished, projects, server):
    """A finished project for which a storage was set afterwards."""
    project = projects.copy(finished, "moved")
    project.set_params({"resources.storage": server.location("moved")})
    return project


def test_another_place_is_nothing_to_do_and_shards_are_copied_there(moved, server, environment, outcome):
    assert "up to date" in moved.run("dvc", "status")
    before = hashes(moved.path("data/spectrograms"))
    missing = moved.run("python", "-m", "pipeline.stages.inspect", fails=True, **environment)
    assert re.match(
        r"error: s3://.*/moved/shards/\w+-\w+\.npy: missing, though format\.json names it; copy it", missing
    )

    output = moved.run("dvc", "repro", "--force", "--single-item", "preprocess", **environment)
    assert re.search(r"preprocess: (\d+) clips, .* \1 reused", output)
    assert " computed" not in output
    assert hashes(moved.path("data/spectrograms")) == without_shards(before)
    assert server.keys("moved") == [f"moved/shards/{name}" for name in shards_of(moved)]
    assert "every byte of" in moved.run("python", "-m", "pipeline.stages.inspect", "--verify", **environment)
    # What follows from the spectrograms is as it was.
    assert ran(moved.run("dvc", "repro", **environment)) == []
    assert_same(moved, outcome)
