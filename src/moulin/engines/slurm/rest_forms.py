"""The forms in which slurmrestd is told of jobs and nodes: v0.0.38, and v0.0.40 to v0.0.45.

Slurm serves three or four forms at a time. That of 22.05 to 23.11 names no nodes; the others write a job
alike, and were tried on 24.11 and 26.05. v0.0.39 alone is not spoken: who serves it serves another, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from moulin.engines.slurm.client import JobRequest

OLD: Final = "v0.0.38"
# The newest first: what a slurmrestd serves of these is what it is spoken to in.
FORMS: Final = (*(f"v0.0.{minor}" for minor in range(45, 39, -1)), OLD)


def names_nodes(form: str) -> bool:
    """Say whether jobs can be told their nodes in this form."""
    return form != OLD


def write_job(job: JobRequest, environment: Mapping[str, str], form: str) -> Mapping[str, Any]:
    """Return a submission of a job that begins in an environment; what is empty is left out."""
    script = job.script.decode()
    words = {
        "name": job.name,
        "comment": job.comment,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "reservation": job.reservation,
        "constraints": job.constraint,
        "current_working_directory": job.directory,
        "standard_output": job.output,
        "array": f"0-{job.array_size - 1}" if job.array_size else "",
        **(_newer_words(job) if names_nodes(form) else _old_words(job)),
    }
    body = {
        **{name: value for name, value in words.items() if value},
        "tasks": job.nodes,
        "tasks_per_node": 1,
        "cpus_per_task": job.cpus,
        "requeue": False,
    }
    if names_nodes(form):
        said = [f"{name}={value}" for name, value in environment.items()]
        return {"job": {**body, "environment": said, "script": script}}
    return {"script": script, "job": {**body, "environment": environment}}


def write_time_limit(minutes: int, form: str) -> Mapping[str, Any]:
    """Return a change of how long a job may last in all."""
    return {"time_limit": _time(minutes) if names_nodes(form) else minutes}


def write_excluded(hosts: Sequence[str], form: str) -> Mapping[str, Any]:
    """Return a change of the nodes that a job may not be put on, which may be none."""
    if names_nodes(form):
        return {"excluded_nodes": list(hosts) or [""]}
    return {"exclude_nodes": ",".join(hosts)}


def _time(minutes: int) -> Mapping[str, Any]:
    return {"set": True, "number": minutes}


def _old_words(job: JobRequest) -> Mapping[str, Any]:
    return {
        "gres": job.gres,
        "exclude_nodes": ",".join(job.excluded),
        "time_limit": job.time if job.is_unlimited else job.time_limit_minutes,
        "nodes": [job.nodes, job.nodes],
        "memory_per_node": job.memory_mib,
        "open_mode": "append",
    }


def _newer_words(job: JobRequest) -> Mapping[str, Any]:
    time = {"set": True, "infinite": True} if job.is_unlimited else _time(job.time_limit_minutes)
    return {
        "tres_per_node": f"gres/{job.gres}" if job.gres else "",
        "required_nodes": list(job.hosts),
        "excluded_nodes": list(job.excluded),
        "time_limit": time if job.time else {},
        "minimum_nodes": job.nodes,
        "maximum_nodes": job.nodes,
        "memory_per_node": {"set": True, "number": job.memory_mib},
        "shared": ["none"] if job.is_exclusive else [],
        "open_mode": ["APPEND"],
    }
