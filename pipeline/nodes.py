"""What the nodes of a cluster must have in common, looked at on each of them before any work starts."""

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import packages, storage, versions
from pipeline.errors import ResourceError, one_line

_HINT = "docs/cluster.md says what nodes must share"
# Nodes in one line.
_NAMED = 5

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
    """Return the nodes that get work: a head without CPUs gets none, and need not see what work needs."""
    return [
        Node(each["NodeID"], each["NodeManagerHostname"], each["NodeManagerAddress"])
        for each in staying()
        if each["Resources"].get("CPU")
    ]


def staying() -> list[dict[str, Any]]:
    """Return what Ray says of the living nodes, without those that are being drained, which get no new work."""
    going = ray._private.state.state.get_draining_nodes()
    return [each for each in ray.nodes() if each["Alive"] and each["NodeID"] not in going]  # type: ignore[no-untyped-call]


def hostnames() -> list[str]:
    """Return the names of the machines that all living nodes are on."""
    return [each["NodeManagerHostname"] for each in ray.nodes() if each["Alive"]]  # type: ignore[no-untyped-call]


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
                reason = one_line(error)
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


def warn_of_processors(here: Mapping[str, Any]) -> None:
    """Say in a line on which nodes the last bits of rows may be others.

    Parameters
    ----------
    here : mapping
        What `versions.processor` returns on this machine.
    """
    others = [str(node) for node, there in on_each(versions.processor).items() if there != here]
    if others:
        named = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if others[_NAMED:] else "")
        print(
            f"warning: {named}: not the kind of processor that {socket.gethostname()} has: the last bits of rows that "
            "are computed there may differ (dB values agree to 1e-4); for the same bytes in every run, start this on "
            "one of their kind and drain the others",
            flush=True,
        )


def check_reads(paths: Iterable[Path]) -> None:
    """Refuse paths that a node does not see as this machine does; nothing is written there.

    Parameters
    ----------
    paths : iterable of Path
        Absolute. A node must find a folder too, or a file of the same size.

    Raises
    ------
    ResourceError
        With path and node.
    """
    here = {path: look_at(path) for path in paths}
    for node, there in on_each(partial(_look_at_all, tuple(here))).items():
        for path, found in there.items():
            if found != here[path]:
                raise ResourceError(
                    f"{path} is {found} on node {node}, and {here[path]} on {socket.gethostname()}; {_HINT}"
                )


def check_writes(locations: Iterable[str]) -> None:
    """Refuse storages that a node cannot write, or that are not there what they are here.

    Parameters
    ----------
    locations : iterable of str
        As `pipeline.storage` has them.

    Raises
    ------
    ResourceError
        With location and node.
    """
    for location in locations:
        with storage.probe(location) as seen:
            for node, reason in on_each(partial(_why_not, location, seen)).items():
                if reason:
                    raise ResourceError(f"node {node} cannot use what is shared: {reason}; {_HINT}")


def look_at(path: Path) -> str:
    """Return in words what lies at a path."""
    try:
        kind = "a folder" if path.is_dir() else f"a file of {path.stat().st_size} bytes"
    except OSError as error:
        return f"not to be seen ({error.strerror})"
    return kind if os.access(path, os.R_OK) else f"{kind} that may not be read"


def _why_not(location: str, seen: str) -> str:
    """Return why this node cannot use a storage in which another machine has left a probe, or nothing."""
    try:
        storage.check(location, seen)
    except ResourceError as error:
        return str(error)
    return ""


def _look_at_all(paths: Iterable[Path]) -> dict[Path, str]:
    return {path: look_at(path) for path in paths}


def _call(function: Callable[[], Found]) -> Found:
    return function()
