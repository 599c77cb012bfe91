"""What Slurm's words for waiting mean, in plain sentences; the word itself is always kept beside.

Words of limits are made of parts (`QOSMaxCpuPerUserLimit`), so most are known by how they begin and end.
Reference: Slurm's "Job Reason Codes", https://slurm.schedmd.com/job_reason_codes.html.
"""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Final

from moulin.domain.ids import StepId
from moulin.domain.standing import Standing
from moulin.engines.slurm.attempt import Attempt, Attempts
from moulin.engines.slurm.cluster import Cluster
from moulin.engines.slurm.formats import NS_PER_S, PENDING, STARTING, JobBook, SlurmJob
from moulin.engines.slurm.watched import Reading

ENGINE: Final = "Slurm"
# What Slurm itself writes for a job that its scheduler has not looked at.
UNSAID: Final = "None"

_MEANINGS: Final[Mapping[str, str]] = {
    UNSAID: "Slurm's scheduler has not looked at it yet",
    "Resources": "the nodes it needs are busy",
    "Priority": "other jobs of its partition come first by priority",
    "PartitionDown": "its partition was taken out of service; nothing in it starts",
    "PartitionInactive": "its partition is closed; nothing in it starts",
    "PartitionTimeLimit": "it asks for more time than its partition gives",
    "PartitionNodeLimit": "it asks for more nodes than its partition gives, or than are up in it",
    "PartitionConfig": "it asks for what its partition does not allow",
    "ReqNodeNotAvail": "a node it needs is down, drained or reserved",
    "NodeDown": "a node it needs is down",
    "BeginTime": "the time at which it may begin has not come",
    "Dependency": "it waits for another Slurm job",
    "DependencyNeverSatisfied": "the Slurm job it waits for did not end as it had to; it never starts",
    "JobHeldAdmin": "an administrator of the cluster holds it; only they can release it",
    "JobHeldUser": "it was held in Slurm; `scontrol release` lets it go on",
    "JobArrayTaskLimit": "as many elements of its Slurm array run as may",
    "Licenses": "the licences it needs are in use",
    "Reservation": "the reservation it asks for has not begun, or is full",
    "ReservationDeleted": "the reservation it asks for was deleted; it never starts",
    "Prolog": "its nodes run the cluster's own preparations",
    "Cleaning": "its former run is still being cleaned up",
    "InvalidAccount": "its Slurm account is not valid; it never starts",
    "InvalidQOS": "its quality of service is not valid; it never starts",
    "AccountNotAllowed": "its Slurm account may not use this partition",
    "BadConstraints": "no node can ever give what it asks for",
    "NodesDown": "a node it needs is down",
    "FrontEndDown": "the cluster's front end is down",
    "SchedDefer": "Slurm is too busy to start it at once, and will",
    "CONFIGURING": "Slurm has chosen its nodes, and they are being made ready",
}
# Under these words Slurm reckons when a job starts; what is left of that under others is out of date.
_RECKONED: Final = frozenset(
    {"Resources", "Priority", "BeginTime", "Licenses", "Reservation", "ReqNodeNotAvail"}
)
_LIMIT: Final = re.compile(
    r"(?P<of>QOS|Assoc)(?P<kind>Grp|Max)?(?P<what>\w*?)"
    r"(?P<per>Per(?:User|Account|Acct|Job|Node))?(?:Limit)?"
)
_OWNERS: Final = {"QOS": "its quality of service (QOS)", "Assoc": "its Slurm account"}
_EACH: Final = {
    "PerUser": "for each user",
    "PerAccount": "for each account",
    "PerAcct": "for each account",
    "PerJob": "in one job",
    "PerNode": "on one node",
}
_AMOUNTS: Final[Mapping[str, str]] = {
    "Cpu": "CPUs",
    "CPU": "CPUs",
    "CPUs": "CPUs",
    "CPUMinutes": "CPU minutes",
    "CPURunMinutes": "CPU minutes of what runs",
    "Memory": "memory",
    "Mem": "memory",
    "GRES": "accelerators",
    "GRESMinutes": "accelerator minutes",
    "Node": "nodes",
    "Nodes": "nodes",
    "Jobs": "running jobs",
    "JobsRun": "running jobs",
    "SubmitJobs": "submitted jobs",
    "WallDuration": "time",
    "Wall": "time",
    "Energy": "energy",
    "Billing": "billed amounts",
    "License": "licences",
}


def meaning(word: str) -> str:
    """Return a plain sentence for one of Slurm's words, empty for one that is not known.

    >>> meaning("Resources")
    'the nodes it needs are busy'
    >>> meaning("QOSMaxJobsPerUserLimit")
    'its quality of service (QOS) allows no more running jobs for each user'
    >>> meaning("AssocGrpCpuLimit"), meaning("Frobnicated")
    ('its Slurm account allows no more CPUs for all its jobs together', '')
    """
    known = _MEANINGS.get(word)
    if known is not None:
        return known
    limit = _LIMIT.fullmatch(word)
    if limit is None:
        return ""
    owner, what = _OWNERS[limit["of"]], _AMOUNTS.get(limit["what"])
    if what is None or limit["kind"] is None:
        return f"a limit of {owner} keeps it"
    if limit["per"]:
        return f"{owner} allows no more {what} {_EACH[limit['per']]}"
    together = " for all its jobs together" if limit["kind"] == "Grp" else ""
    return f"{owner} allows no more {what}{together}"


def standing_of(job: SlurmJob, name: str, read_at_ns: int, failure: str = "") -> Standing:
    """Return where a job stands that was listed; `name` is what Slurm calls this task of it.

    An estimate of its start that has passed is none.
    """
    if job.state not in PENDING and job.state not in STARTING:
        return Standing(
            engine=ENGINE, job=name, wall_ns=job.wall_ns, read_at_ns=read_at_ns, failure=failure
        )
    # Some words come with more: `ReqNodeNotAvail, UnavailableNodes:node-[1-4]`.
    first, _, more = job.reason.partition(",")
    word = job.reason_word or (first if " " not in first else "") or UNSAID
    if job.state in STARTING:
        word, first, more = job.state, "", ""
    said = more.strip() if first == word else job.reason
    is_reckoned = word in _RECKONED and job.started_at_ns > read_at_ns
    return Standing(
        engine=ENGINE,
        job=name,
        word=word,
        meaning=meaning(word),
        detail=said if job.state in PENDING else "",
        since_ns=job.submitted_at_ns,
        expected_ns=job.started_at_ns if is_reckoned else 0,
        read_at_ns=read_at_ns,
        failure=failure,
    )


def standings(
    cluster: Cluster, book: Attempts, steps: Sequence[StepId], now_ns: int
) -> dict[StepId, Standing]:
    """Return where steps stand by the last answer there was, saying of each why it is not newer."""
    reading, failure = cluster.listed()
    age_ns = int((time.monotonic() - reading.asked_s) * NS_PER_S) if reading is not None else now_ns
    said = failure.message if failure is not None else ""
    found = {}
    for step in steps:
        attempt = book.opened(step)
        if attempt is not None and attempt.is_submitted:
            found[step] = _standing(cluster, attempt, reading, now_ns - age_ns, said)
    return found


def _standing(
    cluster: Cluster,
    attempt: Attempt,
    reading: Reading[JobBook] | None,
    read_at_ns: int,
    failure: str,
) -> Standing:
    name = attempt.job
    job = reading.known().get(name) if reading is not None else None
    if job is not None and cluster.is_of(job, attempt.job_name):
        return standing_of(job, name, read_at_ns, failure)
    is_newer = reading is None or attempt.submitted_s > reading.asked_s
    word = UNSAID if is_newer and name else ""
    return Standing(
        engine=ENGINE,
        job=name,
        word=word,
        meaning=meaning(word),
        read_at_ns=read_at_ns,
        failure=failure,
    )
