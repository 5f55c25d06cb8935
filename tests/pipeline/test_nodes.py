"""What is seen from nodes, on an embedded Ray, whose one node sees what this process does."""

import pytest

from pipeline import nodes
from pipeline.errors import ResourceError


@pytest.fixture(autouse=True)
def _ray(cpus):
    assert cpus


def test_each_node_is_asked_once():
    ((node, answer),) = nodes.on_each(list).items()

    assert answer == []
    assert str(node) == f"{node.hostname} ({node.address})"


def test_versions_of_this_environment_are_the_same_on_its_own_node():
    nodes.check_versions(["ray", "numpy", "absent"])


def test_paths_that_every_node_sees(tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"1234")
    nodes.check_paths([tmp_path, tmp_path / "clip.wav"], [tmp_path / "made" / "here"])

    assert not list((tmp_path / "made" / "here").iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(ResourceError, match=f"^{tmp_path}/file/folder: cannot be written to: Not a directory$"):
        nodes.check_paths(writes=[tmp_path / "file" / "folder"])


def test_what_lies_at_a_path(tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"1234")

    assert nodes.look_at(tmp_path) == "a folder"
    assert nodes.look_at(tmp_path / "clip.wav") == "a file of 4 bytes"
    assert nodes.look_at(tmp_path / "absent") == "not to be seen (No such file or directory)"
