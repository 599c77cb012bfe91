"""How Apptainer (or SingularityCE) runs a task: an image's file system around it, and nothing else.

It makes no process namespace and no control group: the program is an ordinary process below the tool.
It passes variables on by itself, but PATH and the like, which it is told under names of its own.
"""

import os
from dataclasses import dataclass
from typing import Final

from moulin.domain.image import Form
from moulin.engines.task.image import Contained, Contents

_TAKEN: Final = frozenset(Form)


@dataclass(frozen=True, slots=True, kw_only=True)
class Apptainer:
    """The program, which on a cluster may be known by its name only."""

    program: str

    @property
    def title(self) -> str:
        """Its name and path."""
        return f"Apptainer ({self.program})"

    def takes(self, form: Form) -> bool:
        """Say whether it can run such an image: all that there are."""
        return form in _TAKEN

    def contain(self, contents: Contents) -> Contained:
        """Return how Apptainer is started; it pulls an image that is not there, with its own login."""
        is_forerunner = os.path.basename(self.program) == "singularity"
        prefix = "SINGULARITYENV_" if is_forerunner else "APPTAINERENV_"
        is_registrys = contents.image.form is Form.REGISTRY
        argv = (
            *(self.program, "--silent", "exec", "--no-privs", "--no-home", "--no-mount=cwd"),
            *(("--nv",) if contents.has_devices else ()),
            *(f"--bind={path}:{path}" for path in contents.mounts),
            f"--pwd={contents.workdir}",
            f"docker://{contents.image.name}" if is_registrys else contents.image.name,
            *contents.argv,
        )
        env = {f"{prefix}{name}": value for name, value in contents.obeyed.items()}
        return Contained(argv=argv, env=env)
