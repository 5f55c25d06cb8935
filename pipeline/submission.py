"""What a job on a cluster is told by the machine that submitted it, and how it starts.

`python -m pipeline.submission MODULE ARGUMENTS...` is what a submitted job runs: it goes into the project's folder, if
that is the one that its submitter sees, and runs a stage there, if the packages are those of its submitter. Only the
standard library is imported before that is known.
"""

import json
import os
import runpy
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import packages
from pipeline.errors import GenerativeMusicError, ResourceError
from pipeline.paths import SPECTROGRAMS

VARIABLE = "GENERATIVE_MUSIC_SUBMISSION"
# Ray sets it in what any job starts.
IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@dataclass(frozen=True)
class Submission:
    """What the submitting machine says of itself, in the environment variable `VARIABLE`.

    Attributes
    ----------
    host : str
        Its name.
    project : str
        The project's folder, as the cluster knows it.
    probe : str
        Name of a file in its `data/`, which the submitting machine has just written, and its content.
    versions : dict
        Of its packages, as `pipeline.packages.installed` returns them.
    has_terminal : bool
        Whether somebody may be looking.
    """

    host: str
    project: str
    probe: str
    versions: dict[str, str]
    has_terminal: bool

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    def check(self) -> None:
        """Refuse to work on a node whose packages or project's folder are not those of the submitting machine.

        Raises
        ------
        ResourceError
            With packages or path, and node.
        """
        node = f"node {socket.gethostname()}"
        here = packages.installed(name for name in self.versions if name != "Python")
        packages.check_same(self.versions, here, node, self.host)
        reason = self._differs() if Path(self.project).is_dir() else "is not there"
        if reason:
            raise ResourceError(
                f"{self.project} {reason} on {node}, which runs the job, and must be the project's folder as on "
                f"{self.host}: put the project where both see it, and set resources.cluster_folder if its path differs"
            )

    def _differs(self) -> str:
        """Return why the project's folder is not the submitting machine's, or nothing."""
        try:
            found = Path(self.project, SPECTROGRAMS.parent, self.probe).read_text(encoding="utf-8")
        except FileNotFoundError:
            return "is another folder"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return "" if found == self.probe else "is another folder"


def submission() -> Submission | None:
    """Return what this job was told by the machine that submitted it; nothing when this is no such job."""
    text = os.environ.get(VARIABLE)
    return Submission(**json.loads(text)) if text else None


def progress_options() -> dict[str, Any]:
    """Return tqdm's options: a bar on a terminal; in a job, for whose submitter there is one, a line now and then."""
    told = submission()
    return (
        {"disable": False, "mininterval": 5.0, "maxinterval": 5.0} if told and told.has_terminal else {"disable": None}
    )


def main(module: str) -> None:
    """Run a stage as the job of another machine."""
    told = submission()
    assert told is not None
    try:
        told.check()
    except GenerativeMusicError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    os.chdir(told.project)
    del sys.argv[0]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
