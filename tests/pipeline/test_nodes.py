"""What is seen from nodes, on an embedded Ray, whose one node sees what this process does."""

import pytest

from pipeline import nodes, storage, versions
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


def test_processors_of_another_kind(capsys):
    here = versions.processor()
    (node,) = nodes.nodes()
    nodes.warn_of_processors(here)
    assert capsys.readouterr().out == ""

    for other in ({"simd": [*here["simd"], "AVX1024"]}, {"machine": "another"}):
        nodes.warn_of_processors(here | other)
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"warning: {node}: not the kind of processor that {node.hostname} has: the last bits ")


def test_paths_that_every_node_sees(tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"1234")
    nodes.check_reads([tmp_path, tmp_path / "clip.wav"])
    nodes.check_writes([str(tmp_path / "made")])

    assert not list((tmp_path / "made").iterdir())


def test_a_storage_that_a_node_sees_otherwise(tmp_path, monkeypatch):
    elsewhere = storage.Folder(tmp_path / "elsewhere")
    # As if this machine had mounted another folder there.
    monkeypatch.setattr(nodes.storage, "open_storage", lambda *_, **__: elsewhere)

    message = f"^node .* cannot use what is shared: {tmp_path}/here: is another place here than where .probe-"
    with pytest.raises(ResourceError, match=message):
        nodes.check_writes([str(tmp_path / "here")])


def test_what_lies_at_a_path(tmp_path):
    (tmp_path / "clip.wav").write_bytes(b"1234")

    assert nodes.look_at(tmp_path) == "a folder"
    assert nodes.look_at(tmp_path / "clip.wav") == "a file of 4 bytes"
    assert nodes.look_at(tmp_path / "absent") == "not to be seen (No such file or directory)"
