"""The model that `mlflow models serve` runs: requests in, replies out, and what is wrong with a request in one line.

MLflow loads this file from the logged model, beside copies of the packages; nothing else of the project is there.
"""

import json
import logging
from typing import Any

import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from training.payload import max_seconds
from training.requests import Reply, Request, RequestError
from training.service import Service

_logger = logging.getLogger(__name__)


class Refusal(MlflowException):
    """What MLflow answers with: the line alone. It would put all of the request before it, sounds included."""

    def __init__(self, line: str, error_code: int) -> None:
        super().__init__(line, error_code)
        self._line = line

    def serialize_as_json(self) -> str:
        """Return the body of the response."""
        return json.dumps({"error_code": self.error_code, "message": self._line})


class ServedAutoencoder(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Does what each input asks for; `training.requests` says what that may be."""

    def load_context(self, context: Any) -> None:
        """Build the network from the logged weights, and do everything once: a server answers `/ping` after that."""
        self._service = Service.load(context.artifacts["autoencoder"], max_seconds())
        # Within a run MLflow only tries the example of a model that it is about to log.
        if mlflow.active_run() is None:
            self._service.warm_up()

    def predict(
        self,
        context: Any,
        model_input: list[Request],  # type: ignore[valid-type]
        params: dict[str, Any] | None = None,
    ) -> list[Reply]:
        """Return a reply for each input, in their order."""
        del context, params
        try:
            return self._service.answer(model_input)
        except RequestError as error:
            raise Refusal(str(error), INVALID_PARAMETER_VALUE) from error
        except Exception as error:
            # Of which MLflow would make a 400 with the stack in it.
            _logger.exception("a request could not be answered")
            raise Refusal("the request could not be answered; the server's log says why", INTERNAL_ERROR) from error


mlflow.models.set_model(ServedAutoencoder())
