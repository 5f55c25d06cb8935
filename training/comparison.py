"""Which model keeps sounds better, where models of every kind can be compared: in the sound that comes back.

Errors of spectrograms say nothing between models whose spectrograms differ: fewer bins are easier.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr

from pipeline.corpus import list_clips
from pipeline.errors import CorpusError
from pipeline.loader import Loader
from pipeline.store import Store
from training.description import DESCRIPTION_FILE
from training.metrics import log_spectral_distance_db
from training.sound import SoundAutoencoder

_BATCH = 32
_MOST_SOUNDS = 200


def held_out_sounds(store: Store, corpus: Path) -> list[Path]:
    """Return recordings of a corpus that no model on this store was trained on: at most 200, evenly spaced.

    Raises
    ------
    CorpusError
        One of them is no longer there.
    """
    splits = zip(store.table["clip_id"].to_pylist(), store.table["split"].to_pylist(), strict=True)
    wanted = sorted({clip_id for clip_id, split in splits if split == "test"})
    paths = {clip.clip_id: Path(clip.path) for clip in list_clips(corpus).clips}
    if missing := [clip_id for clip_id in wanted if clip_id not in paths]:
        raise CorpusError(
            f"corpus folder {str(corpus)!r} no longer holds {missing[0]!r}; run the preprocess stage again"
        )
    which = np.linspace(0, len(wanted) - 1, min(len(wanted), _MOST_SOUNDS), dtype=np.int64)
    return [paths[wanted[place]] for place in which]


def load_sound(folder: Path) -> SoundAutoencoder:
    """Return the model whose files lie somewhere below a folder, as a registry keeps them."""
    found = sorted(folder.rglob(DESCRIPTION_FILE))
    return SoundAutoencoder.load(found[0].parent if found else folder)


def mean_distance_db(sound: SoundAutoencoder, paths: Sequence[Path], sample_rate: int, duration_s: float) -> float:
    """Return the mean log-spectral distance between recordings and what a model makes of them.

    Parameters
    ----------
    sound : SoundAutoencoder
    paths : sequence of Path
        Of recordings.
    sample_rate : int
        In Hz, at which both are looked at. Above the model's own, what it cannot hold counts against it.
    duration_s : float
        How much of each recording is looked at.
    """
    reference_loader = Loader(sample_rate, duration_s, mono=True)
    own_loader = Loader(sound.sample_rate, duration_s, mono=True)
    distances = []
    for start in range(0, len(paths), _BATCH):
        batch = paths[start : start + _BATCH]
        references = [reference_loader.load(path).y[0] for path in batch]
        sounds = sound.reconstruct_many([own_loader.load(path).y[:1] for path in batch])
        for y, own in zip(references, sounds, strict=True):
            y_hat = soxr.resample(own[0], sound.sample_rate, sample_rate)
            n_samples = min(len(y), len(y_hat))
            distances.append(log_spectral_distance_db(y[None, :n_samples], y_hat[None, :n_samples]))
    return float(np.concatenate(distances).mean())
