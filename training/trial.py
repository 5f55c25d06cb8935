"""What one trial of a search does, in a process of its own that Ray Tune starts and stops."""

from dataclasses import asdict, dataclass
from typing import Any

from ray import tune

from pipeline.storage import open_storage
from training.loop import Job, run_worker
from training.params import Params
from training.space import with_values


@dataclass(frozen=True)
class Search:
    """What all trials of a search have in common.

    Attributes
    ----------
    params : Params
        Which every trial changes.
    spectrograms, table, folder : str
        Absolute paths that every worker sees; checkpoints go into the last, which may be a bucket's.
    index : str, optional
        As of `Job`.
    """

    params: Params
    spectrograms: str
    table: str
    folder: str
    index: str | None


def run_trial(config: dict[str, Any], search: Search) -> None:
    """Train with drawn values, in this process alone, and report every epoch."""
    params = with_values(search.params, config)
    job = Job(
        search.spectrograms,
        search.table,
        open_storage(search.folder).at(tune.get_context().get_trial_id()).location,
        params.autoencoder,
        params.train,
        params.resources.cpus_per_worker,
        params.resources.storage,
        search.index,
    )
    run_worker(job, 0, 1, lambda epoch: tune.report(asdict(epoch)))
