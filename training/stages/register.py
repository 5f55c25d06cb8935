"""Stage `register`: the trained and judged model as a version of the registered model `autoencoder`."""

import argparse
import json

from pipeline import command
from pipeline.params import read_params
from training import tracking
from training.description import Description
from training.params import Params
from training.paths import CURVES, MODEL, REGISTERED, TEST_METRICS
from training.progress import read_curves

MODEL_NAME = "autoencoder"


def main(arguments: argparse.Namespace) -> None:
    """Register the model that is in `models/autoencoder`, once."""
    params = read_params(Params, arguments.params)
    description = Description.load(MODEL)
    figures = json.loads(TEST_METRICS.read_text(encoding="utf-8"))
    tags = {
        "training_key": description.training_key,
        "data_digest": description.data_digest,
        **{name: f"{value:.6g}" for name, value in figures.items()},
    }
    with (
        tracking.connect() as client,
        tracking.same_run(client, description.training_key, read_curves(CURVES), params) as run,
    ):
        version, is_champion = tracking.register(client, MODEL_NAME, run, tags)
    REGISTERED.parent.mkdir(parents=True, exist_ok=True)
    marker = {"model": MODEL_NAME, "training_key": description.training_key, "test_mse": figures["test_mse"]}
    REGISTERED.write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    champion = "the champion" if is_champion else "not the champion, which stays"
    print(f"register: version {version} of {MODEL_NAME}, {champion}")


if __name__ == "__main__":
    command.run(main, command.parser(__doc__).parse_args())
