"""A training whose spectrograms and checkpoints are in a bucket, by two workers that see nothing else."""

import dataclasses
import shutil
import time

import numpy as np
import pytest

from pipeline.storage import open_storage
from tests.training.conftest import TRAINING, without_clock
from tests.training.processes import run_workers, start_workers
from training.checkpoint import Checkpoints
from training.loop import run_worker
from training.paths import checkpoint_location


@pytest.fixture
def job(store, make_job, s3_server, s3_let_in):
    """Return a job of which every path is in a bucket, and spectrograms there."""
    storage = s3_server.location("trained")
    for shard in store.format.shards:
        open_storage(storage).at("shards").put(shard.name, [(store.folder / shard.name).read_bytes()])
    location = checkpoint_location("key", storage)
    index = open_storage(location).beside(".data").location
    store.share(index)
    job = make_job("nowhere")
    return dataclasses.replace(
        job, spectrograms="/nowhere", table="/nowhere", checkpoints=location, storage=storage, index=index
    )


def numbers(checkpoints, name, folder):
    """Return the arrays of a checkpoint's optimizer, and the weights of the best epoch."""
    with checkpoints._folders.opened(name) as opened:
        shutil.copytree(opened, folder)
    with np.load(folder / "optimizer.npz") as file:
        return [*dict(file).values(), *checkpoints.load_best().model.get_weights()]


def test_the_weights_are_those_of_a_training_in_a_folder(tmp_path, make_job, job, s3_server, s3_let_in):
    """The server is killed by its id when the first epoch is there, and started again."""
    for end in run_workers(tmp_path, run_worker, 2, make_job(tmp_path / "local")):
        assert end.returncode == 0, end.stderr
    environment = {**s3_server.environment, "GENERATIVE_MUSIC_CACHE": str(s3_let_in)}
    children = start_workers(tmp_path, run_worker, 2, job, **environment)
    end = time.monotonic() + 240
    while not any(key.endswith(".json") and "/epoch-" in key for key in s3_server.keys("trained/checkpoints/key")):
        assert time.monotonic() < end
        time.sleep(0.01)
    s3_server.kill()
    s3_server.start()
    for child in children:
        finished = child.join()
        assert finished.returncode == 0, finished.stderr

    local, stored = Checkpoints(tmp_path / "local"), Checkpoints(job.checkpoints)
    assert stored.progress().epoch == TRAINING["epochs"]
    assert without_clock(stored.progress()) == without_clock(local.progress())
    newest = f"epoch-{TRAINING['epochs']:05d}"
    expected = numbers(local, newest, tmp_path / "expected")
    for found, each in zip(numbers(stored, newest, tmp_path / "found"), expected, strict=True):
        np.testing.assert_array_equal(found, each)
    # Both workers mapped what one of them had fetched.
    assert len(list(s3_let_in.rglob("*.npy"))) == len(s3_server.keys("trained/shards")) > 0
