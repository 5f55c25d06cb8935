"""Kills from outside, at seeded moments: whatever dies, the same command ends in the same artifacts.

`kill -9` of everything at once is what a machine that loses power looks like to the files, of one process what the
kernel does when memory is short.
"""

import contextlib
import random
import re
import subprocess
import time

import psutil
import pytest

from tests.integration.outcomes import EPOCHS, Outcome, points_of, ran, runs_of

pytestmark = pytest.mark.timeout(600)


def epochs_of(project):
    """Return how many epochs the newest checkpoint holds."""
    names = [path.name for path in project.path("checkpoints").glob("*/epoch-*")]
    return max((int(name.removeprefix("epoch-")) for name in names), default=0)


def train_workers(project):
    """Return the processes of Ray Train's workers."""
    return project.processes("ray::RayTrainWorker")


def kill_one(processes, rng):
    """Kill one of some processes, of which one may have ended by itself."""
    with contextlib.suppress(psutil.Error):
        rng.choice(processes).kill()


class Kills:
    """What was found after each kill of one project, in their order."""

    def __init__(self, project, rng):
        self.project = project
        self.rng = rng
        self.outputs = []
        self._kill_everything_in_preprocess()
        self._kill_everything_in_training()
        self._kill_one_worker_and_then_everything_at_the_end()
        self.outputs.append(project.run("dvc", "repro", "evaluate"))

    def _start(self):
        return self.project.start("dvc", "repro", "evaluate")

    def _kill_everything_in_preprocess(self):
        started = self._start()
        started.wait_until(self.project.path("data/spectrograms").exists)
        time.sleep(self.rng.uniform(0, 1))
        started.kill()
        self.outputs.append(started.output)

    def _kill_everything_in_training(self):
        started = self._start()
        started.wait_until(lambda: epochs_of(self.project) >= 3)
        time.sleep(self.rng.uniform(0, 0.4))
        started.kill()
        self.outputs.append(started.output)
        self.epochs_when_killed = epochs_of(self.project)
        self.runs_when_killed = runs_of(self.project)

    def _kill_one_worker_and_then_everything_at_the_end(self):
        started = self._start()
        started.wait_until(lambda: epochs_of(self.project) > self.epochs_when_killed)
        self.workers_before = train_workers(self.project)
        kill_one(self.workers_before, self.rng)
        self.epochs_when_worker_killed = epochs_of(self.project)
        self.workers_after = started.wait_until(self._other_workers)
        # The stage has ended, and DVC has not yet taken note of it.
        started.wait_until(lambda: "train: best val_mse" in started.output)
        started.kill()
        self.outputs.append(started.output)

    def _other_workers(self):
        return {process.pid for process in train_workers(self.project)} - {
            process.pid for process in self.workers_before
        }


@pytest.fixture(scope="module")
def kills(projects):
    """A project that was killed in preprocess, in training and after it, and that lost a training worker meanwhile."""
    return Kills(projects.new("killed"), random.Random(20240229))


def test_the_kills_fell_where_they_should(kills):
    in_preprocess, in_training, after_training, to_the_end = map(ran, kills.outputs)

    assert in_preprocess == ["pipeline/dvc.yaml:sample_corpus", "preprocess"]
    assert in_training == ["preprocess", "train"]
    assert after_training == ["train"]
    assert to_the_end == ["train", "evaluate"]
    assert 3 <= kills.epochs_when_killed < kills.epochs_when_worker_killed < EPOCHS[-1]
    assert len(kills.workers_before) == 2


def test_a_killed_repro_ends_in_the_same_artifacts(kills, outcome):
    Outcome.of(kills.project).assert_same(outcome)


def test_a_killed_training_goes_on_from_its_last_epoch(kills):
    _, _, after_training, to_the_end = kills.outputs

    assert f"resumed after epoch {kills.epochs_when_killed}\n" in after_training
    assert f"resumed after epoch {EPOCHS[-1]}\n" in to_the_end
    # What was printed before a kill is not printed again.
    printed = [int(epoch) for epoch in re.findall(r"^train: epoch (\d+)/", after_training, re.MULTILINE)]
    assert printed == EPOCHS[kills.epochs_when_killed :]
    assert "train: epoch" not in to_the_end


def test_a_lost_worker_is_replaced(kills):
    assert kills.workers_after
    assert ran(kills.outputs[2]) == ["train"]


def test_a_killed_training_has_one_run_with_each_epoch_once(kills, finished):
    (when_killed,) = kills.runs_when_killed
    (run,) = runs_of(kills.project)
    (quiet,) = runs_of(finished)

    assert run.info.run_id == when_killed.info.run_id
    assert run.info.status == "FINISHED"
    for name in ("train_mse", "val_mse", "learning_rate"):
        assert points_of(kills.project, run, name) == points_of(finished, quiet, name)
    assert [step for step, _ in points_of(kills.project, run, "samples_per_s")] == EPOCHS


def test_nothing_is_left_of_a_killed_run(kills):
    assert list(kills.project.path("checkpoints").iterdir()) == []
    assert [path.name for path in kills.project.folder.glob("mlflow.db*")] == ["mlflow.db"]
    assert not list(kills.project.path("data").rglob("*.partial"))
    # DVC removes the locks of dead processes itself.
    assert "up to date" in kills.project.run("dvc", "status", "evaluate")
    assert kills.project.processes() == []


# --- many kills


def kill_everything(started, rng):
    started.kill()


def kill_dvc(started, rng):
    """Kill DVC alone: the stage that it runs ends by itself, and does not disturb the next run."""
    started.process.kill()
    started.process.wait(10)


def kill_one_process(started, rng):
    """Kill any one process, of DVC, of the stage or of Ray, and let the others end as they will."""
    kill_one(started.project.processes(), rng)
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.process.wait(rng.uniform(0, 60))
    if started.process.poll() is None and rng.random() < 0.5:
        started.kill()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kill", [kill_everything, kill_dvc, kill_one_process], ids=lambda kill: kill.__name__)
def test_ten_kills_at_any_moment(projects, finished, outcome, kill):
    rng = random.Random(kill.__name__)
    n_kills = 0
    while n_kills < 10:
        project = projects.new(kill.__name__)
        told, starts = [], []
        while True:
            started = project.start("dvc", "repro")
            starts.append(started)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.process.wait(rng.uniform(0, finished.seconds if n_kills < 10 else 500))
            if started.process.poll() is None and n_kills < 10:
                kill(started, rng)
                n_kills += 1
                told.append(f"--- kill {n_kills}")
            elif started.process.poll() == 0:
                break
            elif kill is not kill_one_process:
                pytest.fail("\n".join([*told, started.wait()]))
            told.append(started.output)

        # One that lost a process of its own may still have been running beside the next.
        for started in starts:
            started.wait()
        Outcome.of(project).assert_same(outcome)
        assert [run.info.status for run in runs_of(project)].count("FINISHED") == 1, "\n".join(told)
        assert "up to date" in project.run("dvc", "status")
