"""What every stage's command line shares: `--params`, `--verbose`, and errors as one line with exit status 1."""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import PARENT
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
    if "DVC_STAGE" in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        main(arguments)
    except GenerativeMusicError as error:
        if arguments.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _end_with_parent() -> None:
    """End this process when the DVC that started it is gone, as if it had been killed too.

    A killed DVC leaves its stage running, and its next `repro` would start another one beside it, in the same files.
    """
    while os.getppid() == PARENT:
        time.sleep(0.2)
    print("error: DVC, which started this stage, is gone", file=sys.stderr, flush=True)
    os._exit(1)
