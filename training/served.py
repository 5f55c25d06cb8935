"""Which model an address means, before a server is started: `python -m training.served models:/autoencoder@champion`.

MLflow's own server says of an address that means nothing, and of a port that is taken, no more than a traceback.
"""

import argparse
import os
import socket

import mlflow

from pipeline import command
from pipeline.errors import ResourceError
from training import tracking


def check_port(port: int) -> None:
    """Refuse a port of this machine that cannot be listened on.

    Raises
    ------
    ResourceError
    """
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError) as error:
        # Python says the address once more in its own words.
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else error
        raise ResourceError(f"port {port} of this machine: {reason}; say another with PORT=") from error


def main(arguments: argparse.Namespace) -> None:
    """Say which model an address means, as MLflow's commands take it."""
    if arguments.port is not None:
        check_port(arguments.port)
    if arguments.model is None:
        return
    with tracking.connect():
        found = mlflow.models.get_model_info(arguments.model)
    print(f"serve: {arguments.model} is the model of run {found.run_id}, made at {found.utc_time_created[:16]} UTC")
    if arguments.port is not None:
        address = f"http://127.0.0.1:{arguments.port}"
        print(f"serve: {address}/ping answers when it is ready, and {address}/invocations takes requests")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="address of a model")
    parser.add_argument("--port", type=int, help="that the server is to listen on")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    command.run(main, parser.parse_args())
