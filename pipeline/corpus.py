"""A folder of sounds as a list of clips, each with an id, a label, a group and a split.

A clip is known by its path relative to the corpus, so that two files of one name in two folders are two clips.
"""

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.clips import Clips, Rejection
from pipeline.errors import CorpusError
from pipeline.signatures import identify

Split = Literal["train", "validation", "test"]

# Suffixes of sound. A file that has one is a clip whatever it holds, so that a damaged one is reported and not
# overlooked; of all others the content decides.
AUDIO_SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .voc .sph .nist .paf .ircam "
    ".svx .8svx .m4a .m4b .aac .mka .wma".split()
)


@dataclass(frozen=True)
class Corpus:
    """What a folder holds: clips, sorted by id; entries that are no audio, counted; and what cannot be read."""

    folder: Path
    clips: Clips
    n_ignored: int
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """What a clip's id says of it."""

    label: str | None
    group: str
    split: Split


@dataclass(frozen=True, slots=True)
class Descriptions:
    """What the ids of a corpus say of its clips, as columns."""

    labels: Sequence[str | None]
    groups: Sequence[str]
    splits: Sequence[Split]


def list_clips(folder: Path) -> Corpus:
    """List the recordings below a folder.

    A file is a clip when its content begins as sound does, or its name ends as that of sound. Hidden files and all
    others are counted as ignored. A link that loops, a broken link and what cannot be read are rejected by name.
    Links to files and folders are followed.

    Raises
    ------
    CorpusError
        The folder is missing, is none, or holds no audio.
    """
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise CorpusError(f"corpus folder {str(folder)!r} {found}")
    # Absolute, since a worker of a cluster runs in another folder.
    listing = _Listing(os.fspath(folder.absolute()))
    listing.walk(listing.folder, "", frozenset())
    clips = listing.clips()
    if not clips and not listing.rejected:
        ignored = f" ({listing.n_ignored} other files were ignored)" if listing.n_ignored else ""
        raise CorpusError(f"corpus folder {str(folder)!r} holds no audio file{ignored}")
    return Corpus(folder, clips, listing.n_ignored, tuple(listing.rejected))


def hash_prefix(text: str, n_bits: int) -> int:
    """Return the first `n_bits` (at most 64) bits of a text's SHA-256."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - n_bits)


def hash_prefixes(texts: Iterable[str]) -> NDArray[np.uint64]:
    """Return the first 64 bits of each text's SHA-256."""
    digests = (hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.fromiter(digests, dtype="S8").view(">u8").astype(np.uint64)


class Splitter:
    """Reads label and group off a clip's id, and deals groups out to splits.

    A group falls where its hash falls, so it never stands in two splits, and stays where it is when the corpus
    grows. A split that would be empty takes the group that was nearest to it.

    Parameters
    ----------
    label, group : str, optional
        Regular expressions searched in the id, with a group of that name. A clip without a match has no label, and
        is its own group.
    test : str, optional
        Regular expression of the ids of a corpus's own test set; then `test_share` is not used.
    validation_share, test_share : float
        Of the groups.
    seed : int
        Other seeds deal otherwise.
    """

    def __init__(
        self,
        label: str | None = None,
        group: str | None = None,
        test: str | None = None,
        validation_share: float = 0.1,
        test_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        self._label = re.compile(label) if label else None
        self._group = re.compile(group) if group else None
        self._test = re.compile(test) if test else None
        self.validation_share = validation_share
        self.test_share = test_share
        self.seed = seed

    def describe(self, clip_ids: Sequence[str]) -> list[Description]:
        """Return label, group and split of each clip of a corpus.

        Raises
        ------
        CorpusError
            The test pattern takes no clip, every clip, or only some clips of a group.
        """
        found = self.describe_all(clip_ids)
        return [*map(Description, found.labels, found.groups, found.splits)]

    def describe_all(self, clip_ids: Sequence[str]) -> Descriptions:
        """Return what `describe` does as columns, in less time and memory; errors as of that."""
        groups = clip_ids
        if self._group is not None:
            groups = [_match(self._group, "group", clip_id) or clip_id for clip_id in clip_ids]
        labels: list[str | None] = [None] * len(clip_ids)
        if self._label is not None:
            labels = [_match(self._label, "label", clip_id) for clip_id in clip_ids]
        splits = self._deal(clip_ids, groups)
        return Descriptions(labels, groups, [splits.get(group, "train") for group in groups])

    def _deal(self, clip_ids: Sequence[str], groups: Sequence[str]) -> dict[str, Split]:
        """Return the split of each group that is not for training."""
        splits: dict[str, Split] = {}
        if self._test is not None:
            splits = self._match_test(clip_ids, groups)
        # By name before, for groups that fall on one place.
        others = sorted(set(groups).difference(splits))
        place = (hash_prefixes(f"{self.seed}/{group}" for group in others) >> np.uint64(11)) / 2.0**53
        test_share = 0.0 if self._test is not None else self.test_share
        n_test = int(np.count_nonzero(place < test_share))
        n_held_out = int(np.count_nonzero(place < test_share + self.validation_share))
        # Where there are too few groups for three splits, training comes first, then validation, then test.
        n_others = len(others) - 1 - bool(self.validation_share)
        n_test = max(0, min(n_others, max(n_test, bool(test_share))))
        n_held_out = max(0, min(len(others) - 1, max(n_held_out, n_test + bool(self.validation_share))))
        held_out = [others[index] for index in np.argsort(place, kind="stable")[:n_held_out].tolist()]
        splits.update(zip(held_out[:n_test], repeat("test")))
        splits.update(zip(held_out[n_test:], repeat("validation")))
        return splits

    def _match_test(self, clip_ids: Sequence[str], groups: Sequence[str]) -> dict[str, Split]:
        """Return the groups of a corpus's own test set, and refuse those that only partly belong to it."""
        assert self._test is not None
        members = Counter(groups)
        chosen = Counter(group for clip_id, group in zip(clip_ids, groups, strict=True) if self._test.search(clip_id))
        for group, count in chosen.items():
            if count < members[group]:
                raise CorpusError(
                    f"split.test={self._test.pattern!r} matches {count} of the {members[group]} clips of group "
                    f"{group!r}; a group must stand in one split, so make split.group finer"
                )
        if not chosen or len(chosen) == len(members):
            raise CorpusError(
                f"split.test={self._test.pattern!r} matches {sum(chosen.values())} of {len(clip_ids)} clips, and must "
                "match some and leave some to train on"
            )
        return dict.fromkeys(chosen, "test")


def _match(pattern: re.Pattern[str] | None, group: str, clip_id: str) -> str | None:
    """Return a named group of the first match, or None."""
    match = pattern.search(clip_id) if pattern else None
    return match[group] if match else None


@dataclass
class _Listing:
    """What is found below a folder."""

    folder: str
    names: list[str] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    n_ignored: int = 0

    def walk(self, folder: str, prefix: str, above: frozenset[tuple[int, int]]) -> None:
        """Note what a folder and those below it hold; their names begin with `prefix`."""
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                self._reject(prefix, "loop", "a link leads back to a folder that it lies in")
                return
            # One entry at a time: all of them take more memory than what is kept.
            with os.scandir(folder) as entries:
                for entry in entries:
                    self._note(entry, prefix + entry.name, above | {identity})
        except OSError as error:
            self._reject(prefix, "unreadable", error.strerror or str(error))

    def _note(self, entry: os.DirEntry[str], name: str, above: frozenset[tuple[int, int]]) -> None:
        """Note one entry of a folder."""
        if entry.name.startswith("."):
            self.n_ignored += 1
            return
        try:
            if entry.is_dir():
                self.walk(entry.path, f"{name}/", above)
            elif name[name.rfind(".") :].lower() in AUDIO_SUFFIXES:
                if entry.is_file() or stat.S_ISREG(entry.stat().st_mode):
                    self.names.append(name)
                else:
                    self._reject(name, "unreadable", "not a regular file")
            # A pipe would wait for ever; what a broken link without a suffix was, nobody knows.
            elif entry.is_file() and _holds_sound(entry.path):
                self.names.append(name)
            else:
                self.n_ignored += 1
        except OSError as error:  # a link to itself, through a folder that may not be entered, or no permission
            self._reject(name, "unreadable", error.strerror or str(error))

    def clips(self) -> Clips:
        """Return the recordings that were found, by their ids."""
        names, folder = sorted(self.names), os.path.join(self.folder, "")
        if all(map(str.isascii, names)):
            return Clips(folder, tuple(names))
        paths: dict[str, str] = {}
        for name in names:
            clip_id = _clip_id(name)
            if clip_id in paths:
                self._reject(name, "same id", "another file's name reads the same in UTF-8")
            else:
                paths[clip_id] = name
        odd = {clip_id: folder + name for clip_id, name in paths.items() if clip_id != name}
        return Clips(folder, tuple(sorted(paths)), odd)

    def _reject(self, name: str, reason: str, detail: str) -> None:
        self.rejected.append(Rejection(_clip_id(name), reason, detail))


def _holds_sound(path: str) -> bool:
    """Return whether a file begins as sound does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return identify(partial(os.pread, descriptor)) is not None
    finally:
        os.close(descriptor)


def _clip_id(name: str) -> str:
    """Return a relative path as text that any file format can hold."""
    name = name.rstrip("/")
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")
