"""What can go wrong with input, each as one line that a person can act on.

Everything here is raised for input: what was given, what was expected, where. What cannot happen is asserted.
"""


class GenerativeMusicError(Exception):
    """Base of every error that input can cause."""


class ParameterError(GenerativeMusicError, ValueError):
    """A parameter is missing, misspelt, of the wrong type, or contradicts another."""


class CorpusError(GenerativeMusicError):
    """A folder of sounds cannot be used as a whole."""


class AudioError(GenerativeMusicError):
    """One recording cannot be used.

    Parameters
    ----------
    reason : str
        Short and stable, so that rejected clips can be counted by it.
    detail : str
        What was found, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str]]:
        """Rebuild from both arguments, since errors cross process boundaries."""
        return type(self), (self.reason, self.detail)


class StoreError(GenerativeMusicError):
    """Spectrograms on disk are absent, unfinished, damaged, or of another format."""


class ModelError(GenerativeMusicError):
    """A saved model is absent, damaged, or of another format or shape."""


class ResourceError(GenerativeMusicError):
    """The machine or the cluster lacks what was asked of it."""


def one_line(error: BaseException) -> str:
    """Return what an error says in one line."""
    return " ".join(str(error).split())
