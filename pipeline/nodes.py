"""What the nodes of a cluster must have in common, looked at on each of them before any work starts."""

import os
import secrets
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import packages
from pipeline.errors import ResourceError

_HINT = "docs/cluster.md says what nodes must share"

Found = TypeVar("Found")


@dataclass(frozen=True)
class Node:
    """A node that gets work."""

    node_id: str
    hostname: str
    address: str

    def __str__(self) -> str:
        return f"{self.hostname} ({self.address})"


def nodes() -> list[Node]:
    """Return the living nodes that have CPUs; a head without any gets no work, and need not see what work needs."""
    return [
        Node(each["NodeID"], each["NodeManagerHostname"], each["NodeManagerAddress"])
        for each in ray.nodes()  # type: ignore[no-untyped-call]
        if each["Alive"] and each["Resources"].get("CPU")
    ]


def on_each(function: Callable[[], Found]) -> dict[Node, Found]:
    """Call a function once on every node, beside whatever runs there, and return what each found.

    Parameters
    ----------
    function : callable
        Of a module that nodes can import.

    Raises
    ------
    ResourceError
        A living node could not run it.
    """
    task: Any = ray.remote(num_cpus=0)(_call)
    running = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(
            function
        )
        for node in nodes()
    }
    found = {}
    for node, reference in running.items():
        try:
            found[node] = ray.get(reference)
        except ray.exceptions.RayError as error:
            # A node that has gone meanwhile gets no work either.
            if node in nodes():
                reason = " ".join(str(error).split())
                raise ResourceError(f"node {node} could not be looked at: {reason}") from error
    return found


def check_versions(wanted: Iterable[str]) -> None:
    """Refuse nodes that lack a package, or have another version of it than this machine.

    Parameters
    ----------
    wanted : iterable of str
        Names, as `pipeline.packages` has them.

    Raises
    ------
    ResourceError
        With packages and node.
    """
    names = tuple(wanted)
    here = packages.installed(names)
    for node, there in on_each(partial(packages.installed, names)).items():
        packages.check_same(here, there, f"node {node}")


def check_paths(reads: Iterable[Path] = (), writes: Iterable[Path] = ()) -> None:
    """Refuse paths that a node does not see as this machine does.

    Parameters
    ----------
    reads : iterable of Path
        Absolute. Nothing is written there: a node must find a folder too, or a file of the same size.
    writes : iterable of Path
        Folders, absolute, which are made if need be. What is written here must be read on every node, and the other
        way round, so that the same folder is told from another one of the same name.

    Raises
    ------
    ResourceError
        With path and node.
    """
    here = {path: look_at(path) for path in reads}
    for node, there in on_each(partial(_look_at_all, tuple(here))).items():
        for path, found in there.items():
            if found != here[path]:
                raise ResourceError(
                    f"{path} is {found} on node {node}, and {here[path]} on {socket.gethostname()}; {_HINT}"
                )
    for folder in writes:
        _check_written(folder)


def look_at(path: Path) -> str:
    """Return in words what lies at a path."""
    try:
        kind = "a folder" if path.is_dir() else f"a file of {path.stat().st_size} bytes"
    except OSError as error:
        return f"not to be seen ({error.strerror})"
    return kind if os.access(path, os.R_OK) else f"{kind} that may not be read"


def _check_written(folder: Path) -> None:
    """Refuse a folder in which this machine and a node do not read what the other one has written."""
    token = secrets.token_hex(16)
    probe = folder / f".probe-{token[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text(token, encoding="utf-8")
        for node, answer in on_each(partial(_answer, probe, token)).items():
            reason = answer.reason or ("" if answer.path.exists() else "is another folder")
            if reason:
                raise ResourceError(f"{folder} {reason} on node {node}, and must be shared by all nodes; {_HINT}")
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written to: {error.strerror}") from error
    finally:
        for path in folder.glob(f"{probe.name}*"):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Answer:
    """What a node has written beside a probe, or why it could not."""

    path: Path
    reason: str = ""


def _answer(probe: Path, token: str) -> _Answer:
    """Read a probe on a node, and write another one beside it."""
    answer = probe.with_name(f"{probe.name}-{secrets.token_hex(4)}")
    if not probe.parent.is_dir():
        return _Answer(answer, "is not there")
    try:
        if probe.read_text(encoding="utf-8") != token:
            return _Answer(answer, "is another folder")
        answer.touch()
    except FileNotFoundError:
        return _Answer(answer, "is another folder")
    except OSError as error:
        return _Answer(answer, f"cannot be used ({error.strerror})")
    return _Answer(answer)


def _look_at_all(paths: Iterable[Path]) -> dict[Path, str]:
    return {path: look_at(path) for path in paths}


def _call(function: Callable[[], Found]) -> Found:
    return function()
