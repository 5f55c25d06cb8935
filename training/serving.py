"""The model that `mlflow models serve` runs: spectrograms in, reconstructions out.

MLflow loads this file from the logged model, beside copies of the packages; nothing else of the project is there.
"""

from typing import Any

import mlflow.pyfunc
import numpy as np

from training.autoencoder import Autoencoder


class ServedAutoencoder(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Reconstructs normalised log-spectrograms."""

    def load_context(self, context: Any) -> None:
        """Build the network from the logged weights."""
        self._autoencoder = Autoencoder.load(context.artifacts["autoencoder"])

    # MLflow asks for a type hint of the input and has no schema for an array's: the logged signature says it.
    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return the reconstructions of spectrograms, shape (n, n_bins, n_frames, 1)."""
        del context, params
        x_hat, _ = self._autoencoder.reconstruct(np.asarray(model_input, dtype=np.float32))
        return x_hat


mlflow.models.set_model(ServedAutoencoder())
