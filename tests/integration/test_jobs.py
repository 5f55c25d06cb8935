"""Stages as jobs of a cluster, by `RAY_ADDRESS=http://...` and `ray job submit`, on nodes that `ray start` starts."""

import re
import signal
import sys

import numpy as np
import psutil
import pytest

from pipeline.params import PipelineParams, read_params
from pipeline.stages import preprocess
from tests.clusters import Cluster, environment_without, write_token
from tests.projects import ROOT, Project, clone, hashes, snapshot
from tests.sounds import write_corpus

pytestmark = pytest.mark.timeout(600)

STAGE = ("python", "-m", "pipeline.stages.preprocess")
SECRETS = (".env", "pipeline/.env", "data/notes.txt", "training/__pycache__/cached.pyc")
# A job that works until it is stopped, and those who submit it: by hand, and for a DVC that dies.
SLEEP = "import time; print('at work'); time.sleep(600)"
SUBMIT = f"""
import argparse
from pipeline import command, jobs

def main(_):
    jobs.submit("timeit", ["-n1", "-r1", {SLEEP!r}], {{}}, None)

command.run(main, argparse.Namespace(verbose=False, params=None))
"""
STARTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head with two CPUs, and the person who has its token."""
    home = tmp_path_factory.mktemp("home")
    write_token(home)
    started = Cluster(home)
    yield started
    started.close()


@pytest.fixture(scope="module")
def project(cluster, tmp_path_factory):
    """That person's project, of a few sounds, with files that are nobody else's business."""
    original = snapshot(tmp_path_factory.mktemp("original") / "project", cluster.home)
    made = clone(original, tmp_path_factory.mktemp("jobs") / "project", {"corpus.dir": "sounds", "split.group": None})
    write_corpus(made.path("sounds"), np.random.default_rng(1), 14)
    for name in SECRETS:
        made.path(name).parent.mkdir(exist_ok=True)
        made.path(name).write_text("secret", encoding="utf-8")
    yield made
    made.close()
    original.close()


@pytest.fixture(scope="module")
def submitted(project, cluster):
    """What `dvc repro preprocess` printed where `RAY_ADDRESS` names the head's job server."""
    return project.run("dvc", "repro", "preprocess", RAY_ADDRESS=cluster.jobs)


# --- what a job does


def test_a_job_makes_what_this_machine_makes(project, submitted, tmp_path, monkeypatch):
    assert "\npreprocess: 14 clips, 14 rows," in submitted
    assert "preprocess: job preprocess-" in submitted
    assert not list(project.folder.rglob(".probe-*"))
    assert "up to date" in project.run("dvc", "status", "preprocess")
    here = project.copy(tmp_path / "here")
    for path in (here.path("data/spectrograms"), here.path("data/min_max_values.parquet")):
        path.rename(path.with_suffix(".job"))
    monkeypatch.chdir(here.folder)
    params = read_params(PipelineParams)
    preprocess.build(params).preprocess(params.corpus.dir)

    assert hashes(here.path("data/spectrograms")) == hashes(here.path("data/spectrograms.job"))
    assert hashes(here.path("data"))["min_max_values.parquet"] == hashes(here.path("data"))["min_max_values.job"]


@pytest.mark.usefixtures("submitted")
def test_nodes_are_sent_the_code_and_nothing_else(project, cluster):
    code = project.run("git", "ls-files", "pipeline", "training").splitlines()

    assert cluster.received() == {"params.yaml", *code}


@pytest.mark.usefixtures("submitted")
def test_a_job_ends_as_its_stage_does(project, cluster):
    project.set_params({"corpus.dir": "nowhere"})
    output = project.run(*STAGE, RAY_ADDRESS=cluster.jobs, fails=True)
    project.set_params({"corpus.dir": "sounds"})

    _, line = output.splitlines()
    assert line == "error: corpus folder 'nowhere' does not exist"


def by_hand(project, cluster, **options):
    """Submit the stage with Ray's own command, and return what that printed."""
    command = ("ray", "job", "submit", "--address", cluster.jobs, "--working-dir", ".", "--", *STAGE)
    return project.run(*command, RAY_AUTH_MODE="token", **options)


def test_a_job_by_hand(project, cluster):
    project.set_params({"resources.cluster_folder": str(project.folder)})
    output = by_hand(project, cluster)
    project.set_params({"resources.cluster_folder": None})

    assert "\npreprocess: 14 clips, 14 rows," in output
    assert cluster.received() == {"params.yaml", *project.run("git", "ls-files", "pipeline", "training").splitlines()}


@pytest.mark.soak
def test_a_job_by_hand_that_is_not_told_where_the_project_is(project, cluster):
    output = by_hand(project, cluster, fails=True)

    assert "\nerror: resources.cluster_folder must name the project's folder" in output


# --- what is refused


def test_who_has_no_token_or_another_one(project, cluster, tmp_path):
    tokens = {"has none": {"HOME": str(tmp_path)}, "does not accept the token in": {"RAY_AUTH_TOKEN": "0" * 64}}
    addresses = (cluster.jobs, cluster.address)
    started = [
        (reason, address, project.start(*STAGE, RAY_ADDRESS=address, **environment))
        for reason, environment in tokens.items()
        for address in addresses
    ]
    for reason, address, each in started:
        output = each.wait()
        line = output.splitlines()[-1]
        assert each.process.returncode == 1
        assert line.startswith(f"error: RAY_ADDRESS={address}: the cluster ")
        assert reason in line
        assert "ray get-auth-token" in line
        assert len(output.splitlines()) <= 2


def test_a_folder_that_the_cluster_sees_otherwise(project, cluster, tmp_path):
    project.set_params({"resources.cluster_folder": str(tmp_path)})
    output = project.run(*STAGE, RAY_ADDRESS=cluster.jobs, fails=True)
    project.set_params({"resources.cluster_folder": None})

    assert f"\nerror: {tmp_path} is another folder on node " in output
    assert not list(project.folder.rglob(".probe-*"))


@pytest.mark.parametrize(
    ("how", "version", "found"),
    [
        ("jobs", None, "no soxr"),
        pytest.param("jobs", "0.1.0", "soxr 0.1.0", marks=pytest.mark.soak),
        pytest.param("address", None, "no soxr", marks=pytest.mark.soak),
        pytest.param("address", "0.1.0", "soxr 0.1.0", marks=pytest.mark.soak),
    ],
)
def test_a_node_without_a_package(project, cluster, tmp_path, how, version, found):
    with cluster.node(environment_without(tmp_path / "other", "soxr", version)):
        output = project.run(*STAGE, RAY_ADDRESS=getattr(cluster, how), fails=True)

    assert f" has {found}, where " in output.splitlines()[-1]
    assert output.splitlines()[-1].startswith("error: node ")


@pytest.mark.soak
def test_a_cluster_of_another_ray(project, tmp_path):
    started = Cluster(project.home, environment_without(tmp_path / "other", "ray", "2.59.0"))
    try:
        by_job, joined = (
            project.run(*STAGE, RAY_ADDRESS=address, fails=True).splitlines()[-1]
            for address in (started.jobs, started.address)
        )
    finally:
        started.close()

    assert re.match(r"error: node \S+ has ray 2.59.0, where \S+ has ray ", by_job)
    assert re.match(r"error: RAY_ADDRESS=\S+: the cluster cannot be joined .*: Version mismatch: .*Ray: 2.59.0", joined)


# --- how a job ends before its time


@pytest.fixture
def submit(cluster, tmp_path):
    """Return a function that submits a job which works until it is stopped, and waits until it does."""
    project = Project(tmp_path, cluster.home)

    def start(*command, **environment):
        started = project.start(
            sys.executable, "-c", *command, RAY_ADDRESS=cluster.jobs, PYTHONPATH=str(ROOT), **environment
        )
        started.wait_until(lambda: "\nat work\n" in started.output)
        return started

    yield start
    project.close()


def wait_for_end(started):
    """Wait until nothing of a job and of those who submitted it is left; the head is on this machine."""
    left = psutil.wait_procs(started.project.processes(), timeout=60)[1]
    assert not left, started.output
    started.process.wait()


def test_a_job_ends_with_the_dvc_that_wanted_it(submit):
    started = submit(STARTER, SUBMIT, DVC_STAGE="timeit")
    # The job, who submitted it, and who started that.
    assert len(started.project.processes("python")) >= 3
    started.process.kill()
    wait_for_end(started)

    assert "\nerror: DVC, which started this stage, is gone\njob timeit-" in started.output
    assert not list(started.project.path("data").iterdir())


@pytest.mark.soak
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_job_ends_with_who_submitted_it(submit, number, status):
    started = submit(SUBMIT)
    started.process.send_signal(number)
    output = started.wait()

    assert started.process.returncode == status
    assert output.endswith(" is being stopped\n")
    wait_for_end(started)


@pytest.mark.soak
def test_a_job_that_lost_who_submitted_it_ends_before_the_next_one_starts(submit):
    lost = submit(SUBMIT)
    job = lost.output.split(" job ")[1].split()[0]
    lost.process.kill()
    lost.process.wait()
    (worker,) = (each for each in lost.project.processes("python") if "timeit" in each.cmdline())
    next_one = submit(SUBMIT)

    assert next_one.output.startswith(f"job {job} is being stopped\n")
    assert not worker.is_running()
    next_one.process.terminate()
    wait_for_end(next_one)


@pytest.mark.soak
def test_a_head_that_dies_while_a_job_runs(cluster, tmp_path):
    started = Cluster(cluster.home)
    project = Project(tmp_path, cluster.home)
    command = project.start(sys.executable, "-c", SUBMIT, RAY_ADDRESS=started.jobs, PYTHONPATH=str(ROOT))
    command.wait_until(lambda: "\nat work\n" in command.output)
    started.kill()
    output = command.wait()
    started.close()
    project.close()

    assert command.process.returncode == 1
    assert re.search(
        r"\nerror: RAY_ADDRESS=\S+: the job server has not answered for 60 s, and what becomes of job", output
    )


# --- all of it


@pytest.mark.soak
def test_the_whole_pipeline_from_a_clean_clone(projects, finished, cluster):
    project = projects.new("by-jobs")
    token = cluster.home / ".ray" / "auth_token"
    output = project.run("dvc", "repro", timeout=900, RAY_ADDRESS=cluster.jobs, RAY_AUTH_TOKEN_PATH=str(token))

    assert "preprocess: job preprocess-" in output
    assert "train: job train-" in output
    assert hashes(project.path("data")) == hashes(finished.path("data"))
    curves = [
        np.genfromtxt(each.path("reports/train/curves.csv"), delimiter=",", names=True) for each in (project, finished)
    ]
    for name in ("train_mse", "val_mse"):
        np.testing.assert_allclose(curves[0][name], curves[1][name], rtol=1e-3)
    assert "up to date" in project.run("dvc", "status")
