"""A loader with decoders that die, for files that say how."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from pipeline.loader import Loader


class DeadlyLoader(Loader):
    """Decodes what others do, and dies of files that begin with the name of a death."""

    def _decode(self, raw):
        raw.seek(0)
        death = raw.read(16).rstrip(b"\n")
        if death == b"SEGFAULT":
            os.kill(os.getpid(), signal.SIGSEGV)
        if death == b"ABORT":
            os.abort()
        if death == b"EXIT":
            os._exit(3)
        if death == b"LOOP":
            while True:
                pass
        if death == b"SLEEP":
            time.sleep(3600)
        if death == b"SWELL":
            np.ones(1 << 36)
        if death == b"RAISE":
            raise ZeroDivisionError("a bug")
        return super()._decode(raw)


class SlowLoader(Loader):
    """Takes its time for a file, and says that it goes on."""

    def examine(self, path, progress=lambda: None):
        self._dawdle(progress)
        return super().examine(path, progress)

    def _decode_heard(self, raw, progress):
        self._dawdle(progress)
        return super()._decode_heard(raw, progress)

    @staticmethod
    def _dawdle(progress):
        for _ in range(4):
            started = time.process_time()
            while time.process_time() < started + 0.8:
                pass
            progress()


class FatalLoader(Loader):
    """Kills the process that works, as the kernel does when memory is short, at files whose names say when."""

    def load_many(self, paths, *arguments, **named):
        wanted = list(paths)
        for path in wanted:
            die_at("load", path)
        return super().load_many(wanted, *arguments, **named)

    def stream(self, path, *arguments):
        die_at("load", path)
        return super().stream(path, *arguments)

    def examine(self, path, *arguments):
        die_at("examine", path)
        return super().examine(path, *arguments)


def die_at(moment, path):
    """Kill this process if a file's name says that it is to die at this moment."""
    if Path(path).stem.endswith(f"-dies-at-{moment}"):
        os.kill(os.getpid(), signal.SIGKILL)
