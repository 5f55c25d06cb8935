"""What every stage's command line shares: `--params`, `--verbose`, and errors as one line with exit status 1."""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline import PARENT
from pipeline.errors import GenerativeMusicError, ResourceError
from pipeline.params import PARAMS_FILE, PipelineParams, read_params
from pipeline.submission import IN_JOB

_END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


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
        _enter_project(arguments)
        main(arguments)
    except GenerativeMusicError as error:
        if arguments.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@contextmanager
def stoppable() -> Iterator[None]:
    """Unwind this process, within a `with` block, when it is asked to end or DVC is gone, as it is at Ctrl-C."""
    before = {each: signal.signal(each, _unwind) for each in _END_SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _unwind(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _enter_project(arguments: argparse.Namespace) -> None:
    """Go from the copy of the code that `ray job submit` has made on a node into the project's folder."""
    if IN_JOB not in os.environ or "working_dir_files" not in Path.cwd().parts:
        return
    folder = read_params(PipelineParams, arguments.params).resources.cluster_folder
    if folder is None:
        raise ResourceError(
            "resources.cluster_folder must name the project's folder, as this cluster's nodes see it: this job runs in "
            "a copy of the code, which Ray removes in the end"
        )
    try:
        os.chdir(folder)
    except OSError as error:
        raise ResourceError(
            f"resources.cluster_folder={folder} cannot be entered on node {socket.gethostname()}: {error.strerror}"
        ) from error


def _end_with_parent() -> None:
    """End this process when the DVC that started it is gone, as if it had been killed too.

    A killed DVC leaves its stage running, and its next `repro` would start another one beside it, in the same files.
    """
    while os.getppid() == PARENT:
        time.sleep(0.2)
    print("error: DVC, which started this stage, is gone", file=sys.stderr, flush=True)
    if signal.getsignal(signal.SIGTERM) is _unwind:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        os._exit(1)
