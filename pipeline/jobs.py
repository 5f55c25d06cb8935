"""Stages as jobs of a cluster that this machine is no part of: submitted, followed and, where this ends, stopped."""

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline import cluster, command, storage
from pipeline.errors import ResourceError, one_line
from pipeline.paths import SPECTROGRAMS
from pipeline.submission import VARIABLE, Submission

# What a stage reads from its environment and is no secret: everybody on the cluster sees what a job is given.
_ENVIRONMENT = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID",
    "DVC_EXP_NAME",
    "DVC_EXP_BASELINE_REV",
)
_ALIVE = (JobStatus.PENDING, JobStatus.RUNNING)
# How long a job server may be away, or a job take to stop.
_PATIENCE_S = 60.0


def submit(module: str, arguments: list[str], versions: dict[str, str], cluster_folder: str | None) -> None:
    """Run a module as a job in the project's folder, show its log, and end as it ends.

    Parameters
    ----------
    module : str
    arguments : list of str
        Of its command line.
    versions : dict
        Of the packages that the cluster must have too.
    cluster_folder : str or None
        The project's folder as the cluster knows it; the same path as here by default.

    Raises
    ------
    ResourceError
        The job could not be started, or failed without saying why.
    SystemExit
        With the exit status of a job that has said why it failed.
    """
    client = connect()
    root, project = _folders(cluster_folder)
    stage = module.rpartition(".")[2]
    mark = {"project": project, "stage": stage}
    _stop_earlier(client, mark)
    job = f"{stage}-{secrets.token_hex(8)}"
    with command.stoppable(), storage.probe(SPECTROGRAMS.parent) as probe:
        told = Submission(socket.gethostname(), project, probe, versions, sys.stderr.isatty())
        given = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        try:
            _submit(
                client,
                entrypoint=shlex.join(["python", "-m", "pipeline.submission", module, *arguments]),
                submission_id=job,
                runtime_env={
                    **cluster.runtime_env(),
                    "env_vars": {**given, "DVC_ROOT": root, VARIABLE: told.to_json()},
                },
                metadata=mark,
            )
            print(f"{stage}: job {job} at {cluster.address()}", flush=True)
            log = _Log()
            details = _follow(client, job, log)
        except BaseException:
            _stop(client, job)
            raise
    _end(stage, job, details, log)


def connect() -> JobSubmissionClient:
    """Return a client of the job server that `RAY_ADDRESS` names.

    Raises
    ------
    ResourceError
        Nothing answers there, or not a job server, or it does not accept this machine's token.
    """
    address = cluster.address()
    cluster.reach(8265)
    # Says in other words what is said below.
    logging.getLogger("ray._private.authentication.http_token_authentication").setLevel(logging.ERROR)
    # Tells what is uploaded, and what is not.
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ResourceError(cluster.refused_token()) from error
    except (ConnectionError, RuntimeError, ValueError, KeyError, requests.RequestException) as error:
        reason = one_line(error)
        raise ResourceError(f"RAY_ADDRESS={address}: no Ray job server answers there: {reason}") from error


def _submit(client: JobSubmissionClient, **job: Any) -> None:
    """Hand a job in, or say in one line why the server does not take it."""
    try:
        client.submit_job(**job)
    except (RuntimeError, OSError) as error:
        reason = one_line(error)
        hint = ""
        if "No available agent" in reason:
            hint = "; where two Rays run on one machine, each wants a --dashboard-agent-listen-port of its own"
        raise ResourceError(f"RAY_ADDRESS={cluster.address()}: the job server takes no job: {reason}{hint}") from error


def _folders(cluster_folder: str | None) -> tuple[str, str]:
    """Return DVC's root and the project's folder, which is in it, as the cluster knows them."""
    here = Path.cwd()
    root = Path(os.environ.get("DVC_ROOT") or here).absolute()
    if cluster_folder is None:
        return str(root), str(here)
    # DVC runs queued experiments in copies below the root.
    within = here.relative_to(root) if here.is_relative_to(root) else Path()
    return cluster_folder, str(Path(cluster_folder, within))


def _stop_earlier(client: JobSubmissionClient, mark: dict[str, str]) -> None:
    """Stop a job of the same stage and project that lost the process that had submitted it."""
    for details in client.list_jobs():
        given = details.metadata or {}
        if details.status in _ALIVE and details.submission_id and mark.items() <= given.items():
            _stop(client, details.submission_id)


def _stop(client: JobSubmissionClient, job: str) -> None:
    """Stop a job and wait for its end, as far as the server lets this know."""
    with contextlib.suppress(RuntimeError, OSError):
        if client.stop_job(job):
            print(f"job {job} is being stopped", file=sys.stderr, flush=True)
        end = time.monotonic() + _PATIENCE_S
        while client.get_job_status(job) in _ALIVE and time.monotonic() < end:
            time.sleep(0.2)


class _Log:
    """Shows a job's log line by line, what was an error as an error.

    Attributes
    ----------
    last : str
        The last line.
    has_error : bool
        Whether one of them was an error's.
    """

    def __init__(self) -> None:
        self.last = ""
        self.has_error = False
        self._has_started = False
        self._line = ""
        self._seen = 0
        self._to_skip = 0

    def rewind(self) -> None:
        """Expect the log from its start again, and do not show again what was shown."""
        self._to_skip = self._seen

    def take(self, text: str) -> None:
        """Show what is new."""
        skipped = min(self._to_skip, len(text))
        self._to_skip -= skipped
        self._seen += len(text) - skipped
        *lines, self._line = (self._line + text[skipped:]).split("\n")
        for line in lines:
            self._show(line)

    def close(self) -> None:
        """Show what came without a line's end."""
        if self._line:
            self._show(self._line)

    def _show(self, line: str) -> None:
        if not self._has_started:  # what comes before are Ray's notes on the job's environment
            self._has_started = line.startswith("Running entrypoint for job")
            return
        is_error = line.startswith("error: ")
        self.has_error |= is_error
        self.last = line or self.last
        print(line, file=sys.stderr if is_error else sys.stdout, flush=True)


def _follow(client: JobSubmissionClient, job: str, log: _Log) -> JobDetails:
    """Show a job's log until it ends, and return what became of it."""
    heard = time.monotonic()
    while True:
        try:
            log.rewind()
            asyncio.run(_tail(client, job, log))
            details = client.get_job_info(job)
            if details.status not in _ALIVE:
                log.close()
                return details
            heard = time.monotonic()
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            if time.monotonic() - heard > _PATIENCE_S:
                raise ResourceError(
                    f"RAY_ADDRESS={cluster.address()}: the job server has not answered for {_PATIENCE_S:.0f} s, and "
                    f"what becomes of job {job} is not known: run the same command again when it is back"
                ) from error
        time.sleep(0.5)


async def _tail(client: JobSubmissionClient, job: str, log: _Log) -> None:
    async for text in client.tail_job_logs(job):
        log.take(text)


def _end(stage: str, job: str, details: JobDetails, log: _Log) -> None:
    """End as a job has ended."""
    if details.status == JobStatus.SUCCEEDED:
        return
    if details.status == JobStatus.STOPPED:
        raise ResourceError(f"{stage}: job {job} was stopped on the cluster")
    if details.driver_exit_code and log.has_error:
        sys.exit(details.driver_exit_code)
    status = f" with exit status {details.driver_exit_code}" if details.driver_exit_code else ""
    reason = log.last if details.driver_exit_code else " ".join(str(details.message).split())
    raise ResourceError(f"{stage}: job {job} failed{status}: {reason[:1000]}")
