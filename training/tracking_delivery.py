"""MLflow: what a training has for its run, sent while it goes on or, where the server is away, when it is back.

Nothing that a server says or leaves unsaid ends or delays a training: a thread of its own talks to it, and what could
not be sent is kept in an `Outbox`, from which the stages after the training send it.
"""

import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import mlflow
from mlflow.entities import Run

from pipeline.errors import one_line
from training import tracking
from training.outbox import Outbox
from training.params import Params
from training.paths import CURVES, MODEL, outbox
from training.progress import Epoch, Progress, read_curves
from training.tracking_server import ServerAwayError, check_answers, without_password

RETRY_S = 10.0


class Delivery:
    """Sends a training to its run from the driver.

    Parameters
    ----------
    key : str
        Of the training.
    params : Params
    resumed : bool
        Whether the training goes on from a checkpoint.
    begin : callable
        Is given client and run id when the run has been found or made, and logs what it starts from.
    retry_s : float
        How long a server that failed is left alone.
    """

    def __init__(
        self,
        key: str,
        params: Params,
        resumed: bool,
        begin: Callable[[mlflow.MlflowClient, str], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self._start = (key, params, resumed)
        self._begin = begin
        self._retry_s = retry_s
        self._outbox = Outbox(outbox(key, params.resources.storage))
        # MLflow's active run is a thread's own.
        self._thread = ThreadPoolExecutor(1, "mlflow")
        self._open: ExitStack | None = None
        self._client: mlflow.MlflowClient
        self._history: tuple[Epoch, ...] = ()
        self._n_sent = 0
        self._is_queued = threading.Event()
        self._problem: str | None = None
        self._not_before = 0.0
        self.run_id: str | None = None

    def __enter__(self) -> "Delivery":
        """Find or make the run, unless the server is away.

        Raises
        ------
        ResourceError
            The server refuses.
        """
        try:
            self._thread.submit(self._try_to_start_run).result()
        except ServerAwayError as error:
            self._note(error)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.submit(self._give_up, kind, error, traceback).result()
        self._thread.shutdown()

    def send(self, history: Sequence[Epoch]) -> None:
        """Take all epochs so far, and return at once."""
        self._history = tuple(history)
        self._wake()

    def send_picture(self, name: str, path: Path, epoch: int) -> None:
        """Take a picture, and return at once."""
        self._outbox.keep_picture(name, epoch, path.read_bytes())
        self._wake()

    def finish(self, progress: Progress, model: Path) -> str | None:
        """Send what is left, log the model, and end the run.

        Returns
        -------
        str, optional
            What the server did not take, with the reason, in one line; it is kept for `stage_run`.
        """
        self._history = progress.history
        left = self._thread.submit(self._finish, model).result()
        if not left:
            self._outbox.clear()
            return None
        self._outbox.keep(progress)
        return f"{self._problem}; not delivered: {', '.join(left)}"

    # --- in the thread

    def _wake(self) -> None:
        if not self._is_queued.is_set():
            self._is_queued.set()
            self._thread.submit(self._deliver)

    def _deliver(self) -> None:
        self._is_queued.clear()
        if time.monotonic() >= self._not_before:
            with self._noting():
                self._send()

    def _finish(self, model: Path) -> list[str]:
        left = ["the model", "the run's end"]
        with self._noting():
            self._send()
            assert self.run_id is not None
            tracking.log_model(self._client, self.run_id, model)
            del left[0]
            self._end_run()
            return []
        return [*self._unsent(), *left]

    def _unsent(self) -> list[str]:
        found = []
        if self._n_sent < len(self._history):
            found.append(f"epochs {self._n_sent + 1} to {len(self._history)}")
        if number := self._outbox.n_pictures():
            found.append(f"{number} picture{'s' * (number > 1)}")
        return found

    def _send(self) -> None:
        check_answers(tracking.tracking_uri())
        if self._open is None:
            self._start_run()
        assert self.run_id is not None
        history = self._history
        # From the first: a run that lost its driver lacks what that driver had not sent.
        tracking.deliver(self._client, self.run_id, history[self._n_sent :])
        self._n_sent = len(history)
        send_pictures(self._client, self.run_id, self._outbox)

    def _try_to_start_run(self) -> None:
        uri = tracking.tracking_uri()
        check_answers(uri)
        try:
            self._start_run()
        except Exception:
            # Because it has gone meanwhile, or for another reason.
            check_answers(uri)
            raise

    def _start_run(self) -> None:
        with ExitStack() as stack:
            self._client = stack.enter_context(tracking.connect())
            run_id = stack.enter_context(tracking.training_run(self._client, *self._start)).info.run_id
            self._begin(self._client, run_id)
            self.run_id = run_id
            self._open = stack.pop_all()

    def _end_run(self, *error: Any) -> None:
        """End the run; as failed, where there was an error."""
        stack, self._open = self._open, None
        if stack:
            stack.__exit__(*(error or (None, None, None)))

    def _give_up(self, *error: Any) -> None:
        """End a run that is open still, if there is one and the server is there."""
        with suppress(Exception):
            check_answers(tracking.tracking_uri())
            self._end_run(*error)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Take note of whatever fails within a `with` block: servers, databases, buckets and what lies between."""
        try:
            yield
        except Exception as error:
            self._note(error)
        else:
            if self._problem:
                print(f"train: MLflow is back; MLflow run {self.run_id}", flush=True)
                self._problem = None

    def _note(self, error: Exception) -> None:
        reason = one_line(error)
        if not reason.startswith("MLflow at "):
            reason = f"MLflow at {without_password(tracking.tracking_uri())}: {reason}"
        self._not_before = time.monotonic() + self._retry_s
        if not self._problem:
            print(f"train: {reason}; the training goes on", flush=True)
        self._problem = reason


def check_server() -> None:
    """Refuse a server that is away before a stage has worked for minutes.

    Raises
    ------
    ServerAwayError
    """
    check_answers(tracking.tracking_uri(), tracking.WHEN_AWAY)


def send_pictures(client: mlflow.MlflowClient, run_id: str, kept: Outbox) -> None:
    """Log the pictures of an outbox, which then no longer holds them."""
    for name, epoch, content in kept.pictures():
        tracking.log_picture(client, run_id, name, io.BytesIO(content), epoch)


@contextmanager
def stage_run(key: str, params: Params) -> Iterator[tuple[mlflow.MlflowClient, Run]]:
    """Go on with the run of a training in a later stage, after it was sent what it still lacks.

    Parameters
    ----------
    key : str
        Of the training whose model is in the project.
    params : Params

    Yields
    ------
    client : mlflow.MlflowClient
    run : Run
        Made from the curves, where the server has none.
    """
    kept = Outbox(outbox(key, params.resources.storage))
    unsent = kept.progress()
    with (
        tracking.connect() as client,
        tracking.same_run(client, key, unsent or read_curves(CURVES), params) as run,
    ):
        if unsent:
            tracking.deliver(client, run.info.run_id, unsent.history)
            send_pictures(client, run.info.run_id, kept)
            tracking.log_model(client, run.info.run_id, MODEL)
            kept.clear()
        yield client, run
