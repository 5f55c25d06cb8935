import itertools

import numpy as np
import pytest

from pipeline.clips import Clip, Clips, Rejection
from pipeline.errors import ResourceError
from pipeline.loader import Loader
from pipeline.narrowing import DEATHS, MAX_DEADLY, DiedError, Divisible, narrow
from pipeline.planner import plan_starts
from pipeline.recording import Facts
from pipeline.units import Survey, Unit
from tests.sounds import write_corpus

CLIPS = tuple(Clip(f"{name}.wav", f"/sounds/{name}.wav") for name in "abcdefg")
ALL_FACTS = tuple(
    Facts(clip.clip_id, 8000, 1, 100 + place, 0, 100 + place, "libsndfile", (0, 0, 0))
    for place, clip in enumerate(CLIPS)
)


def names_of(unit):
    """Return the first letters of a unit's clips, without those that are condemned."""
    condemned = {each.clip_id for each in unit.condemned}
    return "".join(clip.clip_id[0] for clip in unit.clips if clip.clip_id not in condemned)


class Workers:
    """Workers that die of some clips, of some only together, or of the first so many attempts at anything."""

    def __init__(self, deadly="", together="\0", n_accidents=0):
        self.deadly = set(deadly)
        self.together = set(together)
        self.n_accidents = n_accidents
        self.n_died = 0

    def attempt(self, unit, deaths):
        for _ in range(deaths):
            clips = set(names_of(unit))
            if not (self.n_died < self.n_accidents or self.deadly & clips or self.together <= clips):
                return unit
            self.n_died += 1
        raise DiedError("killed")


@pytest.mark.parametrize("unit", [Unit("0", CLIPS, 7, ALL_FACTS), Survey(0, CLIPS)], ids=["unit", "survey"])
@pytest.mark.parametrize(
    "deadly", ["", *(each for n in (1, 2, 7) for each in map("".join, itertools.combinations("abcdefg", n)))]
)
def test_what_is_deadly_is_found_wherever_it_is(unit, deadly):
    workers = Workers(deadly)
    done = narrow(workers.attempt, unit)

    assert names_of(done) == "".join(name for name in "abcdefg" if name not in deadly)
    assert done.condemned == tuple(
        Rejection(f"{name}.wav", "worker died", f"the process that worked on it died {DEATHS} times") for name in deadly
    )
    # A worker for each level of halves above a clip, and what it takes to condemn it.
    assert workers.n_died <= len(deadly) * (3 + DEATHS)


def test_a_clip_that_fills_units_is_condemned_as_it_is():
    unit = Unit("0.000001", CLIPS[:1], 10, ALL_FACTS[:1], range(10, 20))
    done = narrow(Workers("a").attempt, unit)

    assert (done.clips, done.facts, done.segments, done.n_clips) == ((), (), range(10, 20), 0)
    assert [each.clip_id for each in done.condemned] == ["a.wav"]


@pytest.mark.parametrize("n_accidents", range(1, 5))
def test_accidents_condemn_nothing(n_accidents):
    unit = Unit("0", CLIPS, 7)

    assert narrow(Workers(n_accidents=n_accidents).attempt, unit) == unit


def test_clips_that_are_deadly_only_together():
    with pytest.raises(
        ResourceError,
        match=r"^a unit of work lost its worker process 3 times, alone too, and by no part of it alone: kil",
    ):
        narrow(Workers(together="ag").attempt, Unit("0", CLIPS, 7))


def test_where_everything_is_deadly_no_file_is_the_reason():
    clips = tuple(Clip(f"{number}.wav", "") for number in range(1000))
    workers = Workers("0123456789")
    with pytest.raises(ResourceError, match=r"^more than 16 parts of one unit of work are deadly to workers: killed$"):
        narrow(workers.attempt, Unit("0", clips, 1000))

    assert workers.n_died < (MAX_DEADLY + 1) * (10 + DEATHS)


# --- what units are without some of their clips


@pytest.fixture
def maker(make_pipeline, monkeypatch):
    """What works on units, where each clip has a shard of its own size."""
    from pipeline import preprocessing

    made = []
    real = preprocessing.ShardMaker
    monkeypatch.setattr(preprocessing, "ShardMaker", lambda *parts: made.append(real(*parts)) or made[-1])

    def make(corpus):
        make_pipeline().preprocess(corpus)
        return made[-1]

    return make


def test_units_are_divisible():
    assert isinstance(Unit("0", CLIPS, 7), Divisible)
    assert isinstance(Survey(0, CLIPS), Divisible)


def test_a_unit_without_a_clip_is_the_unit_of_the_others(tmp_path, rng, maker):
    corpus = write_corpus(tmp_path / "corpus", rng, 6)
    work = maker(corpus)
    clips = Clips(f"{corpus}/", tuple(f"speaker{n % 2}/{n}.wav" for n in range(6)))
    (unit,) = plan_starts(clips, 1)
    (culprit,) = (half for half in halves_of(unit) if half.clips == clips[2:3])
    without = work.make(unit.without([culprit], "worker died", "thrice"))
    others = work.make(Unit(unit.prefix, clips.take([0, 1, 3, 4, 5]), 5))

    assert without.shard == others.shard
    assert without.rows == others.rows
    assert (without.n_clips, others.n_clips) == (6, 5)
    assert without.rejected == (Rejection("speaker0/2.wav", "worker died", "thrice"),)


def halves_of(unit):
    """Yield a unit's single clips."""
    halves = unit.halves()
    if not halves:
        yield unit
    for half in halves:
        yield from halves_of(half)


def test_trials_leave_nothing_behind(tmp_path, rng, maker):
    corpus = write_corpus(tmp_path / "corpus", rng, 3)
    work = maker(corpus)
    before = sorted((tmp_path / "out" / "spectrograms").iterdir())
    (first, second) = Unit("0", tuple(Clip(path.name, str(path)) for path in sorted(corpus.rglob("*.wav"))), 3).halves()
    results = [work.make(first), work.make(second)]

    assert [len(each.rows) for each in results] == [1, 2]
    assert [each.shard for each in results] == [None, None]
    assert sorted((tmp_path / "out" / "spectrograms").iterdir()) == before


def test_a_unit_of_nothing_but_condemned_clips(tmp_path, rng, maker):
    work = maker(write_corpus(tmp_path / "corpus", rng, 3))
    unit = Unit("0", CLIPS[:2], 2)
    result = work.make(unit.without(unit.halves(), "worker died", "thrice"))

    assert result.shard is None
    assert [each.clip_id for each in result.rejected] == ["a.wav", "b.wav"]


def test_a_survey_opens_no_condemned_clip(tmp_path, rng, maker):
    corpus = write_corpus(tmp_path / "corpus", rng, 2)
    work = maker(corpus)
    good = Clip("speaker0/0.wav", str(corpus / "speaker0" / "0.wav"))
    bad = Clip("speaker1/1.wav", "/nowhere")
    survey = Survey(0, (bad, good))
    surveyed = work.survey(survey.without([survey.halves()[0]], "worker died", "thrice"))

    assert surveyed.n_clips == 2
    assert surveyed.facts == (Rejection(bad.clip_id, "worker died", "thrice"), Loader().examine(good.path))


def test_an_earlier_run_does_not_bring_a_condemned_clip_back(tmp_path, rng, make_pipeline):
    corpus = write_corpus(tmp_path / "corpus", rng, 3)
    make_pipeline().preprocess(corpus)
    units = []

    def condemn_all_but_one(function, planned):
        units.extend(planned)
        (unit,) = planned
        singles = [*halves_of(unit)]
        yield function(unit.without(singles[1:], "worker died", "thrice"))

    report = make_pipeline(max_rejected_share=0.9).preprocess(corpus, condemn_all_but_one)

    assert len(report.rejected) == 2
    assert (report.counts["clips"], report.counts["reused"], report.counts["removed"]) == (1, 1, 2)
    assert np.isin([each.clip_id for each in report.rejected], [clip.clip_id for clip in units[0].clips]).all()
