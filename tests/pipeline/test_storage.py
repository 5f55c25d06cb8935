"""Storages: a folder, and a bucket of a real server, must do the same."""

import hashlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.bucket import CACHE_VARIABLE, Bucket
from pipeline.errors import ParameterError, ResourceError, StoreError
from pipeline.params import PipelineParams, read_params
from pipeline.storage import Folder, check, check_location, open_storage, probe
from tests import s3


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def bucket(request, s3_server, s3_let_in):
    return open_storage(s3_server.location(f"{request.node.name}/below"))


@pytest.fixture(params=["folder", "bucket"])
def storage(request, tmp_path):
    """A storage of each kind, in which nothing was ever written."""
    return Folder(tmp_path / "storage") if request.param == "folder" else request.getfixturevalue("bucket")


def test_what_was_written_is_read(storage, rng):
    content = rng.bytes(11 << 20)  # more than one part of an upload
    storage.put("a.npy", [content[:100], memoryview(content)[100:]])
    storage.put("empty", [b""])

    assert storage.get("a.npy") == content
    assert storage.get("empty") == b""
    assert storage.digest("a.npy") == sha256(content)
    assert [(entry.name, entry.n_bytes) for entry in storage.entries()] == [("a.npy", len(content)), ("empty", 0)]
    # Two seconds, since a server may count in whole ones.
    assert all(abs(entry.modified_s - time.time()) < 3600 for entry in storage.entries())


def test_writing_again_replaces(storage):
    storage.put("a", [b"first"])
    storage.put("a", [b"the second"])

    assert storage.get("a") == b"the second"
    assert [entry.n_bytes for entry in storage.entries()] == [10]


def test_where_nothing_was_written(storage):
    assert storage.entries() == storage.folders() == []
    with pytest.raises(FileNotFoundError):
        storage.get("a")
    with pytest.raises(FileNotFoundError):
        storage.digest("a")
    assert not storage.is_intact("a", 1, sha256(b"1"))
    storage.remove("a")
    storage.clear()


def test_storages_below_and_beside(storage):
    storage.put("a", [b"a"])
    storage.at("x").put("b", [b"b"])
    storage.at("x").at("y").put("c", [b"c"])
    storage.beside(".ray").put("d", [b"d"])

    assert [entry.name for entry in storage.entries()] == ["a"]
    assert storage.folders() == ["x"]
    assert [entry.name for entry in storage.at("x").entries()] == ["b"]
    storage.clear()
    for each in (storage, storage.at("x"), storage.at("x").at("y")):
        assert each.entries() == []
    assert storage.beside(".ray").get("d") == b"d"


def test_one_file_is_removed(storage):
    storage.put("a", [b"a"])
    storage.put("b", [b"b"])
    storage.remove("a")

    assert [entry.name for entry in storage.entries()] == ["b"]


def test_a_location_leads_to_the_same_place(storage):
    storage.at("x").put("a", [b"a"])

    assert open_storage(storage.location).at("x").get("a") == b"a"
    assert open_storage(storage.at("x").location).get("a") == b"a"


def test_all_files_as_a_folder(storage):
    storage.put("a", [b"1"])
    storage.put("b", [b"2"])
    with storage.fetched() as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"1", "b": b"2"}


def test_a_probe_is_seen_and_goes(storage):
    with probe(storage.location) as name:
        check(storage.location, name)
        assert [entry.name for entry in storage.entries()] == [name]
    assert storage.entries() == []
    with pytest.raises(ResourceError, match=rf"{re.escape(storage.location)}: is another place here than "):
        check(storage.location, name)


# --- folders


def test_a_folder_maps_where_files_lie(tmp_path):
    folder = Folder(tmp_path)
    folder.put("a.npy", [b"content"])

    assert folder.local("a.npy", 7, sha256(b"content")) == tmp_path / "a.npy"
    assert folder.is_intact("a.npy", 7, sha256(b"content"))
    assert not folder.is_intact("a.npy", 8, sha256(b"content"))
    (tmp_path / "a.npy").write_bytes(b"Content")
    assert not folder.is_intact("a.npy", 7, sha256(b"content"))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for location in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResourceError, match=r"file.*: cannot be written: (Not a directory|File exists)"):
            check(location)


def test_nothing_is_left_of_a_write_that_failed(tmp_path):
    def chunks():
        yield b"some"
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match=r"a: cannot be written: No space left on device"):
        Folder(tmp_path).put("a", chunks())
    assert list(tmp_path.iterdir()) == []


# --- buckets


def test_what_is_cached_is_fetched_once(bucket, s3_let_in):
    content = os.urandom(1000)
    bucket.put("0-ab.npy", [content])
    path = bucket.local("0-ab.npy", 1000, sha256(content))

    assert path.read_bytes() == content
    assert path.is_relative_to(s3_let_in)
    bucket.remove("0-ab.npy")
    assert bucket.local("0-ab.npy", 1000, sha256(content)) == path
    with pytest.raises(FileNotFoundError):
        bucket.local("1-cd.npy", 1000, sha256(b""))
    assert not list(s3_let_in.rglob("*.partial"))


def test_many_may_fetch_the_same_at_once(bucket, s3_let_in):
    content = os.urandom(3 << 20)
    bucket.put("a.npy", [content])
    with ThreadPoolExecutor(8) as executor:
        paths = set(executor.map(lambda _: bucket.local("a.npy", len(content), sha256(content)), range(16)))

    assert [path.read_bytes() for path in paths] == [content]
    assert sorted(path.name for path in paths.pop().parent.iterdir()) == [".lock", f"{sha256(content)}.npy"]


def test_what_is_not_what_its_digest_says_is_not_cached(bucket, s3_let_in):
    bucket.put("a.npy", [b"other"])
    with pytest.raises(StoreError, match=rf"a\.npy: sha256 is {sha256(b'other')}, expected {sha256(b'bytes')}; remove"):
        bucket.local("a.npy", 5, sha256(b"bytes"))
    assert [path.name for path in s3_let_in.rglob("*") if path.is_file()] == [".lock"]


def test_a_cache_that_cannot_be_written(bucket, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    bucket.put("a.npy", [b"bytes"])
    with pytest.raises(ResourceError, match=f"file/.*: cannot be written: .*; {CACHE_VARIABLE} names another folder"):
        bucket.local("a.npy", 5, sha256(b"bytes"))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "INVALID_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SIGNATURE_DOES_NOT_MATCH"),
    ],
)
def test_wrong_credentials_are_not_tried_twice(s3_server, s3_let_in, monkeypatch, name, value, reason):
    monkeypatch.setenv(name, value)
    # An hour of waiting would be noticed.
    location = s3_server.location("refused").replace("&scheme", "&region=us-east-1&scheme")
    with pytest.raises(ResourceError, match=rf"s3://{s3.BUCKET}/refused/a: cannot be written: .*{reason}"):
        _with_fresh_connection(lambda: Bucket(location, [3600.0]).put("a", [b"a"]))


def test_a_bucket_that_is_not_there(s3_server, s3_let_in):
    location = s3_server.location("x").replace(s3.BUCKET, "nobodys")
    with pytest.raises(ResourceError, match=r"s3://nobodys/x/\.probe-\w+: cannot be written: .*NO_SUCH_BUCKET"):
        check(location)


def test_a_server_that_is_not_there(s3_let_in):
    (port,) = s3.free_ports(1)
    bucket = Bucket(f"s3://sounds/x?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1", [0.01])
    for use in (lambda: bucket.put("a", [b"a"]), bucket.entries):
        with pytest.raises(ResourceError, match=r"^s3://sounds/x/a?: cannot be .*[Cc]onnect.*$"):
            use()


def test_a_server_may_be_named_by_the_environment(s3_server, s3_let_in, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_server.endpoint}")
    bucket = open_storage(f"s3://{s3.BUCKET}/by-environment")
    _with_fresh_connection(lambda: bucket.put("a", [b"a"]))

    assert s3_server.keys("by-environment") == ["by-environment/a"]


def _with_fresh_connection(action):
    """Connect anew, since a process keeps what it has connected to."""
    from pipeline.bucket import _connect

    _connect.cache_clear()
    try:
        return action()
    finally:
        _connect.cache_clear()


def test_a_server_that_dies_in_the_middle_of_an_upload(s3_let_in, monkeypatch):
    """Killed when a part of the object is on its disk: the object is absent, and whole when the server is back."""
    content = os.urandom(48 << 20)
    with s3.running() as server:
        bucket = open_storage(server.location("killed"))
        before = server.n_bytes
        with ThreadPoolExecutor(1) as executor:
            upload = executor.submit(bucket.put, "a.npy", [content])
            while server.n_bytes < before + (8 << 20):
                assert not upload.done()
                time.sleep(0.001)
            server.kill()
            assert not upload.done()
            on_disk = server.n_bytes
            server.start()
            upload.result()

        assert before + (8 << 20) <= on_disk
        assert bucket.get("a.npy") == content
        assert server.keys() == ["killed/a.npy"]


# --- locations


@pytest.mark.parametrize(
    "location", ["/mnt/shared", "s3://sounds/a", "s3://sounds/a/b/?endpoint_override=h:9&scheme=http&region=eu-west-1"]
)
def test_good_locations(location):
    check_location(location)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (
            "shared",
            "'shared' must be null, an absolute path, since workers run in other folders, or s3://bucket/prefix",
        ),
        ("~/shared", "must be null, an absolute path"),
        ("", "must be null, an absolute path"),
        ("s3://sounds", "must be null, an absolute path, or s3://bucket/prefix"),
        ("s3://sounds/", "must be null, an absolute path, or s3://bucket/prefix"),
        ("s3:///a", "must be null, an absolute path, or s3://bucket/prefix"),
        ("gs://sounds/a", "must be null, an absolute path, or s3://bucket/prefix"),
        ("s3://key:secret@sounds/a", "must not hold credentials"),
        ("s3://sounds/a?access_key=x", r"access_key is unknown, expected endpoint_override, scheme, region"),
        ("s3://sounds/a?scheme=ftp", "scheme='ftp' must be http or https"),
    ],
)
def test_bad_locations_are_bad_parameters(write_params, location, message):
    path = write_params({"resources.storage": location})
    with pytest.raises(ParameterError, match=rf"^\S*params\.yaml: resources\.storage: .*{message}") as caught:
        read_params(PipelineParams, path)
    assert "secret" not in str(caught.value)
