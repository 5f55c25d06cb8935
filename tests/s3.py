"""An S3 server of the tests: SeaweedFS on the loopback interface, its files in a folder of its own, gone in the end."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

from pyarrow import fs

BUCKET = "sounds"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "a secret of theirs"}
# What a person's shell may have set, and would lead elsewhere; and no search for a cloud's credentials.
_LEADS_ELSEWHERE = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION")
_STARTS_WITHIN_S = 240


class S3Server:
    """A server with one bucket, which can be killed and started again on the same ports and files.

    Parameters
    ----------
    folder : Path
        Of its files.
    host : str
        Its address.
    """

    def __init__(self, folder, host="127.0.0.1"):
        folder.mkdir()
        self._host = host
        self._folder = folder
        named = list(product(("master", "volume", "filer", "s3"), ("", ".grpc")))
        self._ports = dict(zip(named, free_ports(len(named)), strict=True))
        self.endpoint = f"{host}:{self._ports['s3', '']}"
        self.process = None

    @property
    def _command(self):
        return [
            Path(sys.executable).with_name("weed"), "-logtostderr=true", "server", "-s3", f"-ip={self._host}",
            f"-ip.bind={self._host}", f"-dir={self._folder}",
            *(f"-{name}.port{kind}={port}" for (name, kind), port in self._ports.items()),
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false", "-s3.iam=false",
            "-master.telemetry=false", "-master.electionTimeout=1s", "-master.volumeSizeLimitMB=64", "-volume.max=0",
        ]  # fmt: skip

    def location(self, prefix):
        """Return the address of a prefix of its bucket."""
        return f"s3://{BUCKET}/{prefix}?endpoint_override={self.endpoint}&scheme=http"

    @property
    def environment(self):
        """What programs need to be let in."""
        return {**CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true"}

    @property
    def log(self):
        """What it has printed so far."""
        return Path(f"{self._folder}.log").read_text(encoding="utf-8", errors="backslashreplace")

    @property
    def n_bytes(self):
        """How much it has on its disk."""
        return sum(path.stat().st_size for path in self._folder.glob("*.dat"))

    def start(self):
        """Start it, and wait until it answers."""
        with Path(f"{self._folder}.log").open("ab") as log:
            # It takes the credentials that it lets in from its environment.
            self.process = subprocess.Popen(
                self._command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + _STARTS_WITHIN_S
        while not self._answers():
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            assert time.monotonic() < end, f"the server does not answer:\n{self.log}"
            time.sleep(0.1)

    def kill(self):
        """Kill it by its id, as the kernel does."""
        self.process.kill()
        self.process.wait(60)

    def keys(self, prefix=""):
        """Return the keys of all objects below a prefix, rising."""
        selector = fs.FileSelector(f"{BUCKET}/{prefix}".rstrip("/"), recursive=True, allow_not_found=True)
        infos = self.client().get_file_info(selector)
        return sorted(info.path.removeprefix(f"{BUCKET}/") for info in infos if info.is_file)

    def client(self, **options):
        """Return a client of its own, which knows nothing of the code under test."""
        keys = {"access_key": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secret_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
        return fs.S3FileSystem(**keys, region="us-east-1", scheme="http", endpoint_override=self.endpoint, **options)

    def _answers(self):
        connection = http.client.HTTPConnection(self.endpoint, timeout=10)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        return False

    def make_bucket(self):
        """Make its bucket, as soon as it can."""
        end = time.monotonic() + _STARTS_WITHIN_S
        while True:
            try:
                self.client(allow_bucket_creation=True).create_dir(BUCKET)
                return
            except OSError:
                assert time.monotonic() < end, self.log
                time.sleep(0.1)

    def close(self):
        """End it, and remove what it has outside its folder."""
        if self.process is not None:
            self.kill()
        for port in self._ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink()


def free_ports(number):
    """Return ports on which nobody listens."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextlib.contextmanager
def running(host="127.0.0.1"):
    """Run a server for a `with` block."""
    folder = Path(tempfile.mkdtemp(prefix="s3", dir="/tmp"))
    server = S3Server(folder / "files", host)
    try:
        server.start()
        server.make_bucket()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder)


def let_in(patch, server, cache):
    """Set what a program of this process needs, and where it caches, by a `MonkeyPatch`."""
    for name in _LEADS_ELSEWHERE:
        patch.delenv(name, raising=False)
    for name, value in {**server.environment, "GENERATIVE_MUSIC_CACHE": str(cache)}.items():
        patch.setenv(name, value)
