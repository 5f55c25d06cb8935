"""Search for better parameters with Ray Tune: `python -m training.search --space NAME=DISTRIBUTION ... --trials N`.

Trials train on the spectrograms that the preprocess stage has made, each in a process of its own; those that do badly
are stopped early (ASHA). Each is a run in MLflow under one parent. Ends with the winner as arguments of `dvc exp run`.
"""

import argparse
import math
import secrets
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from pipeline import command, engine
from pipeline.errors import ParameterError, ResourceError
from pipeline.packages import TRAINING
from pipeline.params import read_params
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.storage import open_storage
from pipeline.store import Store
from training import tracking, tracking_origin
from training.params import Params
from training.paths import checkpoint_location, shared_paths
from training.progress import Epoch
from training.space import parse_space, with_values
from training.tracking_search import SearchRun, search_run
from training.trial import Search, run_trial

_EPOCH = tuple(Epoch.__dataclass_fields__)


class Follower(tune.Callback):
    """Prints and tracks every trial from the driver, so that trials talk to nobody but Ray."""

    def __init__(self, run: SearchRun, params: Params) -> None:
        self._run = run
        self._params = params
        self._run_ids: dict[str, str] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Make the trial's run."""
        del iteration, info
        number = trials.index(trial) + 1
        self._run_ids[trial.trial_id] = self._run.start_trial(number, with_values(self._params, trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Send the epoch that has ended."""
        del iteration, trials, info
        self._run.deliver(self._run_ids[trial.trial_id], epoch_of(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the run of a trial that has finished, or was stopped."""
        del iteration, info
        self._end(trials, trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """End the run of a trial that has failed."""
        del iteration, info
        self._end(trials, trial, failed=True)

    def _end(self, trials: list[Any], trial: Any, failed: bool) -> None:
        settings = with_values(self._params, trial.config).train
        last = trial.last_result or {}
        stopped = not failed and last.get("epoch", 0) < settings.epochs
        self._run.end_trial(self._run_ids[trial.trial_id], failed, stopped)
        outcome = "failed" if failed else "stopped" if stopped else "finished"
        print(
            f"search: trial {trials.index(trial) + 1} {outcome} after epoch {last.get('epoch', 0)}, val_mse "
            f"{last.get('val_mse', math.nan):.6f}: {shown(trial.config)}",
            flush=True,
        )


def epoch_of(result: dict[str, Any]) -> Epoch:
    """Return the epoch that a trial has reported, without what Tune adds."""
    return Epoch(**{name: result[name] for name in _EPOCH})


def shown(config: dict[str, Any]) -> str:
    """Return drawn values as `name=value` in one line."""
    return " ".join(f"{name}={value}" for name, value in config.items())


def run_search(
    params: Params, space: dict[str, Any], store: Store, run: SearchRun, arguments: argparse.Namespace
) -> tuple[dict[str, Any], Epoch]:
    """Run all trials, and return the values of the best and its best epoch.

    Raises
    ------
    ResourceError
        No trial has come to an epoch's end.
    """
    storage = params.resources.storage
    place = open_storage(checkpoint_location(f"search-{secrets.token_hex(4)}", storage))
    index = None
    if storage is not None:
        index = place.at("index").location
        store.share(index)
    search = Search(params, str(SPECTROGRAMS.absolute()), str(TABLE.absolute()), place.location, index)
    resources = {"cpu": float(params.resources.cpus_per_worker), "gpu": float(params.resources.use_gpu)}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, search=search), resources),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_mse",
            mode="min",
            num_samples=arguments.trials,
            search_alg=BasicVariantGenerator(random_state=arguments.seed),
            scheduler=ASHAScheduler("epoch", max_t=params.train.epochs, grace_period=arguments.grace),
            # TensorFlow takes its settings once in a process.
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(storage_path=place.location, verbose=0, callbacks=[Follower(run, params)]),
    )
    try:
        results = tuner.fit()
    finally:
        place.clear()
    if results.num_errors == len(results):
        reason = " ".join(str(results.errors[0]).split())
        raise ResourceError(f"all {len(results)} trials failed, the first with: {reason}")
    best = results.get_best_result(scope="all")
    assert best.config is not None
    assert best.metrics_dataframe is not None
    rows = best.metrics_dataframe.to_dict("records")
    return best.config, epoch_of(min(rows, key=lambda row: row["val_mse"]))


def main(arguments: argparse.Namespace) -> None:
    """Search, and print the winner."""
    params = read_params(Params, arguments.params)
    space = parse_space(arguments.space, params)
    if not 1 <= arguments.grace <= params.train.epochs or arguments.trials < 1:
        raise ParameterError(
            f"--trials={arguments.trials} must be at least 1, and --grace={arguments.grace} from 1 to "
            f"train.epochs={params.train.epochs}"
        )
    store = Store(SPECTROGRAMS, TABLE, params.resources.storage)
    tracking.check_shared(engine.inspect(TRAINING, *shared_paths(params.resources.storage)))
    with tracking.connect() as client, search_run(client, params, arguments.space) as run:
        tracking_origin.log_data(client, run.run_id, params.corpus.dir, store)
        with engine.connect(arguments.verbose) as cpus:
            engine.check_workers("one trial", 1, params.resources.cpus_per_worker, cpus)
            best = run_search(params, space, store, run, arguments)
        values, epoch = best
        run.log_best(values, epoch)
    print(f"search: best val_mse {epoch.val_mse:.6f} after epoch {epoch.epoch}; MLflow run {run.run_id}")
    print("dvc exp run " + " ".join(f"-S '{name}={value}'" for name, value in values.items()))


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.add_argument("--space", nargs="+", required=True, help="as in 'train.learning_rate=loguniform(1e-4, 1e-2)'")
    parser.add_argument("--trials", type=int, default=16, help="how many (default: %(default)s)")
    parser.add_argument(
        "--grace", type=int, default=2, help="epochs before a trial may be stopped (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the values drawn (default: %(default)s)")
    command.run(engine.stage(main, TRAINING), parser.parse_args())
