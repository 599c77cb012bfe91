"""How Podman runs a task: in the foreground, as nothing but a file system and a first process.

It shares the machine's network, names and shared memory, makes no control group and asks for no
privilege. Podman wants a process namespace of its own then, in which a first process gets no signal it
did not ask for: a small init is that process, and the program is never. Everything stays below the
process that started it, as its monitor is handed to the nearest subreaper. Tried with 4.3.
"""

from dataclasses import dataclass
from typing import Final

from moulin.domain.image import Form
from moulin.engines.task.image import Contained, Contents

# Podman lowers its own limit to this before it starts anything, and cannot go back.
PROCESSES_MAX: Final = 32_768
_TAKEN: Final = frozenset({Form.REGISTRY, Form.DIRECTORY, Form.ARCHIVE})
# As the machine has it, and as whoever runs Moulin: the same as without an image.
_AS_WITHOUT: Final = (
    *("--network=host", "--ipc=host", "--uts=host", "--user=0:0", "--http-proxy=false"),
    *("--security-opt=no-new-privileges", "--security-opt=label=disable"),
)
# Output goes straight to the log, signals straight to the program: neither through Podman.
_OUT_OF_THE_WAY: Final = (
    *("--cgroups=disabled", "--log-driver=passthrough", "--sig-proxy=false", "--entrypoint="),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Podman:
    """Podman with `crun`, the one runtime that can do without control groups, and a static init."""

    program: str
    crun: str
    init: str

    @property
    def title(self) -> str:
        """Its name and path."""
        return f"Podman ({self.program})"

    def takes(self, form: Form) -> bool:
        """Say whether it can run such an image."""
        return form in _TAKEN

    def contain(self, contents: Contents) -> Contained:
        """Return how Podman is started; it pulls an image that is not there, with its own login."""
        processes = min(contents.processes_max or PROCESSES_MAX, PROCESSES_MAX)
        limits = [f"--ulimit=nproc={processes}:{processes}"]
        if contents.open_files_max:
            limits.append(f"--ulimit=nofile={contents.open_files_max}:{contents.open_files_max}")
        devices = ("--device=nvidia.com/gpu=all",) if contents.has_devices else ()
        argv = (
            *(self.program, "run", "--rm", "--replace", f"--name={contents.step}", "--quiet"),
            *("--runtime", self.crun, "--init", f"--init-path={self.init}"),
            *(*_AS_WITHOUT, *_OUT_OF_THE_WAY, *limits, *devices),
            *(f"--env={name}" for name in contents.names),
            *(f"--env={name}={value}" for name, value in sorted(contents.obeyed.items())),
            *(f"--volume={path}:{path}" for path in contents.mounts),
            f"--workdir={contents.workdir}",
            *_named(contents),
        )
        return Contained(argv=(*argv, *contents.argv))


def _named(contents: Contents) -> tuple[str, ...]:
    """Return the image; what a task writes into a directory lasts as long as the task."""
    if contents.image.form is Form.DIRECTORY:
        return "--rootfs", f"{contents.image.name}:O"
    return (contents.image.name,)
