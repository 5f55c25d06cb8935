"""A PostgreSQL server of the tests: in a folder of its own, on a Unix socket there, gone in the end."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest


def program(name):
    """Return where one of PostgreSQL's programs is; Debian keeps them off the path. Skip the test without it."""
    places = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    found = shutil.which(name, path=places)
    if not found:
        pytest.skip(f"PostgreSQL is not installed: no {name} on the path or in /usr/lib/postgresql")
    return found


@contextlib.contextmanager
def server():
    """Run a server for a `with` block, and yield its address as SQLAlchemy writes it."""
    initdb, pg_ctl = program("initdb"), program("pg_ctl")
    # Short, since a socket's path may have about 100 letters; and not below pytest's folders, which root alone enters.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    options = {"cwd": folder, "stdout": subprocess.DEVNULL, "timeout": 60}
    if os.geteuid() == 0:  # as whom it refuses to run
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = folder / "data"
    settings = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    try:
        subprocess.run(
            [initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"], check=True, **options
        )
        subprocess.run([pg_ctl, "-D", data, "-o", settings, "-l", folder / "log", "-w", "start"], check=True, **options)
        try:
            yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
        finally:
            subprocess.run([pg_ctl, "-D", data, "-m", "immediate", "-w", "stop"], check=True, **options)
    finally:
        shutil.rmtree(folder)
