"""The way into a task on Slurm: a second step of its job, on its node, within what the job holds.

Slurm does what it does for any step, its own control groups and devices included; what a command sees
besides is the work of `moulin.engines.task.enter`. It starts nothing.
"""

from shlex import split
from typing import Final

from moulin.domain.errors import EngineRefused, NotFound
from moulin.domain.ids import StepId
from moulin.domain.session import Entry, EntryWanted
from moulin.engines.slurm.attempt import Attempt
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.settings import ANY_PYTHON, SlurmSettings
from moulin.engines.task.entering import entering
from moulin.engines.task.spool import is_there, look_again, read_exact

# How long Slurm may take to make the step.
READY_S: Final = 20
# As in the batch script: the system's own where there is one, else the first in PATH.
_CHOOSE: Final = 'p=/usr/bin/python3; [ -x "$p" ] || p=python3; exec "$p" "$@"'


def entry_beside(
    step: StepId,
    attempt: Attempt,
    wanted: EntryWanted,
    *,
    settings: SlurmSettings,
    cluster: Cluster,
    program: str,
) -> Entry:
    """Return the program that goes into a task of a job.

    Raises `NotFound` when it does not run, `EngineRefused` where nothing can be talked over, and of an
    array's element `EngineUnavailable` when Slurm cannot be asked for its number.
    """
    rank = int(step.rpartition(".t")[2])
    directory = f"{attempt.directory}/{rank}"
    look_again(directory)
    owner = attempt.owner()
    if not owner[:1].isdigit() or is_there(f"{directory}/exit"):
        raise NotFound(f"enter {step}: it does not run", hint="only what runs can be entered")
    if cluster.door is None:
        raise EngineRefused(
            f"enter {step}: this pool is reached over REST, and nothing can be talked with over that",
            hint="use Slurm's own commands, here or over SSH (`ssh` in the pool's settings)",
        )
    job = cluster.number(owner.decode())
    if not job:
        raise NotFound(
            f"enter {step}: Slurm does not list its job", hint="only what runs can be entered"
        )
    hosts = (read_exact(attempt.path("hosts")) or b"").decode().splitlines()
    place: tuple[str, ...] = ()  # of a job of one node there is only one
    if len(hosts) > 1:
        place = (f"--relative={rank}" if settings.is_delegated else f"--nodelist={hosts[rank]}",)
    srun = (
        *("srun", f"--jobid={job}", "--overlap", "--nodes=1", "--ntasks=1", *place),
        *("--cpu-bind=none", "--export=PATH", "--chdir=/", "--quiet", "--unbuffered"),
        *(f"--immediate={READY_S}", "--kill-on-bad-exit=0"),
        *(("--pty",) if wanted.terminal else ()),
    )
    python: tuple[str, ...] = ("sh", "-c", _CHOOSE, "sh")
    if settings.python != ANY_PYTHON:
        python = tuple(split(settings.python))
    inside = (*python, *entering(directory, wanted, program=program)[1:])
    return cluster.door.talking((*srun, *inside), is_terminal=bool(wanted.terminal))
