"""What `RAY_ADDRESS` may say, and what is said of addresses where no cluster is."""

import http.server
import socket
import threading

import pytest
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.thirdparty.pathspec import PathSpec

from pipeline import cluster, engine, jobs
from pipeline.errors import ResourceError
from tests.clusters import free_ports


@pytest.fixture(autouse=True, scope="module")
def _token():
    """See to it that this person has a token, as an embedded Ray does: without one, nothing is sent to any address."""
    ensure_token_if_auth_enabled()


@pytest.fixture
def web_server():
    """The port of a server that knows nothing of Ray."""
    with http.server.HTTPServer(("", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("", "embedded"),
        ("auto", "cluster"),
        ("head:6379", "cluster"),
        ("http://head:8265", "jobs"),
        ("https://head", "jobs"),
    ],
)
def test_what_an_address_names(monkeypatch, address, kind):
    monkeypatch.setenv("RAY_ADDRESS", address)

    assert cluster.kind() == kind


def test_no_address_is_an_embedded_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    assert cluster.kind() == "embedded"


@pytest.mark.parametrize(
    ("address", "reason"),
    [("ray://head:10001", "is Ray Client's, which Ray Train does not support; must be"), ("s3://head", "must be")],
)
def test_an_address_of_another_kind(monkeypatch, address, reason):
    monkeypatch.setenv("RAY_ADDRESS", address)

    with pytest.raises(
        ResourceError, match=f"^RAY_ADDRESS={address} {reason} unset, 'auto' or host:port .*http://head:8265"
    ):
        engine.connect().__enter__()


@pytest.mark.parametrize("prefix", ["", "http://"])
def test_an_address_where_nobody_listens(monkeypatch, prefix):
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"{prefix}127.0.0.1:{port}")

    with pytest.raises(ResourceError, match=f"^RAY_ADDRESS={prefix}127.0.0.1:{port}: no.*Connection refused"):
        jobs.connect() if prefix else engine.connect().__enter__()


def test_a_host_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_S", 1.0)
    with socket.create_server(("", 0)) as silent:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(ResourceError, match=r"no head of a Ray cluster answers there: Deadline Exceeded$"):
            engine.connect().__enter__()


@pytest.mark.parametrize(
    ("address", "what"), [("127.0.0.1:{}", "head of a Ray cluster"), ("http://127.0.0.1:{}", "Ray job server")]
)
def test_a_server_of_something_else(monkeypatch, web_server, address, what):
    address = address.format(web_server)
    monkeypatch.setenv("RAY_ADDRESS", address)

    with pytest.raises(ResourceError, match=f"^RAY_ADDRESS={address}: no {what} answers there: "):
        jobs.connect() if "http" in address else engine.connect().__enter__()


@pytest.mark.parametrize("address", ["http://", "http://head:port"])
def test_an_address_without_a_host_or_with_half_a_port(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)

    with pytest.raises(ResourceError, match=f"^RAY_ADDRESS={address} must be as in http://head:8265$"):
        jobs.connect()


@pytest.mark.parametrize("name", ["ray", "RAY_AUTH_TOKEN", "nothing"])
def test_what_is_said_of_a_token_that_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" if name == "RAY_AUTH_TOKEN" else "")
    if name == "ray":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("1")
    expected = {
        "ray": "does not accept the token in ~/.ray/auth_token",
        "RAY_AUTH_TOKEN": "does not accept the token in RAY_AUTH_TOKEN",
        "nothing": "asks for a token, and this machine has none",
    }

    assert f"RAY_ADDRESS=auto: the cluster {expected[name]}: put " in cluster.refused_token()


def test_the_projects_rayignore_says_what_travels(pytestconfig):
    lines = (pytestconfig.rootpath / ".rayignore").read_text(encoding="utf-8").splitlines()

    assert tuple(line for line in lines if not line.startswith("#")) == cluster.TRAVELS


@pytest.mark.parametrize(
    ("path", "travels"),
    [
        ("pipeline/stages/preprocess.py", True),
        ("training/templates/listen.css", True),
        ("params.yaml", True),
        ("pipeline/.env", False),
        ("training/__pycache__/step.cpython-311.pyc", False),
        (".env", False),
        (".git", False),
        (".venv", False),
        ("data", False),
        ("mlflow.db", False),
        ("tests", False),
        ("x", False),
    ],
)
def test_what_travels(path, travels):
    excluded = PathSpec.from_lines("gitwildmatch", cluster.TRAVELS)

    assert not excluded.match_file(".")
    assert excluded.match_file(path) != travels


class Busy:
    """A job server that takes none."""

    def submit_job(self, **_):
        raise RuntimeError(
            "Request failed with status code 500: No available agent to submit job,\nplease try again later."
        )


def test_a_job_that_the_server_does_not_take(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    message = (
        r"^RAY_ADDRESS=http://127\.0\.0\.1:8265: the job server takes no job: Request failed with status code 500: No "
        r"available agent to submit job, please try again later\.; where two Rays run on one machine, each wants a "
        r"--dashboard-agent-listen-port of its own$"
    )
    with pytest.raises(ResourceError, match=message):
        jobs._submit(Busy(), entrypoint="true")
