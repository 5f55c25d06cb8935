"""A trained model that answers requests, wherever they come from. Knows nothing of servers."""

import math
import os
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from pipeline.errors import ModelError
from pipeline.loader import Loader
from training.density import Density
from training.payload import Budget, write_audio
from training.requests import TASKS, Reply, Request, parse
from training.sound import SoundAutoencoder
from training.tasks import Tools, prepare


class Service:
    """The network with its preprocessing, and the density of its codes; what comes in one request is one batch.

    Parameters
    ----------
    sound : SoundAutoencoder
    density : Density
    max_seconds : float
        Of sound in one request, given and asked for together.
    """

    def __init__(self, sound: SoundAutoencoder, density: Density, max_seconds: float) -> None:
        if density.latent_space_dim != sound.autoencoder.architecture.latent_space_dim:
            raise ModelError(
                f"a density of vectors of {density.latent_space_dim} numbers, for a network whose vectors have "
                f"{sound.autoencoder.architecture.latent_space_dim}"
            )
        self.sound = sound
        self.density = density
        self.max_seconds = max_seconds
        # Threads that compute side by side wait for each other at every step that Python takes.
        self._one_at_a_time = threading.Lock()
        # A little more, so that rounding cuts no sound that is within the limit.
        self._loader = Loader(sound.sample_rate, max_seconds + 1.0, sound.loader.mono)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], max_seconds: float) -> "Service":
        """Return what the train stage wrote into a folder, ready to answer.

        Raises
        ------
        ModelError
            A file is missing, damaged, or of another version.
        """
        return cls(SoundAutoencoder.load(folder, compiled=True), Density.load(Path(folder)), max_seconds)

    def answer(self, inputs: Sequence[BaseModel]) -> list[Reply]:
        """Return the replies to the inputs of one request, in their order.

        Parameters
        ----------
        inputs : sequence of Request

        Raises
        ------
        RequestError
            One of them cannot be answered; then none is.
        """
        return self._answer(inputs, Budget(self.max_seconds))

    def warm_up(self) -> None:
        """Do each task once, so that the first who asks does not wait for what is loaded and compiled then."""
        n_samples, latent_dim = self.sound.loader.n_samples, self.sound.autoencoder.architecture.latent_space_dim
        y = np.random.default_rng(0).uniform(-0.5, 0.5, (1, n_samples)).astype(np.float32)
        # Of two rates, so that one of them is resampled.
        here, elsewhere = (write_audio(y, rate) for rate in (self.sound.sample_rate, 2 * self.sound.sample_rate))
        fields = {"audio": here, "audio_to": elsewhere, "steps": 2, "latent": [[0.0] * latent_dim]}
        inputs = [
            Request(task=task, **{name: value for name, value in fields.items() if name in model.model_fields})
            for task, model in TASKS.items()
        ]
        self._answer(inputs, Budget(math.inf))

    def _answer(self, inputs: Sequence[BaseModel], budget: Budget) -> list[Reply]:
        tools = Tools(self.sound, self.density, self._loader, budget)
        places = [f"inputs[{number}]" for number in range(len(inputs))]
        # All are checked before the first sound is decoded.
        wanted = [parse(*each) for each in zip(places, inputs, strict=True)]
        with self._one_at_a_time:
            return self._reply(places, wanted, tools)

    def _reply(self, places: Sequence[str], wanted: Sequence[Any], tools: Tools) -> list[Reply]:
        tasks = [prepare(*each, tools) for each in zip(places, wanted, strict=True)]
        encoded = iter(self.sound.encode([each for task in tasks for each in task.sounds]))
        originals = [list(islice(encoded, len(task.sounds))) for task in tasks]
        codes = [task.codes(each) for task, each in zip(tasks, originals, strict=True)]
        decoded = iter(self.sound.decode([each for part in codes for each in part]))
        spectrograms = [list(islice(decoded, len(part))) for part in codes]
        return [
            task.reply(original, part, shown)
            for task, original, part, shown in zip(tasks, originals, codes, spectrograms, strict=True)
        ]
