"""What the repository says of itself holds."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.params import flatten, read_params
from training.params import Params

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def read_yaml(name):
    return YAML(typ="safe", pure=True).load((ROOT / name).read_text(encoding="utf-8"))


def test_the_default_parameters_are_valid():
    params = read_params(Params, ROOT / "params.yaml")
    assert len(params.autoencoder.conv_filters) >= 3


def test_the_readme_names_every_parameter():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Parameters")[1].split("## ")[0]
    for name in flatten(read_yaml("params.yaml")):
        section, key = name.split(".")
        assert re.search(rf"`{section}\.[^|]*{key}`", table), f"{name} is not in the README's table"


def test_the_readme_maps_every_module():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listing = readme.split("## Map of files")[1]
    for package in ("pipeline", "training"):
        for path in (ROOT / package).glob("*.py"):
            assert path.name == "__init__.py" or path.name in listing, f"{path.name} is not in the README's map"


def test_every_reason_to_reject_a_recording_is_explained():
    # A name in capitals is a reason that is raised in one place and looked for in another.
    pattern = r"""(?:AudioError|Rejection|_reject)\([^"()]*"([a-z ]+)"|^[A-Z_]+ = "([a-z]+)"$"""
    sources = ("containers", "corpus", "decoder", "isolation", "loader", "silence")
    code = "".join((ROOT / "pipeline" / f"{name}.py").read_text(encoding="utf-8") for name in sources)
    reasons = {first or second for first, second in re.findall(pattern, code, re.MULTILINE)}
    table = (ROOT / "docs" / "files.md").read_text(encoding="utf-8").split("| file |")[0]

    assert {"truncated", "quiet", "unread format", "same id", "loop"} <= reasons
    assert {reason for reason in reasons if f"`{reason}`" not in table} == set()


def test_the_lock_holds_names_versions_and_hashes_only():
    assert {path.stem for path in LOCKS} == {"uv", "run", "dev", "gpu"}
    for path in LOCKS:
        text = path.read_text(encoding="utf-8")
        assert "://" not in text
        for requirement in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[a-z0-9.-]+==\S+( ; .+?)? \\\n", requirement), requirement.splitlines()[0]
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", requirement), requirement.splitlines()[0]


def test_every_declared_dependency_is_locked():
    locked = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / "requirements/run.txt").read_text(encoding="utf-8"), re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w.-]+", each)[0].lower().replace("_", "-").replace(".", "-") for each in declared}
    assert names - {project["name"]} <= {name.replace(".", "-") for name in locked}


def test_all_extras_are_locked_but_the_one_that_takes_the_place_of_another():
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    (listed,) = re.findall(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(listed.split()) == extras - {"gpu", "learning"}


def test_the_lock_for_gpus_has_other_packages_of_tensorflow_and_nvidia_alone():
    """So that it can be installed over the other one."""
    run, gpu = (
        dict(
            re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8"), re.M)
        )
        for name in ("run", "gpu")
    )
    own = {name for name in gpu if run.get(name) != gpu[name]}
    assert own
    assert all(name.startswith("nvidia-") for name in own)
    assert run["tensorflow-cpu"] == gpu["tensorflow"] == run["tensorflow"]


@pytest.mark.parametrize("name", ["dvc.yaml", "pipeline/dvc.yaml"])
def test_stages_depend_on_code_that_exists_and_run_a_module_of_their_name(name):
    for stage, content in read_yaml(name)["stages"].items():
        command = content["cmd"] if isinstance(content["cmd"], str) else content["cmd"][-1]
        assert command.endswith(f".stages.{stage}")
        module = command.removeprefix("exec python -m ").replace(".", "/") + ".py"
        assert module in content["deps"]
        for dependency in content["deps"]:
            assert not dependency.endswith(".py") or (ROOT / dependency).is_file()


def test_no_stage_depends_on_where_the_work_runs():
    for name in ("dvc.yaml", "pipeline/dvc.yaml"):
        for content in read_yaml(name)["stages"].values():
            assert not any(param.startswith("resources") for param in content.get("params", []))


def test_mlproject_has_an_entry_point_for_each_stage_and_runs_them_by_dvc():
    entry_points = read_yaml("MLproject")["entry_points"]
    stages = [*read_yaml("dvc.yaml")["stages"], *read_yaml("pipeline/dvc.yaml")["stages"]]
    assert set(entry_points) == {"main", *stages}
    for name, entry_point in entry_points.items():
        expected = {
            "main": "python -m training.preflight && dvc repro",
            "sample_corpus": "dvc repro pipeline/dvc.yaml:sample_corpus",
        }
        assert entry_point["command"] == expected.get(name, f"dvc repro {name}")
