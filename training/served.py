"""Which model an address means, before a server is started: `python -m training.served models:/autoencoder@champion`.

MLflow's own server says of an address that means nothing no more than a traceback.
"""

import argparse

import mlflow

from pipeline import command
from training import tracking


def main(arguments: argparse.Namespace) -> None:
    """Say which model an address means, as MLflow's commands take it."""
    with tracking.connect():
        found = mlflow.models.get_model_info(arguments.model)
    print(f"serve: {arguments.model} is the model of run {found.run_id}, made at {found.utc_time_created[:16]} UTC")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="address of a model")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    command.run(main, parser.parse_args())
