"""Back to the champion before this one: `python -m training.rollback`. Once more, and it is as it was."""

import argparse

from pipeline import command
from training import tracking
from training.tracking_registry import Registry


def main(arguments: argparse.Namespace) -> None:
    """Let the aliases `champion` and `previous` change places."""
    del arguments
    with tracking.connect() as client:
        registry = Registry(client)
        champion, previous = registry.roll_back()
    print(f"rollback: version {champion} of {registry.name} is the champion again; version {previous} is 'previous'")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    command.run(main, parser.parse_args())
