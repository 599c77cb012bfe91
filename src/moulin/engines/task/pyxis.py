"""How a cluster with pyxis runs a task in an image: as a step of its own job, which the task waits for.

Only `srun` knows the image, and the program is not below it but below Slurm's own daemon: the shim
finds it on its node by the step's variable, tells it what there is to tell, and counts it while it
lives. `srun` itself would kill at once where it should pass a SIGTERM on. Not tried with pyxis itself.
"""

import shlex
from dataclasses import dataclass
from typing import Final

from moulin.domain.image import Form
from moulin.engines.task.image import Contained, Contents, Reach

_TAKEN: Final = frozenset({Form.REGISTRY, Form.SQUASHFS})
_STEP: Final = (
    "unset SLURM_CPU_BIND SLURM_CPU_BIND_TYPE SLURM_CPU_BIND_LIST SLURM_CPU_BIND_VERBOSE; "
    'exec srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME"'
    ' --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --input=none "$@"'
)
# The step has one task; the program is to see its place in the gang.
_PLACE: Final = (
    'export SLURM_PROCID="$RANK" SLURM_NODEID="$RANK" SLURM_NTASKS="$WORLD_SIZE"'
    ' SLURM_NPROCS="$WORLD_SIZE" SLURM_NNODES="$WORLD_SIZE" SLURM_JOB_NUM_NODES="$WORLD_SIZE"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyxis:
    """`srun --container-image`."""

    @property
    def title(self) -> str:
        """Its name."""
        return "pyxis"

    def takes(self, form: Form) -> bool:
        """Say whether it can run such an image."""
        return form in _TAKEN

    def contain(self, contents: Contents) -> Contained:
        """Return how the step is started; enroot pulls an image, with its own login."""
        mounts = ",".join(f"{path}:{path}" for path in contents.mounts)
        obeyed = " ".join(f"{name}={shlex.quote(v)}" for name, v in sorted(contents.obeyed.items()))
        before = f"{_PLACE}{' ' if obeyed else ''}{obeyed}"
        argv = (
            *("sh", "-c", _STEP, "sh", f"--container-image={_enroot_name(contents)}"),
            *(f"--container-mounts={mounts}", f"--container-workdir={contents.workdir}"),
            *("--no-container-mount-home", "--no-container-entrypoint"),
            *("sh", "-c", f'{before}; exec "$@"', "sh", *contents.argv),
        )
        return Contained(argv=argv, reach=Reach.MARKED)


def _enroot_name(contents: Contents) -> str:
    """Return the image as enroot writes it, with a # after a registry that is named."""
    name = contents.image.name
    host, slash, rest = name.partition("/")
    is_host = bool(slash) and ("." in host or ":" in host or host == "localhost")
    return f"{host}#{rest}" if contents.image.form is Form.REGISTRY and is_host else name
