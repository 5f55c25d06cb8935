import shutil

import pytest
from ruamel.yaml import YAML

from pipeline.errors import ParameterError
from pipeline.params import PARAMS_FILE, flatten, read_params
from tests.training.processes import python_m, said
from training.autoencoder import Autoencoder
from training.initialisation import check_starts_as_pca
from training.params import Params
from training.preset import PRESETS, apply

NAMES = ["gpu", "laptop", "patient", "seed"]


@pytest.fixture
def project(tmp_path, pytestconfig):
    """A folder with the repository's parameters and presets."""
    shutil.copy(pytestconfig.rootpath / PARAMS_FILE, tmp_path)
    shutil.copytree(pytestconfig.rootpath / PRESETS, tmp_path / PRESETS)
    return tmp_path


def test_these_are_all(project):
    assert sorted(path.stem for path in (project / PRESETS).iterdir()) == NAMES


def test_the_default_is_the_laptops(project):
    before = (project / PARAMS_FILE).read_bytes()

    assert apply(project / PRESETS / "laptop.yaml", project / PARAMS_FILE) == {}
    assert (project / PARAMS_FILE).read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_the_whole_network_and_optimisation(project, name):
    """So that nothing of the one before is left; and what it says can be built and started."""
    found = YAML(typ="safe").load((project / PRESETS / f"{name}.yaml").read_text())
    apply(project / PRESETS / f"{name}.yaml", project / PARAMS_FILE)
    params = read_params(Params, project / PARAMS_FILE)

    assert set(found["autoencoder"]) == set(type(params.autoencoder).model_fields)
    assert set(found["train"]) == set(type(params.train).model_fields) - {"seed", "target_shape"}
    architecture = Autoencoder((256, 64, 1), **params.autoencoder.model_dump()).architecture
    assert len(architecture.conv_filters) >= 3
    if params.train.initialisation == "pca":
        check_starts_as_pca(architecture)


def test_there_and_back(project):
    before = (project / PARAMS_FILE).read_text().replace("  patience: 10\n", "  patience: 10  # epochs\n")
    (project / PARAMS_FILE).write_text(before)
    changed = apply(project / PRESETS / "seed.yaml", project / PARAMS_FILE)
    flat = flatten(read_params(Params, project / PARAMS_FILE).model_dump(mode="json"))

    assert changed["autoencoder.conv_filters"] == [512, 256, 128, 64, 32]
    assert all(flat[name] == value for name, value in changed.items())
    apply(project / PRESETS / "laptop.yaml", project / PARAMS_FILE)
    after = (project / PARAMS_FILE).read_text()
    assert after == before


def test_values_on_several_lines(project):
    before = (project / PARAMS_FILE).read_text()
    several = before.replace("conv_filters: [128, 128, 128]", "conv_filters:\n  - 128  # the first\n  - 128\n  - 128")
    (project / PARAMS_FILE).write_text(several)
    apply(project / PRESETS / "seed.yaml", project / PARAMS_FILE)
    assert read_params(Params, project / PARAMS_FILE).autoencoder.conv_filters == (512, 256, 128, 64, 32)
    apply(project / PRESETS / "laptop.yaml", project / PARAMS_FILE)
    after = (project / PARAMS_FILE).read_text()

    assert YAML(typ="safe").load(after) == YAML(typ="safe").load(before)
    assert after.splitlines()[0] == before.splitlines()[0].strip()


def test_what_cannot_be_used_changes_nothing(project):
    before = (project / PARAMS_FILE).read_bytes()
    (project / PRESETS / "wrong.yaml").write_text("train:\n  global_batch_size: 3\nresources:\n  train_workers: 2\n")
    with pytest.raises(ParameterError, match=r"train_workers=2 must divide train\.global_batch_size=3"):
        apply(project / PRESETS / "wrong.yaml", project / PARAMS_FILE)

    assert (project / PARAMS_FILE).read_bytes() == before
    assert not list(project.glob(".*partial"))


def test_the_command(project):
    assert python_m(project, "training.preset", "seed").stdout.endswith("parameters of params.yaml changed\n")
    refused = python_m(project, "training.preset", "sed")
    assert (refused.returncode, said(refused)) == (1, ["error: preset 'sed' is none of gpu, laptop, patient, seed"])
