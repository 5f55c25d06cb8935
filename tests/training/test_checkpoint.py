import dataclasses
import json
import math
import shutil
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline.errors import ModelError
from tests.training.conftest import NETWORK, SHAPE, make_progress, randomised
from training.autoencoder import Autoencoder
from training.checkpoint import Checkpoints
from training.progress import Begun, Progress


class State:
    """Networks and optimizers of some epochs of one training, made once: what matters is that they differ."""

    def __init__(self, number):
        self.autoencoder = randomised(Autoencoder((8, 8, 1), [3], [3], [2], 2), seed=number)
        self.autoencoder.compile(keras.optimizers.schedules.CosineDecay(1e-3, 100))
        optimizer = self.autoencoder.optimizer
        optimizer.build(self.autoencoder.model.trainable_variables)
        rng = np.random.default_rng(number)
        for variable in optimizer.variables:
            variable.assign(rng.integers(1, 1000, variable.shape))

    @property
    def numbers(self):
        variables = [*self.autoencoder.model.weights, *self.autoencoder.optimizer.variables]
        return [np.array(variable.value) for variable in variables]


@pytest.fixture(scope="module")
def states():
    return [State(number) for number in range(4)]


@pytest.fixture(scope="module")
def reader():
    """Return a network and optimizer for checkpoints to be read into."""
    return State(99)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "key")


def assert_equal(found, expected):
    for each, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each, other, strict=True)


def weights(autoencoder):
    return [np.array(variable.value) for variable in autoencoder.model.weights]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- save and resume


def test_nothing_was_saved(checkpoints, reader):
    before = reader.numbers

    assert checkpoints.progress() == checkpoints.resume(reader.autoencoder) == Progress()
    assert_equal(reader.numbers, before)
    checkpoints.remove()


def test_what_was_saved_comes_back(checkpoints, states, reader):
    progress = make_progress(0.5)
    checkpoints.save(states[1].autoencoder, progress)

    assert checkpoints.progress() == progress
    assert checkpoints.resume(reader.autoencoder) == progress
    assert_equal(reader.numbers, states[1].numbers)
    assert_equal(weights(checkpoints.load_best()), weights(states[1].autoencoder))


def test_the_newest_and_the_best_stay(checkpoints, states, reader):
    errors = [0.5, 0.3, 0.4]
    for number in (1, 2, 3):
        checkpoints.save(states[number].autoencoder, make_progress(*errors[:number]))

    assert names(Path(checkpoints.location)) == ["best-00002", "epoch-00003"]
    assert checkpoints.resume(reader.autoencoder) == make_progress(*errors)
    assert_equal(reader.numbers, states[3].numbers)
    assert_equal(weights(checkpoints.load_best()), weights(states[2].autoencoder))
    # Numbers and text only.
    assert {path.suffix for path in Path(checkpoints.location).rglob("*.*")} == {".json", ".h5", ".npz"}


def test_a_checkpoint_is_complete_and_its_numbers_are_exact(checkpoints, states):
    progress = make_progress(math.pi, 1e-300, 5e-324)
    checkpoints.save(states[1].autoencoder, progress)

    assert checkpoints.progress() == progress
    with np.load(Path(checkpoints.location) / "epoch-00003" / "optimizer.npz", allow_pickle=False) as file:
        assert len(file.files) == len(states[1].autoencoder.optimizer.variables)


def test_what_was_saved_within_an_epoch_is_newer_than_the_epoch_and_older_than_the_next(checkpoints, states, reader):
    errors, folder = [0.5, 0.4], Path(checkpoints.location)
    begun = [Begun(steps, ((steps / 3, 0.1), (math.pi, 0.2)), 0.7) for steps in (9, 10)]
    expected = [
        (Progress((), begun[0]), ["epoch-00000-step-00000009"]),
        (make_progress(*errors[:1]), ["best-00001", "epoch-00001"]),
        (dataclasses.replace(make_progress(*errors[:1]), begun=begun[0]), ["best-00001", "epoch-00001-step-00000009"]),
        (dataclasses.replace(make_progress(*errors[:1]), begun=begun[1]), ["best-00001", "epoch-00001-step-00000010"]),
        (make_progress(*errors), ["best-00002", "epoch-00002"]),
    ]
    best = None
    for number, (progress, kept) in enumerate(expected):
        state = states[number % 4]
        checkpoints.save(state.autoencoder, progress)
        best = best if progress.begun else state

        assert names(folder) == kept
        assert checkpoints.progress() == checkpoints.resume(reader.autoencoder) == progress
        assert_equal(reader.numbers, state.numbers)
        if best:
            assert_equal(weights(checkpoints.load_best()), weights(best.autoencoder))


def test_other_trainings_are_left_alone(tmp_path, checkpoints, states):
    other = Checkpoints(tmp_path / "other")
    other.save(states[1].autoencoder, make_progress(0.5))
    checkpoints.save(states[2].autoencoder, make_progress(0.4))
    checkpoints.remove()

    assert not Path(checkpoints.location).exists()
    assert checkpoints.progress() == Progress()
    assert names(tmp_path) == ["other"]
    assert other.progress() == make_progress(0.5)


# --- kills


class Killed(BaseException):
    """What no handler of errors stops, as nothing stops a kill."""


class Killer:
    """Raises at the n-th operation on files; the interpreter tells it of each before it happens."""

    OPERATIONS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.unlink"})

    def __init__(self):
        self.left = math.inf
        sys.addaudithook(self._hear)

    def _hear(self, event, _):
        if event in self.OPERATIONS and threading.current_thread() is threading.main_thread():
            self.left -= 1
            if self.left < 0:
                self.left = math.inf
                raise Killed


@pytest.fixture(scope="module")
def killer():
    return Killer()


def survivors(killer, folder, function):
    """Yield each state of a folder that a kill in `function` leaves, beginning each time with the same."""
    start = folder.with_name("start")
    shutil.copytree(folder, start)
    seen = set()
    for operations in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        killer.left = operations
        try:
            function()
        except Killed:
            state = frozenset(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else None
            if state not in seen:
                seen.add(state)
                yield state
        else:
            killer.left = math.inf
            assert seen
            return
    raise AssertionError("the function never came to its end")


@pytest.mark.parametrize("errors", [(0.5, 0.4, 0.3), (0.5, 0.4, 0.6)], ids=["best", "not best"])
def test_a_kill_while_saving(checkpoints, states, reader, killer, errors):
    """Before the last epoch was saved or after, and nothing between; and the next start gets there."""
    for number in (1, 2):
        checkpoints.save(states[number].autoencoder, make_progress(*errors[:number]))
    saved = {2: states[2], 3: states[3]}
    found_epochs = set()

    for _ in survivors(
        killer, Path(checkpoints.location), lambda: checkpoints.save(states[3].autoencoder, make_progress(*errors))
    ):
        progress = checkpoints.resume(reader.autoencoder)
        found_epochs.add(progress.epoch)
        assert progress == checkpoints.progress() == make_progress(*errors[: progress.epoch])
        assert_equal(reader.numbers, saved[progress.epoch].numbers)
        assert_equal(weights(checkpoints.load_best()), weights(states[progress.best.epoch].autoencoder))

        checkpoints.save(states[3].autoencoder, make_progress(*errors))
        assert names(Path(checkpoints.location)) == [f"best-0000{make_progress(*errors).best.epoch}", "epoch-00003"]
        assert checkpoints.resume(reader.autoencoder) == make_progress(*errors)
        assert_equal(reader.numbers, states[3].numbers)

    assert found_epochs == {2, 3}


def test_a_kill_in_the_first_epoch(checkpoints, states, reader, killer):
    Path(checkpoints.location).mkdir()
    for _ in survivors(
        killer, Path(checkpoints.location), lambda: checkpoints.save(states[1].autoencoder, make_progress(0.5))
    ):
        progress = checkpoints.resume(reader.autoencoder)
        assert progress in (Progress(), make_progress(0.5))
        if progress.epoch:
            assert_equal(reader.numbers, states[1].numbers)
        checkpoints.save(states[1].autoencoder, make_progress(0.5))
        assert names(Path(checkpoints.location)) == ["best-00001", "epoch-00001"]


def test_a_kill_while_removing(tmp_path, checkpoints, states, reader, killer):
    checkpoints.save(states[1].autoencoder, make_progress(0.5))
    checkpoints.save(states[2].autoencoder, make_progress(0.5, 0.6))
    for _ in survivors(killer, Path(checkpoints.location), checkpoints.remove):
        progress = checkpoints.resume(reader.autoencoder)
        assert progress in (Progress(), make_progress(0.5, 0.6))
        if progress.epoch:
            assert_equal(weights(checkpoints.load_best()), weights(states[1].autoencoder))
        checkpoints.remove()
        assert names(tmp_path) == ["start"]


def test_one_who_looks_while_another_saves_sees_whole_epochs(checkpoints, states):
    """The driver reads progress while a worker supersedes and removes what it reads."""
    found, errors = [], []
    done = threading.Event()

    def look():
        try:
            while not done.is_set():
                found.append(checkpoints.progress().epoch)
        except ModelError as error:
            errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(1, 16):
        checkpoints.save(states[number % 4].autoencoder, make_progress(*range(number, 0, -1)))
    done.set()
    thread.join()

    assert not errors
    assert found == sorted(found)
    assert len(set(found)) > 3


# --- damage


@pytest.fixture
def damaged(checkpoints, states):
    """Return checkpoints after an epoch, and its folder to do something to."""
    checkpoints.save(states[1].autoencoder, make_progress(0.5))
    return checkpoints, Path(checkpoints.location) / "epoch-00001"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format_version": 2, "history": []}', "format_version is 2, expected 1"),
        ("", "cannot be read: Expecting value"),
        ("{", "cannot be read: Expecting property name"),
        ("[]", "cannot be read: "),
        ("{}", "cannot be read: 'format_version'"),
        ('{"format_version": 1}', "cannot be read: 'history'"),
        ('{"format_version": 1, "history": [{"epoch": 1}]}', "cannot be read: .*missing 5 required"),
        ('{"format_version": 1, "history": [7]}', "cannot be read: "),
    ],
)
def test_damaged_progress(damaged, reader, content, message):
    checkpoints, folder = damaged
    (folder / "progress.json").write_text(content)

    with pytest.raises(ModelError, match=rf"progress\.json: {message}"):
        checkpoints.progress()
    with pytest.raises(ModelError, match=rf"progress\.json: {message}"):
        checkpoints.resume(reader.autoencoder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_truncated_optimizer(damaged, reader, share):
    checkpoints, folder = damaged
    content = (folder / "optimizer.npz").read_bytes()
    (folder / "optimizer.npz").write_bytes(content[: int(len(content) * share)])

    with pytest.raises(ModelError, match=r"optimizer\.npz: cannot be read: .*; remove .*key to start afresh"):
        checkpoints.resume(reader.autoencoder)


def test_state_of_another_optimizer(damaged, reader):
    checkpoints, folder = damaged
    expected = len(reader.autoencoder.optimizer.variables)
    np.savez(folder / "optimizer.npz", **{"0": np.zeros(3)})

    with pytest.raises(ModelError, match=rf"optimizer\.npz: holds 1 arrays, expected {expected} of this optimizer"):
        checkpoints.resume(reader.autoencoder)


def test_an_optimizer_that_is_pickled_is_refused(damaged, reader):
    checkpoints, folder = damaged
    state = {str(n): np.array([None]) for n in range(len(reader.autoencoder.optimizer.variables))}
    np.savez(folder / "optimizer.npz", **state)

    with pytest.raises(ModelError, match=r"optimizer\.npz: cannot be read: .*allow_pickle=False"):
        checkpoints.resume(reader.autoencoder)


def test_checkpoint_of_another_network(damaged):
    checkpoints, _ = damaged
    other = Autoencoder(SHAPE, **NETWORK)
    other.compile()

    with pytest.raises(ModelError, match=r"input_shape is \[8, 8, 1\], expected \[16, 16, 1\]"):
        checkpoints.resume(other)


def test_progress_is_text(damaged):
    _, folder = damaged
    content = json.loads((folder / "progress.json").read_text())

    assert content == {"format_version": 1, "history": [dataclasses.asdict(make_progress(0.5).history[0])]}
