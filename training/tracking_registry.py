"""MLflow's registry: versions of a model, which of them is champion, and which was before it."""

from dataclasses import dataclass

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from pipeline.errors import ResourceError
from training.tracking import logged_models

MODEL_NAME = "autoencoder"
CHAMPION, PREVIOUS = "champion", "previous"


@dataclass(frozen=True)
class Version:
    """A version of a registered model: its number, and its tags, all as text."""

    number: str
    tags: dict[str, str]


class Registry:
    """The versions of one registered model.

    Parameters
    ----------
    client : mlflow.MlflowClient
    name : str
        Of the registered model.
    """

    def __init__(self, client: mlflow.MlflowClient, name: str = MODEL_NAME) -> None:
        self._client = client
        self.name = name

    def register(self, run: Run, tags: dict[str, str]) -> Version:
        """Make a version of a run's model, once, set its tags, and return it.

        Raises
        ------
        ResourceError
            The run holds no model.
        """
        models = logged_models(self._client, run.info.run_id)
        if not models:
            raise ResourceError(f"MLflow run {run.info.run_id} holds no model; run the train stage again")
        source = f"models:/{models[0]}"
        if not self._exists():
            self._client.create_registered_model(self.name)
        versions = self._client.search_model_versions(f"name = '{self.name}'")
        version = next((each for each in versions if each.source == source or each.run_id == run.info.run_id), None)
        if version is None:
            version = self._client.create_model_version(self.name, source, run.info.run_id, model_id=models[0])
        number = str(version.version)
        self.set_tags(number, tags)
        return Version(number, {**version.tags, **tags})

    def set_tags(self, number: str, tags: dict[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, number, key, value)

    def champion(self) -> Version | None:
        """Return the version that is champion, if one is."""
        version = self._with_alias(CHAMPION)
        return Version(str(version.version), dict(version.tags)) if version else None

    def promote(self, number: str) -> None:
        """Make a version champion, and the champion so far `previous`."""
        former = self._with_alias(CHAMPION)
        if former and str(former.version) != number:
            self._client.set_registered_model_alias(self.name, PREVIOUS, str(former.version))
        self._client.set_registered_model_alias(self.name, CHAMPION, number)

    def roll_back(self) -> tuple[str, str]:
        """Let `champion` and `previous` change places, and return the numbers of champion and previous.

        Raises
        ------
        ResourceError
            There is no version `previous`.
        """
        present, before = self._with_alias(CHAMPION), self._with_alias(PREVIOUS)
        if present is None or before is None:
            raise ResourceError(f"registered model {self.name!r} has no version {PREVIOUS!r} to go back to")
        self.promote(str(before.version))
        return str(before.version), str(present.version)

    def download(self, number: str, folder: str) -> str:
        """Download a version's files into a folder, and return where they lie."""
        return str(mlflow.artifacts.download_artifacts(f"models:/{self.name}/{number}", dst_path=folder))

    def _exists(self) -> bool:
        return bool(self._client.search_registered_models(f"name = '{self.name}'"))

    def _with_alias(self, alias: str) -> ModelVersion | None:
        number = self._client.get_registered_model(self.name).aliases.get(alias) if self._exists() else None
        return self._client.get_model_version(self.name, str(number)) if number is not None else None
