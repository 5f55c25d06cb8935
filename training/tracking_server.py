"""MLflow: whether a tracking server answers, and how long to wait for one that does not."""

import os
import re
import socket
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from pipeline.errors import ResourceError, one_line

# MLflow itself would wait for 120 s, and try seven times more, for minutes in between.
_WAITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_ANSWERS_WITHIN_S = 5
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class ServerAwayError(ResourceError):
    """A tracking server does not answer now, and may later."""


def limit_waiting() -> None:
    """Let requests to a server that is away fail within seconds, unless the environment says otherwise."""
    for name, value in _WAITS.items():
        os.environ.setdefault(name, value)


def check_answers(uri: str, advice: str = "") -> None:
    """Refuse a server that does not answer; of files, and of servers that only their own library finds, all pass.

    Parameters
    ----------
    uri : str
    advice : str
        What to do about it, for the end of the line.

    Raises
    ------
    ServerAwayError
        With what the system, or the proxy before the server, says.
    """
    if reason := _why_away(uri):
        raise ServerAwayError(f"MLflow at {without_password(uri)}: {reason}{advice}")


def without_password(uri: str) -> str:
    """Return an address as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", uri)


def _why_away(uri: str) -> str | None:
    parts = urlsplit(uri)
    if parts.scheme in {"http", "https"}:
        return _why_no_http(uri)
    port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    if not parts.hostname or not port:
        return None
    try:
        socket.create_connection((parts.hostname, port), _ANSWERS_WITHIN_S).close()
    except OSError as error:
        return f"{parts.hostname}:{port}: {error.strerror or error}"
    return None


def _why_no_http(uri: str) -> str | None:
    """Ask by MLflow's own client, which knows of proxies and certificates."""
    try:
        response = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]
            "/health",
            "GET",
            max_retries=0,
            timeout=_ANSWERS_WITHIN_S,
            raise_on_status=False,
        )
    except MlflowException as error:
        return one_line(error)
    # What a proxy says whose server is gone.
    return f"status {response.status_code}" if response.status_code >= 500 else None
