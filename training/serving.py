"""The model that `mlflow models serve` runs: spectrograms in, reconstructions out.

MLflow loads this file from the logged model, beside copies of the packages; nothing else of the project is there.
"""

import importlib.metadata
import warnings
from typing import Any

import mlflow
import numpy as np

from training.autoencoder import Autoencoder

# MLflow reads type hints of `predict` as a schema and asks for them; the signature says more than they could.
warnings.filterwarnings("ignore", message=r".*Add type hints to the `predict` method", category=UserWarning)


def requirements() -> list[str]:
    """Return the packages that a serving environment needs, at the versions of this one."""
    names = "keras librosa mlflow numpy pyarrow pydantic ruamel.yaml scipy soundfile soxr".split()
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    names.append("tensorflow-cpu" if "tensorflow-cpu" in installed else "tensorflow")
    return [f"{name}=={installed[name]}" for name in names]


class ServedAutoencoder(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Reconstructs normalised log-spectrograms."""

    def load_context(self, context: Any) -> None:
        """Build the network from the logged weights."""
        self._autoencoder = Autoencoder.load(context.artifacts["autoencoder"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Return the reconstructions of spectrograms, shape (n, n_bins, n_frames, 1)."""
        del context, params
        x_hat, _ = self._autoencoder.reconstruct(np.asarray(model_input, dtype=np.float32))
        return x_hat


mlflow.models.set_model(ServedAutoencoder())
