import hashlib
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clips import Clip, Clips, ids_of
from pipeline.corpus import Splitter, hash_prefix, hash_prefixes, list_clips
from pipeline.errors import CorpusError
from tests.sounds import sine, write


def touch(folder, *names):
    """Make empty files: a name of sound is enough to be listed."""
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def ids(corpus):
    return [clip.clip_id for clip in corpus.clips]


def test_one_base_name_in_two_folders_is_two_clips(tmp_path):
    corpus = list_clips(touch(tmp_path, "b/a.wav", "a/a.wav", "a.wav"))

    assert ids(corpus) == ["a.wav", "a/a.wav", "b/a.wav"]
    assert [os.path.relpath(clip.path, tmp_path) for clip in corpus.clips] == ids(corpus)


def test_clips_are_found_from_other_folders_too(tmp_path, monkeypatch):
    touch(tmp_path / "here" / "sounds", "a/b.wav")
    monkeypatch.chdir(tmp_path / "here")
    corpus = list_clips(Path("sounds"))

    assert [*corpus.clips] == [Clip("a/b.wav", str(tmp_path / "here" / "sounds" / "a" / "b.wav"))]


def test_ids_do_not_depend_on_where_the_corpus_is(tmp_path):
    here = list_clips(touch(tmp_path / "here", "x/1.wav", "2.flac"))
    there = list_clips(touch(tmp_path / "else" / "where", "2.flac", "x/1.wav"))

    assert ids(here) == ids(there)


@pytest.mark.parametrize(
    "name",
    ["two words.wav", "a#b.wav", "a&b.wav", "a%20b.wav", "héé.wav", "日本.wav", "a\nb.wav", "'\".wav", "-rf.wav"],
)
def test_names_stand_as_they_are(tmp_path, name):
    assert [*list_clips(touch(tmp_path, name)).clips] == [Clip(name, str(tmp_path / name))]


def test_bytes_that_are_not_utf8_stand_as_escapes(tmp_path):
    (clip,) = list_clips(touch(tmp_path, b"caf\xe9.wav")).clips

    assert clip.clip_id == r"caf\xe9.wav"
    assert clip.clip_id.encode()
    assert Path(clip.path).is_file()


def test_two_names_that_read_the_same_are_not_mixed_up(tmp_path):
    corpus = list_clips(touch(tmp_path, b"caf\xe9.wav", rb"caf\xe9.wav"))

    assert ids(corpus) == [r"caf\xe9.wav"]
    assert [(each.clip_id, each.reason) for each in corpus.rejected] == [(r"caf\xe9.wav", "same id")]


def test_suffixes_are_read_whatever_their_case(tmp_path):
    assert ids(list_clips(touch(tmp_path, "A.WAV", "b.Flac", "c.mp3", "d.OGG", "e.aiff"))) == [
        "A.WAV",
        "b.Flac",
        "c.mp3",
        "d.OGG",
        "e.aiff",
    ]


def test_what_is_no_audio_is_counted_as_ignored(tmp_path):
    corpus = list_clips(touch(tmp_path, "a.wav", ".DS_Store", "labels.csv", "wav", ".hidden.wav", ".git/b.wav"))

    assert ids(corpus) == ["a.wav"]
    assert corpus.n_ignored == 5
    assert corpus.rejected == ()


@pytest.mark.parametrize("name", ["wav", "take 1", "a.bin", "a.txt", "a.mp4", "folder.d/x", b"caf\xe9"])
def test_sound_is_found_under_any_name(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    write(tmp_path / "a.flac", sine(100.0, 500))
    path.parent.mkdir(exist_ok=True)
    (tmp_path / "a.flac").rename(path)
    touch(tmp_path, "labels.csv")
    corpus = list_clips(tmp_path)

    assert [each.path for each in corpus.clips] == [str(path)]
    assert (corpus.n_ignored, corpus.rejected) == (1, ())


def test_a_damaged_recording_is_a_clip_whatever_its_name(tmp_path):
    # What is wrong with it is for those to say who decode it.
    (tmp_path / "a").write_bytes(b"fLaC and no more")
    (tmp_path / "b.wav").write_bytes(b"text")
    (tmp_path / "c.bin").write_bytes(b"text")

    assert ids(list_clips(tmp_path)) == ["a", "b.wav"]


def test_what_has_no_name_of_sound_and_is_no_file_is_not_opened(tmp_path):
    touch(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    corpus = list_clips(tmp_path)

    assert (ids(corpus), corpus.n_ignored, corpus.rejected) == (["a.wav"], 2, ())


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="wants a file that opens and cannot be read")
def test_a_file_that_cannot_be_read_is_rejected_by_name(tmp_path):
    touch(tmp_path, "a.wav")
    (tmp_path / "x").symlink_to("/proc/self/mem")
    (rejection,) = list_clips(tmp_path).rejected

    assert (rejection.clip_id, rejection.reason, rejection.detail) == ("x", "unreadable", "Input/output error")


def test_links_to_files_and_folders_are_followed(tmp_path):
    touch(tmp_path / "elsewhere", "a.wav", "b.wav")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "folder").symlink_to("../elsewhere")
    (corpus / "file.wav").symlink_to("../elsewhere/a.wav")
    write(tmp_path / "elsewhere" / "c.wav", sine(100.0, 500)).rename(tmp_path / "elsewhere" / "c")
    (corpus / "other").symlink_to("../elsewhere/c")

    assert ids(list_clips(corpus)) == ["file.wav", "folder/a.wav", "folder/b.wav", "folder/c", "other"]


@pytest.mark.parametrize("target", [".", "..", "../inner"])
def test_a_link_back_to_a_folder_above_is_rejected_by_name(tmp_path, target):
    touch(tmp_path, "inner/a.wav")
    (tmp_path / "inner" / "back").symlink_to(target)
    corpus = list_clips(tmp_path)

    assert ids(corpus) == ["inner/a.wav"]
    assert [(each.clip_id, each.reason) for each in corpus.rejected] == [("inner/back", "loop")]


@pytest.mark.parametrize("name", ["self.wav", "self"])
def test_a_link_to_itself_is_rejected_by_name(tmp_path, name):
    touch(tmp_path, "a.wav")
    (tmp_path / name).symlink_to(name)
    corpus = list_clips(tmp_path)

    assert ids(corpus) == ["a.wav"]
    assert [(each.clip_id, each.reason) for each in corpus.rejected] == [(name, "unreadable")]
    assert "symbolic links" in corpus.rejected[0].detail


def test_a_broken_link_is_rejected_by_name(tmp_path):
    touch(tmp_path, "a.wav")
    (tmp_path / "gone.wav").symlink_to("nowhere.wav")
    (rejection,) = list_clips(tmp_path).rejected

    assert (rejection.clip_id, rejection.reason) == ("gone.wav", "unreadable")
    assert rejection.detail == "No such file or directory"


def test_a_fifo_is_rejected_and_not_opened(tmp_path):
    touch(tmp_path, "a.wav")
    os.mkfifo(tmp_path / "x.wav")
    (rejection,) = list_clips(tmp_path).rejected

    assert (rejection.clip_id, rejection.detail) == ("x.wav", "not a regular file")


def test_a_folder_that_cannot_be_read_is_rejected_by_name(tmp_path):
    # Deeper than the system opens by path. Unlike a folder without permissions, root cannot read it either.
    touch(tmp_path, "a.wav")
    name = "d" * 250
    parent = os.open(tmp_path, os.O_RDONLY)
    for _ in range(18):
        os.mkdir(name, dir_fd=parent)
        child = os.open(name, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = child
    os.close(parent)
    corpus = list_clips(tmp_path)

    assert ids(corpus) == ["a.wav"]
    (rejection,) = corpus.rejected
    assert set(rejection.clip_id.split("/")) == {name}
    assert (rejection.reason, rejection.detail) == ("unreadable", "File name too long")


def test_a_missing_folder(tmp_path):
    with pytest.raises(CorpusError, match=r"corpus folder '.*/nowhere' does not exist"):
        list_clips(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder(tmp_path):
    with pytest.raises(CorpusError, match=r"corpus folder '.*/a\.wav' is not a folder"):
        list_clips(touch(tmp_path, "a.wav") / "a.wav")


def test_an_empty_folder(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no audio file$"):
        list_clips(tmp_path)


def test_a_folder_without_audio(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no audio file \(2 other files were ignored\)"):
        list_clips(touch(tmp_path, "labels.csv", "deep/.DS_Store"))


@given(st.lists(st.sampled_from("abcdefg"), unique=True), st.sampled_from(["", "odd"]), st.slices(7), st.data())
def test_clips_are_a_sequence_of_each(names, odd, part, data):
    paths = {"a": odd} if odd else {}
    clips = Clips("/sounds/", tuple(names), paths)
    expected = [Clip(name, paths.get(name) or f"/sounds/{name}") for name in names]
    places = data.draw(st.lists(st.sampled_from(range(len(names))))) if names else []

    assert [*clips] == [clips[place] for place in range(len(clips))] == expected
    assert [*clips[part]] == expected[part]
    assert [*clips.take(places)] == [expected[place] for place in places]
    assert [*pickle.loads(pickle.dumps(clips))] == expected
    assert [*ids_of(clips)] == ids_of(expected) == names


def test_hash_prefix_is_the_first_bits_of_sha256():
    # sha256("abc") = ba7816bf 8f01cfea ...
    assert hash_prefix("abc", 0) == 0
    assert hash_prefix("abc", 1) == 1
    assert hash_prefix("abc", 4) == 0xB
    assert hash_prefix("abc", 32) == 0xBA7816BF
    assert hash_prefix("abc", 64) == 0xBA7816BF8F01CFEA


@given(st.lists(st.text(max_size=5)))
def test_hashes_of_many_texts_are_those_of_each(texts):
    assert hash_prefixes(texts).tolist() == [hash_prefix(text, 64) for text in texts]


# --- splits


def splits(splitter, clip_ids):
    return {clip_id: each.split for clip_id, each in zip(clip_ids, splitter.describe(clip_ids), strict=True)}


groups = st.integers(0, 40).map("g{}".format)
clip_ids = st.lists(st.tuples(groups, st.integers(0, 9)).map(lambda pair: f"{pair[0]}/{pair[1]}.wav"), unique=True)
shares = st.sampled_from([0.0, 0.1, 0.3, 0.45])
GROUP = r"^(?P<group>[^/]+)/"


@given(clip_ids, shares, shares, st.integers(0, 5))
def test_no_group_stands_in_two_splits(clip_ids, validation_share, test_share, seed):
    splitter = Splitter(None, GROUP, None, validation_share, test_share, seed)
    found = {}
    for clip_id, each in zip(clip_ids, splitter.describe(clip_ids), strict=True):
        assert each.group == clip_id.split("/")[0]
        assert found.setdefault(each.group, each.split) == each.split


@given(clip_ids, shares, shares, st.integers(0, 5))
def test_splits_do_not_depend_on_the_order_of_clips(clip_ids, validation_share, test_share, seed):
    splitter = Splitter(None, GROUP, None, validation_share, test_share, seed)

    assert splits(splitter, clip_ids) == splits(splitter, clip_ids[::-1])


@given(clip_ids, shares, shares, st.integers(0, 5))
def test_a_split_of_no_share_is_empty_and_the_others_are_not(clip_ids, validation_share, test_share, seed):
    found = set(splits(Splitter(None, GROUP, None, validation_share, test_share, seed), clip_ids).values())
    wanted = ["train"] + ["validation"] * bool(validation_share) + ["test"] * bool(test_share)
    n_groups = len({clip_id.split("/")[0] for clip_id in clip_ids})

    # Too few groups for all: training comes first, then validation, then test.
    assert found == set(wanted[:n_groups])


def test_shares_are_those_of_the_groups():
    found = list(splits(Splitter(None, None, None, 0.2, 0.1), [f"{index}.wav" for index in range(5000)]).values())

    # Four standard deviations of a binomial count.
    assert abs(found.count("test") - 500) < 4 * (5000 * 0.1 * 0.9) ** 0.5
    assert abs(found.count("validation") - 1000) < 4 * (5000 * 0.2 * 0.8) ** 0.5


def test_clips_stay_where_they_are_when_the_corpus_grows():
    splitter = Splitter(None, GROUP)
    before = splits(splitter, [f"g{group}/{index}.wav" for group in range(200) for index in range(2)])
    after = splits(splitter, [f"g{group}/{index}.wav" for group in range(1000) for index in range(3)])

    assert {clip_id: after[clip_id] for clip_id in before} == before


def test_clips_stay_where_they_are_when_validation_grows():
    clip_ids = [f"{index}.wav" for index in range(500)]
    small, large = (splits(Splitter(None, None, None, share, 0.1), clip_ids) for share in (0.1, 0.3))

    assert {each for each in clip_ids if small[each] == "test"} == {each for each in clip_ids if large[each] == "test"}
    assert all(large[each] == "validation" for each in clip_ids if small[each] == "validation")


def test_other_seeds_deal_otherwise():
    clip_ids = [f"{index}.wav" for index in range(100)]

    assert splits(Splitter(seed=0), clip_ids) != splits(Splitter(seed=1), clip_ids)


@pytest.mark.parametrize(
    ("n_clips", "wanted"),
    [
        (1, ["train"]),
        (2, ["train", "validation"]),
        (3, ["test", "train", "validation"]),
        (4, ["test", "train", "train", "validation"]),
    ],
)
@pytest.mark.parametrize("seed", range(10))
def test_tiny_corpora(n_clips, wanted, seed):
    clip_ids = [f"{index}.wav" for index in range(n_clips)]

    assert sorted(splits(Splitter(None, None, None, 1e-6, 1e-6, seed), clip_ids).values()) == wanted


def test_held_out_shares_never_take_the_last_group():
    for seed in range(30):
        assert splits(Splitter(None, None, None, 0.45, 0.45, seed), ["only.wav"]) == {"only.wav": "train"}


def test_a_corpus_with_its_own_test_set():
    clip_ids = [f"{digit}_{speaker}_{index}.wav" for digit in range(10) for speaker in "ab" for index in range(20)]
    found = splits(Splitter(test=r"_[0-4]\.wav$", validation_share=0.1, test_share=0.3), clip_ids)

    assert {clip_id for clip_id, split in found.items() if split == "test"} == {
        clip_id for clip_id in clip_ids if int(clip_id.split("_")[2][:-4]) < 5
    }
    assert set(found.values()) == {"train", "validation", "test"}


def test_a_test_pattern_that_cuts_a_group_is_refused():
    splitter = Splitter(None, GROUP, r"/[01]\.wav$")

    with pytest.raises(CorpusError, match=r"matches 2 of the 3 clips of group 'g'; .* make split\.group finer"):
        splitter.describe(["g/0.wav", "g/1.wav", "g/2.wav", "h/0.wav"])


def test_groups_are_dealt_out_by_the_hashes_of_their_names():
    clip_ids = [f"{index}.wav" for index in range(300)]
    place = {clip_id: int(hashlib.sha256(f"5/{clip_id}".encode()).hexdigest()[:16], 16) / 2**64 for clip_id in clip_ids}

    assert splits(Splitter(None, None, None, 0.2, 0.1, 5), clip_ids) == {
        clip_id: "test" if place[clip_id] < 0.1 else "validation" if place[clip_id] < 0.1 + 0.2 else "train"
        for clip_id in clip_ids
    }


def test_labels_and_groups_are_read_off_the_id():
    splitter = Splitter(r"^(?P<label>[^/]+)/", r"^(?P<group>[^/]+/[^_]+)_")
    one, other, bare = splitter.describe(["Flute/60_48.wav", "Flute/60_72.wav", "note.wav"])

    assert (one.label, one.group) == ("Flute", "Flute/60")
    assert (other.label, other.group) == ("Flute", "Flute/60")
    assert (bare.label, bare.group) == (None, "note.wav")


@pytest.mark.parametrize(("pattern", "matched"), [("nothing like it", 0), (r"\.wav$", 3)])
def test_a_test_pattern_that_takes_no_clip_or_every_clip_is_refused(pattern, matched):
    with pytest.raises(CorpusError, match=rf"matches {matched} of 3 clips"):
        Splitter(test=pattern).describe(["a.wav", "b.wav", "c.wav"])
