import itertools
import os
import signal
import sys

import pytest
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RuntimeEnvSetupError, WorkerCrashedError

from pipeline import engine, planner
from pipeline.errors import AudioError, ResourceError
from pipeline.units import Survey
from tests.pipeline.deadly import FatalLoader
from tests.projects import ROOT, Project
from tests.sounds import digest, write_corpus


@pytest.fixture
def corpus(tmp_path, rng, monkeypatch):
    """Return a folder of 14 clips, of which a shard holds 4."""
    monkeypatch.setattr(planner, "SHARD_BYTES", 4 << 16)
    return write_corpus(tmp_path / "corpus", rng, 14)


def on_ray(num_workers, **options):
    """Return `engine.map_units` with a number of workers."""
    return lambda function, units: engine.map_units(function, units, num_workers, **options)


def die_once(marker):
    """Kill this process, unless a marker says that it has been done."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


# --- connecting


@pytest.mark.parametrize(
    ("wanted", "cpus_each", "found"), [("all", 1, 8), ("all", 3, 2), ("all", 9, 1), (8, 1, 8), (2, 4, 2)]
)
def test_workers_that_there_are_cpus_for(wanted, cpus_each, found):
    assert engine.check_workers("resources.train_workers", wanted, cpus_each, cpus=8) == found


@pytest.mark.parametrize(("wanted", "cpus_each"), [(9, 1), (3, 3)])
def test_more_workers_than_cpus(wanted, cpus_each):
    message = f"^resources.train_workers={wanted} of {cpus_each} CPU each is more than Ray reaches: 8 CPUs$"
    with pytest.raises(ResourceError, match=message):
        engine.check_workers("resources.train_workers", wanted, cpus_each, cpus=8)


def test_an_embedded_ray_reaches_this_machines_cpus(cpus):
    assert 1 <= cpus <= os.cpu_count()


def test_an_embedded_ray_joins_no_cluster(tmp_path):
    project = Project(tmp_path, tmp_path)
    # Which Ray leaves of a head that was killed, and joins where nothing else is said.
    note = project.ray / "ray" / "ray_current_cluster"
    note.parent.mkdir(parents=True)
    note.write_text("127.0.0.1:1")
    code = "from pipeline import engine\nwith engine.connect() as cpus: print(cpus)"
    output = project.run(sys.executable, "-c", code, timeout=120, PYTHONPATH=str(ROOT))
    project.close()

    assert 1 <= int(output) <= os.cpu_count()


# --- mapping


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_are_those_of_map(num_workers):
    units = list(range(20))

    assert sorted(engine.map_units(hex, units, num_workers)) == sorted(map(hex, units))


@pytest.mark.usefixtures("cpus")
def test_one_worker_works_in_order():
    assert list(engine.map_units(hex, range(10), 1)) == list(map(hex, range(10)))


@pytest.mark.usefixtures("cpus")
def test_no_units_are_no_results():
    assert list(engine.map_units(hex, [], 2)) == []


@pytest.mark.usefixtures("cpus")
def test_units_are_drawn_as_workers_come_free():
    drawn = itertools.count()
    results = engine.map_units(hex, drawn, 2)
    assert {next(results) for _ in range(5)} <= {hex(unit) for unit in range(6)}
    results.close()

    # Two at a time, and one more for each result.
    assert next(drawn) == 6


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(
    "error", [ZeroDivisionError("seventh unit"), AudioError("seventh", "unit"), KeyError("seventh unit")]
)
def test_what_a_unit_raises_is_raised_as_itself(error):
    def fail(unit):
        if unit == 7:
            raise error
        return unit

    with pytest.raises(type(error), match="seventh") as caught:
        list(engine.map_units(fail, range(20), 2))
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


@pytest.mark.usefixtures("cpus")
def test_a_worker_that_dies_is_replaced(tmp_path):
    def work(unit):
        if unit == 3:
            die_once(tmp_path / "died")
        return unit**2

    assert sorted(engine.map_units(work, range(6), 2)) == [0, 1, 4, 9, 16, 25]
    assert (tmp_path / "died").exists()


@pytest.mark.usefixtures("cpus")
def test_a_unit_that_always_kills_its_worker():
    with pytest.raises(ResourceError, match=r"^a unit of work lost its worker process 2 times: The worker died"):
        list(engine.map_units(lambda _: os._exit(1), [0], 1, deaths=2))


def test_deaths_of_workers_are_counted_and_those_of_nodes_are_no_units_fault():
    attempts = engine._Attempts("a unit", deaths=3)
    node, lost, worker = NodeDiedError("gone"), ObjectLostError("0" * 56, "", ""), WorkerCrashedError()
    found = [attempts.may_go_on(error) for error in (*[node, lost] * 5, worker, OutOfMemoryError("full"), worker)]

    assert found == [True] * 12 + [False]
    with pytest.raises(ResourceError, match=r"^a unit of work cannot be done: gone$"):
        attempts.may_go_on(node)


def test_what_no_other_attempt_would_help():
    with pytest.raises(ResourceError, match=r"^a unit of work cannot be done: .*no such package"):
        engine._Attempts("a unit", deaths=3).may_go_on(RuntimeEnvSetupError("no such\npackage"))


def test_many_deadly_units_are_no_files_fault():
    attempts = engine._Attempts(Survey(0, ()), deaths=3, n_died=3)

    assert engine._check_deadly(attempts, WorkerCrashedError(), n_others=15) == attempts.unit
    with pytest.raises(ResourceError, match=r"^more than 16 units of work have each lost their worker process 3 times"):
        engine._check_deadly(attempts, WorkerCrashedError(), n_others=16)


# --- preprocessing on Ray


@pytest.mark.usefixtures("cpus")
def test_bytes_are_the_same_serially_and_on_one_worker_and_on_two(tmp_path, corpus, make_pipeline):
    make_pipeline("serial").preprocess(corpus)
    make_pipeline("one").preprocess(corpus, on_ray(1))
    make_pipeline("two").preprocess(corpus, on_ray(2))
    make_pipeline("backwards").preprocess(corpus, lambda function, units: on_ray(2)(function, units[::-1]))

    assert len(list((tmp_path / "serial" / "spectrograms").iterdir())) > 3
    assert len({digest(tmp_path / folder) for folder in ("serial", "one", "two", "backwards")}) == 1


@pytest.mark.usefixtures("cpus")
def test_a_worker_that_dies_changes_no_byte(tmp_path, corpus, make_pipeline):
    make_pipeline("serial").preprocess(corpus)

    def map_units(function, units):
        def work(unit):
            result = function(unit)
            # When its shard is written, and nobody knows.
            if unit.prefix == units[1].prefix:
                die_once(tmp_path / "died")
            return result

        return engine.map_units(work, units, 2)

    make_pipeline("killed").preprocess(corpus, map_units)

    assert (tmp_path / "died").exists()
    assert digest(tmp_path / "killed") == digest(tmp_path / "serial")


def rename(corpus, names):
    """Give some clips of a corpus names that workers die of, and return the ids that they have then."""
    for name, moment in names.items():
        path = corpus / f"{name}.wav"
        path.rename(path.with_stem(f"{path.stem}-dies-at-{moment}"))
    return [f"{name}-dies-at-{moment}.wav" for name, moment in names.items()]


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(
    ("segment", "names"),
    [
        ("first", {"speaker1/3": "load"}),
        pytest.param("all", {"speaker0/0": "examine", "speaker1/3": "load"}, marks=pytest.mark.soak),
    ],
)
def test_a_file_that_workers_die_of_is_rejected_and_changes_no_other_byte(
    tmp_path, corpus, make_pipeline, segment, names
):
    options = {"segment": segment, "max_rejected_share": 0.2}
    clip_ids = rename(corpus, names)
    report = make_pipeline("killed", FatalLoader(), **options).preprocess(corpus, on_ray(2, deaths=1))
    for clip_id in clip_ids:
        (corpus / clip_id).unlink()
    quiet = make_pipeline("quiet", **options).preprocess(corpus)

    detail = "the process that worked on it died 3 times"
    assert [(each.clip_id, each.reason, each.detail) for each in report.rejected] == [
        (clip_id, "worker died", detail) for clip_id in clip_ids
    ]
    assert len(quiet.store.shards) == 4
    assert digest(tmp_path / "killed") == digest(tmp_path / "quiet")
