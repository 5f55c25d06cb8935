"""Two machines on one: network namespaces with a link between them, and what a node in the second one does not see.

Everything is inside namespaces that are made here, and gone with them. Needs root, and the programs in `PROGRAMS`.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PROGRAMS = ("ip", "nsenter", "unshare", "setpriv", "hostname")
FIRST, SECOND = "10.77.0.1", "10.77.0.2"
_CLONE_NEWNET = 0x40000000

# What the second machine's node sees: the system; its own environment, of another path and another Python; its own
# `/tmp`; and what is shared. As `nobody`, who may read nothing of what the project's owner keeps for themselves.
_NODE = """set -eu
mount -t tmpfs -o mode=0755 tmpfs /mnt
mkdir -p /mnt/python /mnt/env/bin "/mnt/env/$PACKAGES" /mnt/home/.ray /mnt/shared
mount --bind "$BASE" /mnt/python
mount --bind "$SITE" "/mnt/env/$PACKAGES"
mount --bind "$SHARED" /mnt/shared
ln -s "/mnt/python/bin/$PYTHON" /mnt/env/bin/python
echo "home = /mnt/python/bin" > /mnt/env/pyvenv.cfg
cp "$TOKEN" /mnt/home/.ray/auth_token
chown -R nobody /mnt/home
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p "$SHARED"
mount --bind -o ro /mnt/shared "$SHARED"
for folder in $HIDDEN; do
  if [ -d "$folder" ]; then mount -t tmpfs -o mode=0700 tmpfs "$folder"; fi
done
hostname second
cd /
exec setpriv --reuid nobody --clear-groups --inh-caps=-all env HOME=/mnt/home \
  LD_LIBRARY_PATH=/mnt/python/lib PATH=/mnt/env/bin:/usr/bin:/bin "$@"
"""


def why_not():
    """Return why there can be no namespaces here, or nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no program {missing[0]} (of iproute2, util-linux or hostname)"
    if os.geteuid() != 0:
        return "not root"
    tried = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, check=False)
    return tried.stderr.decode().strip()


class TwoMachines:
    """Two network namespaces, each with an address and a way to the other."""

    def __init__(self):
        token = secrets.token_hex(3)
        self._names = [f"gm-{token}-{number}" for number in (1, 2)]

    def __enter__(self):
        links = [f"gm{self._names[0][3:9]}{letter}" for letter in "ab"]
        for name in self._names:
            _run("ip", "netns", "add", name)
        ends = [("type", "veth"), ("peer", "name", links[1], "netns", self._names[1])]
        _run("ip", "link", "add", links[0], "netns", self._names[0], *ends[0], *ends[1])
        for name, link, here, there in zip(self._names, links, (FIRST, SECOND), (SECOND, FIRST), strict=True):
            _run("ip", "-n", name, "address", "add", f"{here}/24", "dev", link)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "link", "set", link, "up")
            # Nothing is there, but programs ask by which address they would go out.
            _run("ip", "-n", name, "route", "add", "default", "via", there)
        return self

    def __exit__(self, *_):
        for name in self._names:
            _run("ip", "netns", "delete", name)

    @contextlib.contextmanager
    def first(self):
        """Let this thread, and what it starts, be on the first machine for a `with` block."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/self/ns/net").open("rb") as before, Path("/run/netns", self._names[0]).open("rb") as wanted:
            _check(libc.setns(wanted.fileno(), _CLONE_NEWNET))
            try:
                yield
            finally:
                _check(libc.setns(before.fileno(), _CLONE_NEWNET))

    def second(self, shared, hidden, token):
        """Return the beginning of a command that runs on the second machine, and what it must find in its environment.

        Parameters
        ----------
        shared : Path
            A folder that is there too, under the same path, and can only be read.
        hidden : list of Path
            Folders in which nothing is there.
        token : Path
            File of the cluster's token.
        """
        base = Path(sys.executable).resolve()
        site = Path(sysconfig.get_path("purelib"))
        environment = {
            "BASE": str(base.parents[1]),
            "PYTHON": base.name,
            "SITE": str(site),
            "PACKAGES": str(site.relative_to(sys.prefix)),
            "SHARED": str(shared),
            "TOKEN": str(token),
            "HIDDEN": " ".join(map(str, hidden)),
        }
        enter = ["nsenter", f"--net=/run/netns/{self._names[1]}", "unshare", "--mount", "--uts"]
        return [*enter, "sh", "-c", _NODE, "node", "python"], environment


def _check(status):
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _run(*command):
    subprocess.run(command, check=True, capture_output=True)
