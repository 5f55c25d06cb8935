"""Versions of a registered model, and which of them is champion."""

import pytest

from pipeline.errors import ResourceError
from training import tracking
from training.tracking_registry import Registry


@pytest.fixture
def registry(client, key):
    return Registry(client, key.replace("[", " ").replace("]", ""))


def aliases(client, registry):
    return {name: str(number) for name, number in client.get_registered_model(registry.name).aliases.items()}


def test_each_run_is_one_version(client, registry, key, log_model, capfd):
    first, second = log_model(key), log_model(f"{key}, later")
    tags = {"training_key": key, "test_mse": "0.00125"}
    assert registry.champion() is None

    assert registry.register(first, tags).number == "1"
    assert registry.register(second, tags | {"test_mse": "0.001"}).number == "2"
    assert registry.register(first, {"more": "x"}).tags == tags | {"more": "x"}
    assert len(client.search_model_versions(f"name = '{registry.name}'")) == 2
    version = client.get_model_version(registry.name, "1")
    assert version.run_id == first.info.run_id
    assert version.source == f"models:/{first.outputs.model_outputs[0].model_id}"
    assert version.tags == tags | {"more": "x"}
    # MLflow's own function says of the first version that the model exists already.
    assert "already exists" not in "".join(capfd.readouterr())


def test_champions_come_and_go_back(client, registry, key, log_model):
    for number in range(3):
        registry.register(log_model(f"{key} {number}"), {})
    with pytest.raises(ResourceError, match="has no version 'previous' to go back to"):
        registry.roll_back()

    registry.promote("1")
    assert aliases(client, registry) == {"champion": "1"}
    with pytest.raises(ResourceError, match="has no version 'previous' to go back to"):
        registry.roll_back()
    registry.promote("3")
    registry.promote("3")
    assert aliases(client, registry) == {"champion": "3", "previous": "1"}
    assert registry.champion().number == "3"

    assert registry.roll_back() == ("1", "3")
    assert aliases(client, registry) == {"champion": "1", "previous": "3"}
    assert registry.roll_back() == ("3", "1")
    assert aliases(client, registry) == {"champion": "3", "previous": "1"}


def test_a_versions_files(registry, key, log_model, tmp_path):
    version = registry.register(log_model(key), {})
    folder = registry.download(version.number, str(tmp_path / "downloaded"))

    assert [path.name for path in tmp_path.glob("downloaded/**/autoencoder.weights.h5")] == ["autoencoder.weights.h5"]
    assert folder


def test_a_run_without_a_model(client, registry, key, params):
    with tracking.training_run(client, key, params) as run:
        pass

    with pytest.raises(ResourceError, match=f"MLflow run {run.info.run_id} holds no model; run the train stage again"):
        registry.register(client.get_run(run.info.run_id), {})
