"""Processes of a benchmark that train together, as Ray Train would start them, without Ray."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial


def start(arguments: Sequence[str], num_workers: int, is_pinned: bool = False) -> list[subprocess.Popen[bytes]]:
    """Start `python -m ARGUMENTS --rank R --workers N` for each rank, with `TF_CONFIG` on loopback when N > 1.

    Where there are GPUs, each process sees that of its rank. `is_pinned`: each to a core of its own.
    """
    cores = sorted(os.sched_getaffinity(0)) if is_pinned else []
    addresses = [f"127.0.0.1:{_free_port()}" for _ in range(num_workers)]
    children = []
    for rank in range(num_workers):
        environment = {"CUDA_VISIBLE_DEVICES": str(rank), **os.environ}
        if num_workers > 1:
            task = {"type": "worker", "index": rank}
            environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        command = [sys.executable, "-m", *arguments, "--rank", str(rank), "--workers", str(num_workers)]
        children.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                preexec_fn=partial(os.sched_setaffinity, 0, {cores[rank]}) if cores else None,  # noqa: PLW1509
            )
        )
    return children


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
