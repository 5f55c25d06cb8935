"""Recordings by their ids, and those that cannot be used: what is known before anything is read of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload


@dataclass(frozen=True, slots=True)
class Clip:
    r"""One recording of a corpus.

    Attributes
    ----------
    clip_id : str
        Path relative to the corpus, with `/` on every system. Bytes that are not UTF-8 stand as `\xNN`.
    path : str
        Where the file is, absolute, as the operating system wants it.
    """

    clip_id: str
    path: str


@dataclass(frozen=True, slots=True)
class Clips(Sequence[Clip]):
    """Recordings below a folder. Holds their ids, and makes a `Clip` when it is asked for one, since those take memory.

    Attributes
    ----------
    folder : str
        Absolute, with the separator that stands before an id.
    ids : tuple of str
        In the order of the clips.
    paths : mapping
        By their ids, of those that do not lie where their id says.
    """

    folder: str
    ids: tuple[str, ...]
    paths: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Clip: ...
    @overload
    def __getitem__(self, place: slice) -> "Clips": ...
    def __getitem__(self, place: int | slice) -> "Clip | Clips":
        """Return one clip, or some that follow each other."""
        found = self.ids[place]
        return self._clip(found) if isinstance(found, str) else self._some(found)

    def __iter__(self) -> Iterator[Clip]:
        """Yield every clip."""
        return map(self._clip, self.ids)

    def take(self, places: Iterable[int]) -> "Clips":
        """Return those at some places."""
        return self._some(tuple([self.ids[place] for place in places]))

    def _clip(self, clip_id: str) -> Clip:
        return Clip(clip_id, self.paths.get(clip_id) or self.folder + clip_id)

    def _some(self, ids: tuple[str, ...]) -> "Clips":
        paths = {clip_id: self.paths[clip_id] for clip_id in ids if clip_id in self.paths} if self.paths else {}
        return Clips(self.folder, ids, paths)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A recording that cannot be used, with a short reason and what was found."""

    clip_id: str
    reason: str
    detail: str


def ids_of(clips: Sequence[Clip]) -> Sequence[str]:
    """Return the ids of clips."""
    return clips.ids if isinstance(clips, Clips) else [clip.clip_id for clip in clips]
