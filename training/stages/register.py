"""Stage `register`: the trained and judged model as a version of the registered model `autoencoder`.

A version becomes champion when it keeps the held-out sounds better than the champion does.
"""

import argparse
import json
import tempfile
from pathlib import Path

from pipeline import command
from pipeline.errors import ModelError
from pipeline.params import read_params
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.store import Store
from training import tracking, tracking_origin
from training.description import Description
from training.params import Params
from training.paths import MODEL, REGISTERED, TEST_METRICS
from training.tracking_delivery import stage_run
from training.tracking_registry import PREVIOUS, Registry, Version

_DISTANCE = "log_spectral_distance_db"
_VERDICT = "verdict"


def judge(registry: Registry, candidate: Version, params: Params) -> str:
    """Promote a version if it is better than the champion, and return what was decided and why."""
    champion = registry.champion()
    if champion is None or champion.number == candidate.number:
        registry.promote(candidate.number)
        return "the champion: there is no other"
    try:
        ours_db, theirs_db, n_sounds = distances_db(registry, champion, candidate, params)
    except ModelError as error:
        return f"not the champion: version {champion.number}, which stays, cannot be read here: {error}"
    again = "" if same_data(champion, candidate) else ", judged again on these, since its data were others"
    compared = (
        f"log-spectral distance {ours_db:.3f} dB on {n_sounds} held-out sounds, and version {champion.number} has "
        f"{theirs_db:.3f} dB{again}"
    )
    if ours_db < theirs_db:
        registry.promote(candidate.number)
        return f"the new champion: {compared}; that one is now {PREVIOUS!r}"
    return f"not the champion: {compared}; that one stays"


def same_data(champion: Version, candidate: Version) -> bool:
    """Return whether two versions were trained on the same spectrograms, and so judged on the same sounds."""
    return champion.tags.get("data_digest") == candidate.tags["data_digest"]


def distances_db(registry: Registry, champion: Version, candidate: Version, params: Params) -> tuple[float, float, int]:
    """Return the log-spectral distances of candidate and champion on held-out sounds, and the number of these.

    What an earlier comparison found of the champion stands when both have the same data.
    """
    # TensorFlow takes seconds to import, and a first version is compared with none.
    from training.comparison import held_out_sounds, load_sound, mean_distance_db  # noqa: PLC0415

    sounds = held_out_sounds(Store(SPECTROGRAMS, TABLE, params.resources.storage), Path(params.corpus.dir))
    duration_s = params.preprocess.duration_s
    ours = load_sound(MODEL)
    if same_data(champion, candidate) and _DISTANCE in champion.tags:
        theirs_db = float(champion.tags[_DISTANCE])
        ours_db = mean_distance_db(ours, sounds, ours.sample_rate, duration_s)
    else:
        with tempfile.TemporaryDirectory() as folder:
            theirs = load_sound(Path(registry.download(champion.number, folder)))
        # At the higher of both rates, so that what one of them cannot hold counts against it.
        sample_rate = max(ours.sample_rate, theirs.sample_rate)
        ours_db, theirs_db = (mean_distance_db(sound, sounds, sample_rate, duration_s) for sound in (ours, theirs))
    if same_data(champion, candidate):
        for version, distance_db in ((candidate, ours_db), (champion, theirs_db)):
            registry.set_tags(version.number, {_DISTANCE: repr(distance_db)})
    return ours_db, theirs_db, len(sounds)


def main(arguments: argparse.Namespace) -> None:
    """Register the model that is in `models/autoencoder`, and judge it, once."""
    params = read_params(Params, arguments.params)
    description = Description.load(MODEL)
    figures = json.loads(TEST_METRICS.read_text(encoding="utf-8"))
    tags = {
        "training_key": description.training_key,
        "data_digest": description.data_digest,
        **{name: f"{value:.6g}" for name, value in figures.items()},
    }
    with stage_run(description.training_key, params) as (client, run):
        # Where this server made a run that another one has the model of.
        tracking.log_model(client, run.info.run_id, MODEL)
        registry = Registry(client)
        version = registry.register(run, tags)
        if _VERDICT in version.tags:
            # A person may have thought otherwise since.
            verdict = f"judged when it was registered: {version.tags[_VERDICT]}"
        else:
            verdict = judge(registry, version, params)
            registry.set_tags(version.number, {_VERDICT: verdict})
        # Only now do the locks name what train and evaluate made.
        tracking_origin.log_recorded(client, run.info.run_id)
    REGISTERED.parent.mkdir(parents=True, exist_ok=True)
    marker = {
        "model": registry.name,
        "mlflow_run": run.info.run_id,
        "training_key": description.training_key,
        "test_mse": figures["test_mse"],
    }
    REGISTERED.write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    print(f"register: version {version.number} of {registry.name}, {verdict}")


if __name__ == "__main__":
    command.run(main, command.parser(__doc__).parse_args())
