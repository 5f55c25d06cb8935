"""Folders that are whole or absent: on a disk and in a bucket, and what is left of them when their writer dies."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from pipeline.bucket import Bucket
from pipeline.errors import ModelError, ResourceError
from pipeline.storage import open_storage
from tests import s3
from tests.training.conftest import NETWORK, SHAPE, make_progress, randomised
from training.autoencoder import Autoencoder
from training.checkpoint import Checkpoints
from training.folders import BucketFolders, open_folders
from training.paths import checkpoint_location
from training.progress import Progress


def writer(**contents):
    """Return a function that writes files of these contents."""

    def write(folder):
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    return write


def read(folders, name):
    """Return the files of a folder and their contents."""
    with folders.opened(name) as folder:
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(params=["disk", "bucket"])
def location(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "key")
    request.getfixturevalue("s3_let_in")
    return request.getfixturevalue("s3_server").location(f"{request.node.name}/key")


def test_what_was_published_is_there(location):
    folders = open_folders(location)
    assert folders.names() == []
    folders.publish("b", writer(x=b"1", y=b"22"))
    folders.publish("a", writer(x=b"333"))

    folders = open_folders(location)
    assert folders.names() == ["a", "b"]
    assert read(folders, "b") == {"x": b"1", "y": b"22"}
    assert folders.read("a", "x") == b"333"


def test_publishing_again_replaces(location):
    folders = open_folders(location)
    folders.publish("a", writer(x=b"1", y=b"1"))
    folders.publish("a", writer(x=b"2"))

    assert folders.read("a", "x") == b"2"
    assert folders.names() == ["a"]


def test_what_is_not_kept_goes(location):
    folders = open_folders(location)
    for name in "abc":
        folders.publish(name, writer(x=name.encode()))
    folders.keep({"b"})

    assert folders.names() == ["b"]
    assert folders.read("b", "x") == b"b"
    for name in "ac":
        with pytest.raises(FileNotFoundError):
            folders.read(name, "x")
    folders.clear()
    assert open_folders(location).names() == []
    folders.clear()


def test_a_writer_that_fails_leaves_nothing(location):
    def fail(folder):
        (folder / "x").write_bytes(b"some")
        raise ZeroDivisionError

    folders = open_folders(location)
    folders.publish("a", writer(x=b"whole"))
    with pytest.raises(ZeroDivisionError):
        folders.publish("b", fail)

    assert folders.names() == ["a"]


def test_a_writer_that_may_not_replaces_nothing(location):
    def refuse():
        raise ZeroDivisionError

    folders = open_folders(location)
    folders.publish("a", writer(x=b"1"))
    for name in "ab":
        with pytest.raises(ZeroDivisionError):
            folders.publish(name, writer(x=b"2"), refuse)

    assert folders.names() == ["a"]
    assert folders.read("a", "x") == b"1"


def test_what_is_superseded_while_it_is_read_is_absent(s3_server, s3_let_in):
    """One reads the marker, another publishes anew, and the first reads on."""
    location = s3_server.location("superseded")
    ours, theirs = open_folders(location), open_folders(location)
    ours.publish("a", writer(x=b"1"))
    digests = ours._digests("a")
    theirs.publish("a", writer(x=b"2"))

    with pytest.raises(FileNotFoundError, match="a was published anew meanwhile"):
        ours._get("a", "x", digests["x"])
    theirs.keep(())
    with pytest.raises(FileNotFoundError):
        ours._get("a", "x", digests["x"])


def test_damage_in_a_bucket_is_found(s3_server, s3_let_in):
    storage = open_storage(s3_server.location("damaged"))
    folders = BucketFolders(storage)
    folders.publish("a", writer(x=b"1"))
    storage.at("a").put("x", [b"2"])
    with pytest.raises(ModelError, match=r"damaged/a/x: is not what was written; remove s3://.*damaged.* to start"):
        folders.read("a", "x")
    storage.put("a.json", [b"{"])
    with pytest.raises(ModelError, match=r"damaged/a\.json: cannot be read: "):
        folders.read("a", "x")


# --- kills


class Killed(BaseException):
    """What no handler of errors stops, as nothing stops a kill."""


class MortalBucket(Bucket):
    """A bucket whose writer dies before its n-th change."""

    left = math.inf

    def _insist(self, problem, name, action):
        if problem in {"cannot be written", "cannot be removed"}:
            MortalBucket.left -= 1
            if MortalBucket.left < 0:
                MortalBucket.left = math.inf
                raise Killed
        return super()._insist(problem, name, action)

    def at(self, name):
        below = super().at(name)
        return MortalBucket(below.location)


@pytest.mark.parametrize("again", [False, True], ids=["new", "again"])
def test_a_kill_leaves_whole_folders_and_the_next_one_gets_there(s3_server, s3_let_in, again):
    n_changes = 0
    while True:
        location = s3_server.location(f"{'again' if again else 'new'}{n_changes}")
        folders = BucketFolders(MortalBucket(location))
        folders.publish("epoch-1", writer(x=b"1", y=b"1"))
        if again:
            folders.publish("epoch-2", writer(x=b"1", y=b"2"))

        def step(folders=folders):
            folders.publish("epoch-2", writer(x=b"2", y=b"2"))
            folders.keep({"epoch-2"})

        MortalBucket.left = n_changes
        try:
            step()
        except Killed:
            for name in (names := folders.names()):
                assert read(folders, name)["y"] == name[-1:].encode()
            assert names
            step()
        assert folders.names() == ["epoch-2"]
        assert read(folders, "epoch-2") == {"x": b"2", "y": b"2"}
        if MortalBucket.left < math.inf:  # it came to its end
            break
        n_changes += 1
    MortalBucket.left = math.inf
    assert n_changes > 4


def test_a_server_that_dies_before_the_files_are_there(s3_let_in):
    """Killed by its id when they are to be uploaded, and started again while the writer insists."""
    weights = os.urandom(12 << 20)
    with s3.running() as server, ThreadPoolExecutor(1) as executor:
        folders = open_folders(server.location("key"))
        restarts = []

        def write(folder):
            writer(a=b"a", weights=weights)(folder)
            server.kill()
            restarts.append(executor.submit(server.start))

        folders.publish("epoch-1", write)
        assert read(folders, "epoch-1") == {"a": b"a", "weights": weights}
        restarts[0].result()


# --- checkpoints


def test_a_writer_that_was_taken_for_dead_changes_nothing(location, networks):
    """It went on with the first epoch, and another one has begun the second in its place."""
    stale, ours = Checkpoints(location), Checkpoints(location)
    stale.claim()
    stale.save(networks[1], make_progress(0.3))
    ours.claim()
    for progress in (make_progress(0.3, 0.2), make_progress(0.3, 0.4)):
        with pytest.raises(ModelError, match=r"key\S*: another process goes on with this training$"):
            stale.save(networks[2], progress)
    assert ours.progress() == make_progress(0.3)
    ours.save(networks[2], make_progress(0.3, 0.25))

    assert Checkpoints(location).progress() == make_progress(0.3, 0.25)
    assert open_folders(location).names() == ["best-00002", "epoch-00002"]


# --- checkpoints in a bucket


@pytest.fixture(scope="module")
def networks():
    """Networks of three epochs, whose weights and optimizers differ."""
    made = []
    for number in range(3):
        autoencoder = randomised(Autoencoder(SHAPE, **NETWORK), seed=number)
        autoencoder.compile(keras.optimizers.schedules.CosineDecay(1e-3, 100))
        autoencoder.optimizer.build(autoencoder.model.trainable_variables)
        rng = np.random.default_rng(number)
        for variable in autoencoder.optimizer.variables:
            variable.assign(rng.integers(1, 1000, variable.shape))
        made.append(autoencoder)
    return made


def numbers(autoencoder):
    return [np.array(each.value) for each in (*autoencoder.model.weights, *autoencoder.optimizer.variables)]


def test_a_training_goes_on_from_a_bucket_alone(s3_server, s3_let_in, networks):
    location = checkpoint_location("key", s3_server.location("training"))
    for number in (1, 2):
        Checkpoints(location).save(networks[number], make_progress(*[0.3, 0.4][:number]))

    checkpoints = Checkpoints(location)
    assert checkpoints.progress() == checkpoints.resume(networks[0]) == make_progress(0.3, 0.4)
    for found, expected in zip(numbers(networks[0]), numbers(networks[2]), strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(
        checkpoints.load_best().model.get_weights(), networks[1].model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    # What was superseded is gone.
    kept = {key.removeprefix("training/checkpoints/key/").partition("/")[0] for key in s3_server.keys("training")}
    assert kept == {"best-00001", "best-00001.json", "epoch-00002", "epoch-00002.json"}
    assert not list(s3_let_in.rglob("*"))

    checkpoints.remove()
    assert s3_server.keys("training") == []
    assert Checkpoints(location).progress() == Progress()


def test_a_bucket_is_not_asked_more_often_than_every_few_seconds(s3_server, tmp_path):
    assert Checkpoints(s3_server.location("x")).poll_s >= 5 > Checkpoints(tmp_path).poll_s


def test_a_bucket_that_is_away_is_told_of(s3_let_in):
    (port,) = s3.free_ports(1)
    folders = BucketFolders(Bucket(f"s3://sounds/x?endpoint_override=127.0.0.1:{port}&scheme=http", ()))
    with pytest.raises(ResourceError, match=r"^s3://sounds/x/: cannot be listed: "):
        folders.names()
