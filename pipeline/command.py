"""What every stage's command line shares: `--params`, `--verbose`, and errors as one line with exit status 1."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import GenerativeMusicError
from pipeline.params import PARAMS_FILE


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every stage has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--params", type=Path, default=PARAMS_FILE, help="the parameter file (default: %(default)s)")
    made.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    return made


def run(main: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Run a stage; an error that input caused becomes one line on standard error and exit status 1."""
    try:
        main(arguments)
    except GenerativeMusicError as error:
        if arguments.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
