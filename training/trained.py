"""The trained model with the spectrograms that it is judged on: what the stages after the training start from."""

from dataclasses import dataclass

from pipeline.errors import CorpusError, StoreError
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.store import Store
from training.dataset import Spectrograms
from training.description import Description
from training.params import Params
from training.paths import MODEL
from training.sound import SoundAutoencoder


@dataclass(frozen=True)
class Trained:
    """A model, what it came from, what it was trained on, and what was held out."""

    description: Description
    sound: SoundAutoencoder
    train: Spectrograms
    test: Spectrograms

    @classmethod
    def load(cls, params: Params) -> "Trained":
        """Return what the train stage has left, as the project lays it out.

        Raises
        ------
        ModelError
            The model is missing or damaged.
        StoreError
            The spectrograms are, or are not those that the model was trained on.
        CorpusError
            Nothing is held out for the test.
        """
        description, sound = Description.load(MODEL), SoundAutoencoder.load(MODEL)
        store = Store(SPECTROGRAMS, TABLE, params.resources.storage)
        train = Spectrograms(store, "train", params.train.target_shape)
        test = Spectrograms(store, "test", params.train.target_shape)
        if description.data_digest != test.store.digest:
            raise StoreError(
                f"{MODEL} was trained on other spectrograms than {SPECTROGRAMS} holds; run the train stage again"
            )
        if not len(test):
            raise CorpusError(
                f"no clip is held out for the test: split.test={params.split.test!r}, "
                f"split.test_share={params.split.test_share}"
            )
        return cls(description, sound, train, test)
