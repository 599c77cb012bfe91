"""What `moulin run` was asked for: a job file, a command after `--`, and flags that change either.

It decides how flags and file combine; every value goes through the job file's own rules, so a flag
is refused for the same reasons and in the same words as a key.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from moulin.domain.errors import InvalidRequest
from moulin.domain.jobdata import check_copies
from moulin.domain.jobfile import parse_job
from moulin.domain.section import Section
from moulin.domain.workload import Resources, Retry, TaskTemplate, Where, WorkloadSpec

COMMAND_LINE = "the command line"
SCRIPT_SUFFIXES = (".sh", ".sbatch", ".slurm", ".job")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """Flags of `moulin run` as typed; None and empty mean not given."""

    name: str | None = None
    cpus: str | None = None
    memory: str | None = None
    accelerators: str | None = None
    nodes: int | None = None
    countries: Sequence[str] = ()
    zones: Sequence[str] = ()
    time_limit: str | None = None
    priority: int | None = None
    env: Sequence[str] = ()
    labels: Sequence[str] = ()
    workdir: Path | None = None
    retry: int | None = None
    deadline: str | None = None
    retention: str | None = None
    array: str | None = None
    after: Sequence[str] = ()
    is_held: bool = False
    image: str | None = None
    secrets: Sequence[str] = ()
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    stop_signal: str | None = None
    grace: str | None = None
    is_notified: bool = False


def read_flags(values: Mapping[str, object]) -> Flags:
    """Return what of a command's parameters, by name, was given as a flag."""
    given = {each.name: values.get(each.name) for each in fields(Flags)}
    given = {name: value for name, value in given.items() if value is not None}
    return Flags(**given)  # type: ignore[arg-type] # one mapping for fields of many types


def wanted(words: Sequence[str], command: Sequence[str] | None, flags: Flags) -> WorkloadSpec:
    """Return the workload that a file or a command, with flags, asks for.

    `command` is what followed `--`, None without one. Raises `InvalidRequest` when neither or both
    are given, `NotFound` and `InvalidSpec` as the file and the flags deserve.
    """
    if command is not None and words:
        raise InvalidRequest(
            f"run {' '.join(words)!r} and a command: only one of them is possible",
            hint="give a job file, or a command after --",
        )
    if command is not None:
        name = Path(command[0]).name if command else ""
        return _changed(_parse({"command": list(command)}, _safe_name(name)), flags)
    if len(words) == 1 and Path(words[0]).suffix in (".yaml", ".yml"):
        from moulin.app.files import read_job_file

        return _changed(read_job_file(Path(words[0])), flags)
    if words and Path(words[0]).suffix in SCRIPT_SUFFIXES:
        return _changed(_scripted(Path(words[0]), words[1:]), flags)
    if words:
        raise InvalidRequest(
            f"run {' '.join(words)!r}: that is neither a .yaml file nor a command after --, nor a"
            " .sh script",
            hint=f"write `moulin run -- {' '.join(words)}`",
        )
    raise InvalidRequest("run nothing", hint="write `moulin run -- COMMAND`, or name a job file")


def placement(flags: Flags) -> tuple[Resources, Where]:
    """Return what a replica of an endpoint takes, and where it may run."""
    given = _parse({"command": ["true"], **_body(flags)}, "endpoint")
    return given.resources, given.where


def _scripted(path: Path, arguments: Sequence[str]) -> WorkloadSpec:
    """Return what a batch script asks for, having said what is done otherwise than by Slurm."""
    from moulin.app.files import read_script_file
    from moulin.cli.screen import say

    script = read_script_file(path, arguments)
    for note in script.notes:
        say(f"{path.name}: {note}")
    return script.spec


def _changed(spec: WorkloadSpec, flags: Flags) -> WorkloadSpec:
    """Return the spec with what was given by flags; lists of a flag replace, mappings add."""
    given = _parse({"command": ["true"], **_body(flags)}, spec.name)
    parts: dict[str, object] = {
        "name": given.name if flags.name else spec.name,
        "nodes": given.nodes if flags.nodes is not None else spec.nodes,
        "resources": _resources(spec.resources, given.resources, flags),
        "where": Where(
            countries=given.where.countries or spec.where.countries,
            zones=given.where.zones or spec.where.zones,
        ),
        "time_limit_s": given.time_limit_s or spec.time_limit_s,
        "priority": given.priority if flags.priority is not None else spec.priority,
        "labels": {**spec.labels, **given.labels},
        "when": given.when if flags.deadline else spec.when,
        "retry": _retry(spec.retry, given.retry, flags),
        "retention_s": given.retention_s if flags.retention else spec.retention_s,
        "task": _task(spec.task, given, flags),
        "array": given.array or spec.array,
        "after": given.after or spec.after,
        "is_held": given.is_held or spec.is_held,
        "stop_signal": given.stop_signal if flags.stop_signal else spec.stop_signal,
        "stop_grace_s": given.stop_grace_s if flags.grace else spec.stop_grace_s,
        "is_notified": given.is_notified or spec.is_notified,
    }
    changed = replace(spec, **parts)  # type: ignore[arg-type] # one mapping for fields of many types
    if changed.task is not None:  # what flags and file say together was judged by neither
        check_copies(Section(COMMAND_LINE, ""), changed.task, changed.array)
    return changed


def _resources(spec: Resources, given: Resources, flags: Flags) -> Resources:
    changed = replace(
        spec,
        cpu_milli=given.cpu_milli if flags.cpus else spec.cpu_milli,
        memory_bytes=given.memory_bytes if flags.memory else spec.memory_bytes,
    )
    if not flags.accelerators:
        return changed
    return replace(
        changed, accelerator_class=given.accelerator_class, accelerators=given.accelerators
    )


def _retry(spec: Retry, given: Retry, flags: Flags) -> Retry:
    return replace(spec, attempts_max=given.attempts_max) if flags.retry is not None else spec


def _task(task: TaskTemplate | None, given: WorkloadSpec, flags: Flags) -> TaskTemplate | None:
    if task is None or given.task is None:
        of_programs = (flags.env, flags.workdir, flags.image, flags.secrets, flags.inputs)
        if any((*of_programs, flags.outputs)):
            raise InvalidRequest(
                "run: --env, --workdir, --image, --secret, --input and --output are for jobs",
                hint="leave them out, or name a job file of `kind: job`",
            )
        return task
    secrets = given.task.secrets
    files = {name: each for name, each in task.secret_files.items() if name not in secrets}
    return replace(
        task,
        env={**task.env, **given.task.env},
        workdir=str(flags.workdir.expanduser()) if flags.workdir else task.workdir,
        image=given.task.image or task.image,
        secrets={**task.secrets, **secrets},
        secret_files=files,
        inputs={**task.inputs, **given.task.inputs},
        outputs={**task.outputs, **given.task.outputs},
    )


def _body(flags: Flags) -> dict[str, object]:
    """Return the flags as the keys of a job file."""
    body = {
        "name": flags.name,
        "num_nodes": flags.nodes,
        "time_limit": flags.time_limit,
        "priority": flags.priority,
        "envs": _pairs("--env", flags.env),
        "labels": _pairs("--label", flags.labels),
        "resources": _given(
            {"cpus": flags.cpus, "memory": flags.memory, "accelerators": flags.accelerators}
        ),
        "where": _given({"countries": list(flags.countries), "zones": list(flags.zones)}),
        "retry": _given({"attempts": flags.retry}),
        "when": _given({"deadline": flags.deadline}),
        "retention": flags.retention,
        "array": flags.array,
        "after": [_after(word) for word in flags.after],
        "hold": flags.is_held or None,
        "image": flags.image,
        "secrets": dict(_secret(word) for word in flags.secrets),
        "inputs": _pairs("--input", flags.inputs, "PLACE=ADDRESS"),
        "outputs": _pairs("--output", flags.outputs, "PLACE=ADDRESS"),
        "stop_signal": flags.stop_signal,
        "grace": flags.grace,
        "notify": flags.is_notified or None,
    }
    return _given(body)


def _given(body: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in body.items() if value not in (None, [], {})}


def _after(word: str) -> dict[str, str]:
    """Read `ID`, or `ID:any`."""
    workload, _, when = word.partition(":")
    return {"workload": workload, "when": when or "ok"}


def _secret(word: str) -> tuple[str, str]:
    """Read `VARIABLE`, for a secret of that name, or `VARIABLE=NAME`."""
    variable, _, name = word.partition("=")
    return variable, name or variable


def _pairs(flag: str, words: Sequence[str], form: str = "NAME=VALUE") -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise InvalidRequest(f"read {flag} {word!r}: it has no =", hint=f"write {flag} {form}")
        pairs[name] = value
    return pairs


def _parse(body: dict[str, object], name: str) -> WorkloadSpec:
    return parse_job(body, origin=COMMAND_LINE, default_name=name)


def _safe_name(word: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in word)
    return kept.strip("._-")[:63] or "job"
