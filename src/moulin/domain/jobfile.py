"""What a job file asks for: its mapping, already loaded, becomes a `WorkloadSpec`.

It decides which words and amounts are acceptable; whether the factory can serve them is the
control plane's question. It never opens a file (see `moulin.app.files`). The field names are those
SkyPilot users know; `FRENCH` lists the French spellings that are understood as well.
"""

import re
from collections.abc import Mapping
from typing import Final

from moulin.domain.image import read_image
from moulin.domain.jobdata import check_copies, read_copies, read_secrets
from moulin.domain.needs import HINTS, Need
from moulin.domain.section import Keys, Section, check_name, nearest, section, shown
from moulin.domain.units import parse_bytes, parse_cpu_milli, parse_duration_s
from moulin.domain.workload import (
    AFTER_MAX,
    ALTERNATIVES_MAX,
    ARRAY_INDEX_MAX,
    ARRAY_SIZE_MAX,
    DRAIN_S_DEFAULT,
    IDLE_SHARE_PPM_DEFAULT,
    RETENTION_S_DEFAULT,
    STOP_SIGNALS,
    After,
    AfterWhen,
    EndpointSpec,
    IdleStop,
    JobArray,
    OutputsWhen,
    Resources,
    Retry,
    Scaling,
    TaskTemplate,
    When,
    Where,
    WorkloadKind,
    WorkloadSpec,
)

# Accents may be left out; œ may be written oe.
FRENCH: Final[Mapping[str, str]] = {
    "nom": "name",
    "genre": "kind",
    "ressources": "resources",
    "accélérateurs": "accelerators",
    "processeurs": "cpus",
    "mémoire": "memory",
    "nombre_de_nœuds": "num_nodes",
    "préparation": "setup",
    "commande": "run",
    "environnement": "envs",
    "dossier": "workdir",
    "durée_max": "time_limit",
    "conservation": "retention",
    "priorité": "priority",
    "reprise": "retry",
    "essais": "attempts",
    "attente": "backoff",
    "étiquettes": "labels",
    "où": "where",
    "pays": "countries",
    "quand": "when",
    "échéance": "deadline",
    "modèle": "model",
    "variante": "variant",
    "répliques": "replicas",
    "cible": "target",
    "patience": "queue",
    "stabilisation": "stabilise",
    "inactivité": "idle",
    "démarrage": "cold_start",
    "vidange": "drain",
    "contexte": "context",
    "tableau": "array",
    "taille": "size",
    "au_plus": "at_most",
    "après": "after",
    "retenu": "hold",
    "signal": "stop_signal",
    "délai": "grace",
    "entrées": "inputs",
    "sorties": "outputs",
    "sorties_si": "outputs_when",
    "prévenir": "notify",
    "au_choix": "any_of",
    "arrêt_inactif": "idle_stop",
    "sous": "below",
}

PPM_PER_PERCENT: Final = 10_000
SCRIPT_CHARACTERS_MAX: Final = 256 * 1024
NODES_MAX: Final = 100_000
ACCELERATORS_MAX: Final = 1_024
REPLICAS_MAX: Final = 1_000
CONTEXT_TOKENS_MAX: Final = 10_000_000
ATTEMPTS_MAX: Final = 100
MEMORY_BYTES_MIN: Final = 10**6
MEMORY_BYTES_MAX: Final = 10**15
_ACCELERATORS: Final = re.compile(
    r"(?:(?![0-9]+$)([A-Za-z0-9][A-Za-z0-9._-]{0,62})(?::([0-9]{1,9}))?|([0-9]{1,9}))"
)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def _keys(*known: str) -> Keys:
    return Keys(known, {french: english for french, english in FRENCH.items() if english in known})


ENDPOINT_KEYS: Final = (
    *("model", "variant", "replicas", "context", "parallel", "public", "drain"),
    "fallbacks",
)
FALLBACKS_MAX: Final = 8
DATA_KEYS: Final = ("secrets", "inputs", "outputs", "outputs_when")
TASK_KEYS: Final = ("run", "command", "setup", "envs", "workdir", "image", *DATA_KEYS)
JOB_KEYS: Final = _keys(
    *("name", "kind", "resources", "num_nodes", *TASK_KEYS, "time_limit", "priority", "retry"),
    *("labels", "retention", "where", "when", *ENDPOINT_KEYS),
    *("array", "after", "hold", "stop_signal", "grace", "notify", "idle_stop"),
)
ONE_OF_KEYS: Final = _keys("accelerators", "cpus", "memory")
RESOURCE_KEYS: Final = _keys(*ONE_OF_KEYS.known, "any_of")
ARRAY_KEYS: Final = _keys("size", "first", "step", "at_most")
AFTER_KEYS: Final = _keys("workload", "when")
IDLE_KEYS: Final = _keys("after", "below")
SCALING_KEYS: Final = _keys("min", "max", "target", "queue", "stabilise", "idle", "cold_start")
_ARRAY: Final = re.compile(r"([0-9,:-]{1,4000})(?:%([0-9]{1,6}))?")
_SPAN: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([1-9][0-9]{0,8}))?)?")
STOP_GRACE_S_DEFAULT: Final = 10
_RANGE: Final = re.compile(r"([0-9]{1,4})(?:-|\.\.)([0-9]{1,4})")
RETRY_KEYS: Final = _keys("attempts", "backoff")
WHERE_KEYS: Final = _keys("countries", "zones")
WHEN_KEYS: Final = _keys("deadline", "flexible")


def parse_job(
    body: object, *, origin: str = "the job file", default_name: str = "job"
) -> WorkloadSpec:
    """Return what the mapping of a job file asks for.

    `origin` names the file in messages. Raises `InvalidSpec` with the path of the first key that
    is unknown (naming the nearest valid one), missing, of a wrong type or impossibly large.
    """
    top = section(body, JOB_KEYS, origin=origin)
    kind = top.word("kind", WorkloadKind, WorkloadKind.JOB)
    _refuse_keys_of_others(top, kind)
    resources, *alternatives = _choices(top)
    return WorkloadSpec(
        kind=kind,
        name=top.name("name", default_name),
        resources=resources,
        alternatives=tuple(alternatives),
        nodes=top.integer("num_nodes", 1, minimum=1, maximum=NODES_MAX),
        task=_task(top) if kind is WorkloadKind.JOB else None,
        endpoint=_endpoint(top) if kind is WorkloadKind.ENDPOINT else None,
        where=_where(top),
        when=_when(top),
        retry=_retry(top),
        time_limit_s=top.measure("time_limit", parse_duration_s, 0, minimum=1),
        priority=top.integer("priority", 50, minimum=0, maximum=100),
        labels=top.text_map("labels", form=_LABEL, items_max=64),
        retention_s=top.measure("retention", parse_duration_s, RETENTION_S_DEFAULT),
        managed_by=origin,
        array=_array(top),
        after=_after(top),
        is_held=top.flag("hold"),
        stop_signal=_stop_signal(top),
        stop_grace_s=top.measure("grace", parse_duration_s, STOP_GRACE_S_DEFAULT, maximum=3600),
        is_notified=top.flag("notify"),
        idle_stop=_idle_stop(top),
    )


def parse_array(written: str) -> JobArray | None:
    """Read Slurm's form of an array, `0-99%10`, `1-9:2` or `3,7,12`, None for another form.

    >>> parse_array("0-99%10")
    JobArray(size=100, first=0, step=1, listed=(), at_most=10)
    >>> parse_array("12,3,7").listed
    (3, 7, 12)
    """
    found = _ARRAY.fullmatch(written.strip())
    if found is None:
        return None
    parts = [_SPAN.fullmatch(part) for part in found[1].split(",")]
    spans = [_span(part) if part is not None else range(0) for part in parts]
    if sum(map(len, spans)) > ARRAY_SIZE_MAX or not all(spans):
        return None
    at_most = int(found[2] or 0)
    if len(spans) == 1:
        [span] = spans
        step = span.step if len(span) > 1 else 1
        return JobArray(size=len(span), first=span.start, step=step, at_most=at_most)
    listed = tuple(sorted({index for span in spans for index in span}))
    return JobArray(size=len(listed), listed=listed, at_most=at_most)


def parse_accelerators(written: str) -> tuple[str, int] | None:
    """Read `B300:8`, `B300` or `8` as a machine class and a number, None for another form.

    >>> parse_accelerators("B300:8"), parse_accelerators("2"), parse_accelerators("B300:x")
    (('B300', 8), ('', 2), None)
    >>> parse_accelerators("2080ti:4"), parse_accelerators("1g.5gb"), parse_accelerators("3090:2")
    (('2080ti', 4), ('1g.5gb', 1), ('3090', 2))
    """
    found = _ACCELERATORS.fullmatch(written.strip())
    if found is None:
        return None
    count = int(found[2] or found[3] or 1)
    return found[1] or "" if count else "", count


def _refuse_keys_of_others(top: Section, kind: WorkloadKind) -> None:
    if kind is WorkloadKind.JOB and "model" in top.body:
        top.refuse("model", "a job serves no model", "add `kind: endpoint`, or remove `model`")
    unfit = {
        WorkloadKind.JOB: ENDPOINT_KEYS,
        WorkloadKind.ENDPOINT: (*TASK_KEYS, "num_nodes", "array", "idle_stop"),
    }.get(kind, (*ENDPOINT_KEYS, *TASK_KEYS, "array", "idle_stop"))
    for key in top.body:
        if key in unfit:
            top.refuse(key, f"has no meaning for kind {kind.value}", f"remove {key}")


def _choices(top: Section) -> tuple[Resources, ...]:
    """Read resources, or with `any_of` each alternative in order, over what is common to all."""
    wanted = top.child("resources", RESOURCE_KEYS)
    listed = wanted.body.get("any_of")
    if listed is None:
        return (_resources(wanted),)
    if not isinstance(listed, list | tuple) or not 1 <= len(listed) <= ALTERNATIVES_MAX:
        wanted.refuse("any_of", f"expected a list of 1 to {ALTERNATIVES_MAX} alternatives")
    shared = {key: value for key, value in wanted.body.items() if key != "any_of"}
    each_path = (f"{wanted.at('any_of')}.{index}" for index in range(len(listed)))
    found = (
        section(each, ONE_OF_KEYS, origin=wanted.origin, path=path)
        for each, path in zip(listed, each_path, strict=True)
    )
    return tuple(
        _resources(Section(each.origin, each.path, {**shared, **each.body})) for each in found
    )


def _resources(wanted: Section) -> Resources:
    accelerator_class, accelerators = _accelerators(wanted)
    return Resources(
        cpu_milli=wanted.measure("cpus", parse_cpu_milli, 1000, minimum=1),
        memory_bytes=wanted.measure(
            "memory",
            parse_bytes,
            512 * 10**6,
            minimum=MEMORY_BYTES_MIN,
            maximum=MEMORY_BYTES_MAX,
        ),
        accelerator_class=accelerator_class,
        accelerators=accelerators,
    )


def _accelerators(wanted: Section) -> tuple[str, int]:
    value = wanted.body.get("accelerators")
    if value is None:
        return "", 0
    if isinstance(value, Mapping) and len(value) == 1:
        value = ":".join(str(part) for part in next(iter(value.items())))
    found = parse_accelerators(value if isinstance(value, str) else shown(value))
    if found is None:
        wanted.refuse("accelerators", f"cannot read {shown(value)}", "write B300:8, or 8 for any")
    if found[1] > ACCELERATORS_MAX:
        wanted.refuse(
            "accelerators",
            f"{found[1]} on each node; at most {ACCELERATORS_MAX} are allowed",
            "num_nodes spreads the work over several nodes",
        )
    return found


def _task(top: Section) -> TaskTemplate:
    if "run" in top.body and "command" in top.body:
        top.refuse("command", "both run and command are given", "keep one of them")
    script = top.text("run", characters_max=SCRIPT_CHARACTERS_MAX)
    command = ("sh", "-c", script) if script.strip() else top.texts("command")
    if not command:
        top.refuse("run", "a job needs a command", "for example `run: python train.py`")
    secrets, secret_files = read_secrets(top)
    task = TaskTemplate(
        command=command,
        setup=top.text("setup", characters_max=SCRIPT_CHARACTERS_MAX),
        env=top.text_map("envs", form=_VARIABLE, items_max=1_000),
        workdir=top.text("workdir"),
        image=_image(top),
        secrets=secrets,
        secret_files=secret_files,
        inputs=read_copies(top, "inputs"),
        outputs=read_copies(top, "outputs"),
        outputs_when=top.word("outputs_when", OutputsWhen, OutputsWhen.SUCCESS),
    )
    check_copies(top, task, _array(top))
    return task


def _image(top: Section) -> str:
    written = top.text("image")
    if written and read_image(written) is None:
        top.refuse("image", f"{shown(written)} is no image", HINTS[Need.UNKNOWN_IMAGE])
    return written


def _endpoint(top: Section) -> EndpointSpec:
    model = top.text("model")
    if not model:
        top.refuse("model", "an endpoint needs a model", "`moulin models` lists the catalogue")
    replicas, scaling = _replicas(top)
    return EndpointSpec(
        model=model,
        variant=top.text("variant"),
        replicas=replicas,
        scaling=scaling,
        drain_s=top.measure("drain", parse_duration_s, DRAIN_S_DEFAULT, maximum=86_400),
        context_tokens=top.integer("context", 4096, minimum=16, maximum=CONTEXT_TOKENS_MAX),
        parallel_requests=top.integer("parallel", 2, minimum=1, maximum=256),
        is_public=top.flag("public"),
        fallbacks=_fallbacks(top),
    )


def _replicas(top: Section) -> tuple[int, Scaling | None]:
    """Read a number of replicas, or `0-3`, or a mapping with more of how load moves it."""
    value = top.body.get("replicas")
    found = _RANGE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is not None:
        scaling = Scaling(replicas_min=int(found[1]), replicas_max=int(found[2]))
    elif isinstance(value, Mapping):
        scaling = _scaling(top.child("replicas", SCALING_KEYS))
    else:
        return top.integer("replicas", 1, minimum=0, maximum=REPLICAS_MAX), None
    least, most = scaling.replicas_min, scaling.replicas_max
    if not least <= most <= REPLICAS_MAX or most < 1:
        top.refuse("replicas", f"from {least} to {most}", f"0 <= min <= max <= {REPLICAS_MAX}")
    # The first one is wanted at once: a deployment that answers once is known to work.
    return max(least, 1), scaling


def _scaling(wanted: Section) -> Scaling:
    plain = Scaling()
    least = wanted.integer("min", plain.replicas_min, minimum=0, maximum=REPLICAS_MAX)
    return Scaling(
        replicas_min=least,
        replicas_max=wanted.integer("max", max(least, 1), minimum=1, maximum=REPLICAS_MAX),
        target_requests=wanted.integer("target", 0, minimum=0, maximum=10_000),
        target_queue_s=wanted.measure(
            "queue", parse_duration_s, plain.target_queue_s, minimum=1, maximum=3600
        ),
        stabilise_s=wanted.measure(
            "stabilise", parse_duration_s, plain.stabilise_s, maximum=86_400
        ),
        idle_s=wanted.measure("idle", parse_duration_s, plain.idle_s, minimum=1),
        cold_start_s=wanted.measure(
            "cold_start", parse_duration_s, plain.cold_start_s, minimum=1, maximum=3600
        ),
    )


def _fallbacks(top: Section) -> tuple[str, ...]:
    names = top.texts("fallbacks")
    if len(names) > FALLBACKS_MAX:
        top.refuse("fallbacks", f"{len(names)} names, at most {FALLBACKS_MAX} are allowed")
    for name in names:
        check_name(top.origin, top.at("fallbacks"), name)
    return names


def _where(top: Section) -> Where:
    where = top.child("where", WHERE_KEYS)
    zones = where.texts("zones")
    for zone in zones:
        check_name(where.origin, where.at("zones"), zone)
    return Where(countries=where.countries("countries"), zones=zones)


def _when(top: Section) -> When:
    when = top.child("when", WHEN_KEYS)
    return When(
        deadline_s=when.measure("deadline", parse_duration_s, 0, minimum=1),
        is_flexible=when.flag("flexible"),
    )


def _retry(top: Section) -> Retry:
    retry = top.child("retry", RETRY_KEYS)
    return Retry(
        attempts_max=retry.integer("attempts", 1, minimum=1, maximum=ATTEMPTS_MAX),
        backoff_s=retry.measure("backoff", parse_duration_s, 1, maximum=86_400),
    )


def _array(top: Section) -> JobArray | None:
    """Read Slurm's form, or a mapping with a size."""
    value = top.body.get("array")
    if value is None:
        return None
    if isinstance(value, Mapping):
        wanted = top.child("array", ARRAY_KEYS)
        return JobArray(
            size=wanted.integer("size", 1, minimum=1, maximum=ARRAY_SIZE_MAX),
            first=wanted.integer("first", 0, minimum=0, maximum=ARRAY_INDEX_MAX),
            step=wanted.integer("step", 1, minimum=1, maximum=ARRAY_INDEX_MAX),
            at_most=wanted.integer("at_most", 0, minimum=0, maximum=ARRAY_SIZE_MAX),
        )
    found = parse_array(top.text("array"))
    if found is None:
        top.refuse(
            "array", f"cannot read {shown(value)}", f"write 0-99%10; at most {ARRAY_SIZE_MAX}"
        )
    return found


def _span(found: re.Match[str]) -> range:
    first, last = int(found[1]), int(found[2] or found[1])
    return range(first, last + 1, int(found[3] or 1))


def _after(top: Section) -> tuple[After, ...]:
    value = top.body.get("after")
    items = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if len(items) > AFTER_MAX:
        top.refuse("after", f"{len(items)} workloads, at most {AFTER_MAX} are allowed")
    return tuple(_after_one(top, index, item) for index, item in enumerate(items))


def _after_one(top: Section, index: int, item: object) -> After:
    path = f"{top.at('after')}.{index}"
    body = item if isinstance(item, Mapping) else {"workload": item}
    wanted = section(body, AFTER_KEYS, origin=top.origin, path=path)
    workload = wanted.name("workload")
    if not workload:
        wanted.refuse("workload", "names no workload", "give its id, or its name")
    return After(workload=workload, when=wanted.word("when", AfterWhen, AfterWhen.OK))


def _idle_stop(top: Section) -> IdleStop | None:
    """Read a duration, or a mapping with one and a percentage of the CPU held."""
    if top.body.get("idle_stop") is None:
        return None
    if not isinstance(top.body["idle_stop"], Mapping):
        return IdleStop(after_s=top.measure("idle_stop", parse_duration_s, 0, minimum=1))
    wanted = top.child("idle_stop", IDLE_KEYS)
    after_s = wanted.measure("after", parse_duration_s, 0, minimum=1)
    if not after_s:
        wanted.refuse("after", "says not how long", "write {after: 30m, below: 2}")
    default = IDLE_SHARE_PPM_DEFAULT // PPM_PER_PERCENT
    share = wanted.integer("below", default, minimum=1, maximum=100)
    return IdleStop(after_s=after_s, share_ppm=share * PPM_PER_PERCENT)


def _stop_signal(top: Section) -> str:
    written = top.text("stop_signal", STOP_SIGNALS[0]).upper().removeprefix("SIG")
    if written not in STOP_SIGNALS:
        top.refuse("stop_signal", f"there is no {shown(written)}", nearest(written, STOP_SIGNALS))
    return written
