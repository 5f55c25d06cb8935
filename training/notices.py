"""TensorFlow, but for the notices on import that none of its settings silence. Standard library only.

On processors for which it uses oneDNN, every process says so, before it has read `TF_CPP_MIN_LOG_LEVEL`.
"""

import importlib.abc
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_NOTICE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|I\d{4} .*\] oneDNN custom operations are on"
)


@contextmanager
def without_notices() -> Iterator[None]:
    """Keep notices off standard error, which everything else reaches when the `with` block ends."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            os.write(2, b"".join(line for line in said if not _NOTICE.match(line)))


class QuietLoader(importlib.abc.Loader):
    """Loads a module as another loader does, without notices."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the other loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Load, without notices."""
        with without_notices():
            self._loader.exec_module(module)


class QuietFinder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow where it is, and lets it load without notices."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where TensorFlow is; of everything else nothing."""
        found = PathFinder.find_spec(fullname, path, target) if fullname == "tensorflow" else None
        if found and found.loader:
            found.loader = QuietLoader(found.loader)
        return found
