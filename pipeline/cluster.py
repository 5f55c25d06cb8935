"""Where Ray is: what `RAY_ADDRESS` may say, what travels to other nodes, and what is wrong with a connection."""

import json
import os
import socket
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError, RuntimeEnvSetupError

import pipeline
from pipeline.errors import ResourceError, one_line
from pipeline.submission import IN_JOB

# What nodes are sent, as lines of a `.rayignore`: the two packages and the parameters, and of those nothing hidden and
# nothing compiled. The project's own `.rayignore` says the same to `ray job submit`.
TRAVELS = (
    "/[!.]*",
    "/.?*",
    "!/pipeline",
    "!/pipeline/**",
    "!/training",
    "!/training/**",
    "!/params.yaml",
    ".?*",
    "__pycache__",
)
# Dead hosts do not answer at all.
_CONNECT_S = 10.0

Kind = Literal["embedded", "cluster", "jobs"]


def address() -> str:
    """Return where Ray is wanted: nothing for an embedded one."""
    return os.environ.get("RAY_ADDRESS", "")


def kind() -> Kind:
    """Return what `RAY_ADDRESS` names.

    Raises
    ------
    ResourceError
        Nothing that stages can use.
    """
    wanted = address()
    if not wanted:
        return "embedded"
    scheme, separator, _ = wanted.partition("://")
    if not separator:
        return "cluster"
    if scheme in {"http", "https"}:
        return "jobs"
    reason = "is Ray Client's, which Ray Train does not support; " if scheme == "ray" else ""
    raise ResourceError(
        f"RAY_ADDRESS={wanted} {reason}must be unset, 'auto' or host:port on a machine that is part of the cluster, or "
        "http://head:8265 on any other"
    )


def runtime_env() -> dict[str, Any]:
    """Return what gives nodes this project's code: Ray copies it to each node that works, and starts workers there."""
    # What Ray leaves out by itself is left out here, and it would warn of each.
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "__pycache__")
    return {"working_dir": str(Path(pipeline.__file__).resolve().parents[1]), "excludes": list(TRAVELS)}


def join(**options: Any) -> None:
    """Connect to the cluster that `RAY_ADDRESS` names, as one of its drivers.

    Raises
    ------
    ResourceError
        Within seconds: no cluster answers there, or it does not accept this machine.
    """
    wanted = address()
    try:
        found = canonicalize_bootstrap_address(wanted)
        if found is None:
            raise ResourceError(
                f"RAY_ADDRESS={wanted}: no node of a cluster runs on this machine (`ray start` starts one)"
            )
        _knock(found)
        ray.init(address=found, runtime_env=None if _has_code() else runtime_env(), **options)
    except AuthenticationError as error:
        raise ResourceError(refused_token()) from error
    except (ConnectionError, ValueError, RuntimeError, RuntimeEnvSetupError) as error:
        reason = one_line(error)
        raise ResourceError(
            f"RAY_ADDRESS={wanted}: the cluster cannot be joined from this machine: {reason}"
        ) from error


def _has_code() -> bool:
    """Return whether this is a job that was submitted together with its code."""
    job = json.loads(os.environ.get(IN_JOB) or "{}")
    return "working_dir" in (job.get("runtime_env") or {})


def _knock(found: str) -> None:
    """Ask a head whether it is one, which `ray.init` does for minutes, and whether it knows this machine's token."""
    wanted = address()
    channel = init_grpc_channel(found)
    try:
        stub: Any = NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
        reply = stub.CheckAlive(CheckAliveRequest(), timeout=_CONNECT_S)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise ResourceError(refused_token()) from error
        reason = " ".join(error.details().split())
        raise ResourceError(f"RAY_ADDRESS={wanted}: no head of a Ray cluster answers there: {reason}") from error
    finally:
        channel.close()
    if reply.ray_version != ray.__version__:
        raise ResourceError(
            f"RAY_ADDRESS={wanted}: the cluster has Ray {reply.ray_version}, and this machine {ray.__version__}: "
            "install the same on both, as in requirements/run.txt"
        )


def reach(default_port: int) -> None:
    """Refuse the address of a job server where nobody listens.

    Raises
    ------
    ResourceError
        Within seconds.
    """
    wanted = address()
    try:
        parts = urlsplit(wanted)
        host, port = parts.hostname, parts.port or default_port
    except ValueError:
        host = None
    if not host:
        raise ResourceError(f"RAY_ADDRESS={wanted} must be as in http://head:{default_port}")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ResourceError(
            f"RAY_ADDRESS={wanted}: nothing answers at port {port} of {host} ({error.strerror or error}): is the head "
            "started with its dashboard, and does a firewall let this machine through?"
        ) from error


def refused_token() -> str:
    """Return in words that a cluster does not know this machine's token, and what to do."""
    source = next(
        (name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)), "~/.ray/auth_token"
    )
    has_token = source != "~/.ray/auth_token" or Path(source).expanduser().is_file()
    reason = f"does not accept the token in {source}" if has_token else "asks for a token, and this machine has none"
    return (
        f"RAY_ADDRESS={address()}: the cluster {reason}: put the one that `ray get-auth-token` prints on the head into "
        "~/.ray/auth_token or RAY_AUTH_TOKEN"
    )
