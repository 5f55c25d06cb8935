"""Which recordings make which shard: a function of their ids and lengths, and of nothing else.

A shard holds the clips whose ids' hashes share a prefix. A recording that would fill one has shards of its own.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline.clips import Clip, Clips
from pipeline.corpus import hash_prefix, hash_prefixes
from pipeline.recording import Facts
from pipeline.units import Survey, Unit

SHARD_BYTES = 32 << 20
# Of a long recording in one shard, however small they are.
SHARD_SEGMENTS = 1024
SURVEY_CLIPS = 128


def plan_surveys(clips: Clips) -> list[Survey]:
    """Return clips in portions to be examined."""
    starts = range(0, len(clips), SURVEY_CLIPS)
    return [Survey(start, clips[start : start + SURVEY_CLIPS]) for start in starts]


def plan_starts(clips: Clips, row_bytes: int) -> list[Unit]:
    """Deal clips out to units by the hash of their ids, about 32 MiB of rows each, a row of each clip."""
    return [Unit(prefix, clips.take(places), len(places)) for prefix, places in _deal(clips.ids, len(clips), row_bytes)]


def plan_segments(clips: Sequence[tuple[Clip, Facts, int]], row_bytes: int, mono: bool) -> list[Unit]:
    """Deal clips out as `plan_starts` does, all segments of each; recordings that fill a unit have units of their own.

    Parameters
    ----------
    clips : sequence of (Clip, Facts, int)
        Each with the number of its segments.
    row_bytes : int
        Size of a row on disk.
    mono : bool
        Whether a segment is one row, or one for each channel.
    """
    limit = max(1, min(SHARD_SEGMENTS, SHARD_BYTES // row_bytes))
    units: list[Unit] = []
    short: list[tuple[Clip, Facts, int]] = []
    for clip, facts, n_segments in clips:
        n_channels = 1 if mono else facts.source_channels
        if n_segments == 1 or n_segments * n_channels <= limit:
            short.append((clip, facts, n_segments * n_channels))
            continue
        step = max(1, limit // n_channels)
        name = f"{hash_prefix(clip.clip_id, 64):016x}"
        for start in range(0, n_segments, step):
            segments = range(start, min(start + step, n_segments))
            prefix = f"{name}.{start // step:06d}"
            units.append(Unit(prefix, (clip,), len(segments) * n_channels, (facts,), segments))
    for prefix, places in _deal(
        [clip.clip_id for clip, _, _ in short], sum(n_rows for _, _, n_rows in short), row_bytes
    ):
        found, found_facts, n_rows = zip(*(short[place] for place in places), strict=True)
        units.append(Unit(prefix, found, sum(n_rows), found_facts))
    return units


def _deal(clip_ids: Iterable[str], n_rows: int, row_bytes: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the first digits of hashes, as many as that many rows need shards, and the places of the ids they are of.

    Prefixes rise, and places behind each do.
    """
    n_bits = max(0, (-(-n_rows * row_bytes // SHARD_BYTES) - 1).bit_length())
    width = max(1, -(-n_bits // 4))
    hashes = hash_prefixes(clip_ids)
    # NumPy does not define a shift by all 64 bits.
    prefixes = hashes >> np.uint64(64 - n_bits) if n_bits else np.zeros_like(hashes)
    order = np.argsort(prefixes, kind="stable")
    found, starts = np.unique(prefixes[order], return_index=True)
    for prefix, places in zip(found.tolist(), np.split(order, starts[1:]), strict=False):
        yield f"{prefix:0{width}x}", places.tolist()
