"""Job files: what each word becomes, and what each wrong word is answered with."""

from decimal import Decimal

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.jobfile import FRENCH, JOB_KEYS, parse_job
from moulin.domain.workload import (
    EndpointSpec,
    IdleStop,
    Resources,
    Retry,
    TaskTemplate,
    When,
    Where,
    WorkloadKind,
    WorkloadSpec,
)

ENGLISH_JOB = {
    "name": "train",
    "resources": {"accelerators": "B300:8", "cpus": 16, "memory": "64GB"},
    "num_nodes": 2,
    "setup": "pip list",
    "run": "python train.py",
    "envs": {"EPOCHS": 3, "RATE": Decimal("0.10"), "DEBUG": True},
    "workdir": "code",
    "image": "",
    "time_limit": "6h",
    "priority": 70,
    "retry": {"attempts": 3, "backoff": "30s"},
    "labels": {"team": "vision"},
    "retention": "30d",
    "where": {"countries": ["FR", "se"], "zones": "fr"},
    "when": {"deadline": "2d", "flexible": True},
}
FRENCH_JOB = {
    "nom": "train",
    "ressources": {"accélérateurs": {"B300": 8}, "processeurs": "16", "mémoire": "64GB"},
    "nombre_de_noeuds": 2,
    "préparation": "pip list",
    "commande": "python train.py",
    "environnement": {"EPOCHS": 3, "RATE": Decimal("0.10"), "DEBUG": True},
    "dossier": "code",
    "durée_max": "6h",
    "priorite": 70,
    "reprise": {"essais": 3, "attente": "30s"},
    "étiquettes": {"team": "vision"},
    "conservation": "30d",
    "où": {"pays": ["FR", "se"], "zones": "fr"},
    "quand": {"échéance": "2d", "flexible": True},
}
WANTED = WorkloadSpec(
    kind=WorkloadKind.JOB,
    name="train",
    resources=Resources(
        cpu_milli=16_000, memory_bytes=64 * 10**9, accelerator_class="B300", accelerators=8
    ),
    nodes=2,
    task=TaskTemplate(
        command=("sh", "-c", "python train.py"),
        setup="pip list",
        env={"EPOCHS": "3", "RATE": "0.10", "DEBUG": "true"},
        workdir="code",
    ),
    where=Where(countries=("FR", "SE"), zones=("fr",)),
    when=When(deadline_s=2 * 86400, is_flexible=True),
    retry=Retry(attempts_max=3, backoff_s=30),
    time_limit_s=6 * 3600,
    priority=70,
    labels={"team": "vision"},
    retention_s=30 * 86400,
    managed_by="the job file",
)


@pytest.mark.parametrize("body", [ENGLISH_JOB, FRENCH_JOB], ids=["english", "french"])
def test_a_whole_job_file(body):
    assert parse_job(body) == WANTED


def test_each_french_word_leads_to_a_known_one():
    nested = {"accelerators", "cpus", "memory", "attempts", "backoff", "countries", "deadline"}
    nested |= {"cold_start", "idle", "queue", "stabilise", "target", "size", "at_most", "any_of"}
    nested |= {"below"}
    assert set(FRENCH.values()) <= {*JOB_KEYS.known, *nested}


def test_what_is_left_out_gets_its_default():
    spec = parse_job({"run": "true"}, default_name="hello")
    assert spec.name == "hello"
    assert spec.resources == Resources()
    assert spec.where == Where()
    assert spec.time_limit_s == 0
    assert spec.retention_s == 7 * 86400


def test_an_exact_command_and_empty_sections():
    spec = parse_job({"command": ["echo", "a b"], "resources": None, "envs": None})
    assert spec.task is not None
    assert spec.task.command == ("echo", "a b")


@pytest.mark.parametrize(
    ("written", "kind", "count"),
    [
        ("B300:8", "B300", 8),
        ("H100", "H100", 1),
        (4, "", 4),
        ("4", "", 4),
        (0, "", 0),
        ({"H200": 2}, "H200", 2),
    ],
    ids=repr,
)
def test_accelerators(written, kind, count):
    spec = parse_job({"run": "x", "resources": {"accelerators": written}})
    assert (spec.resources.accelerator_class, spec.resources.accelerators) == (kind, count)


def test_an_endpoint():
    body = {"kind": "endpoint", "model": "m", "replicas": 2, "context": 2048, "public": True}
    spec = parse_job(body)
    assert spec.endpoint == EndpointSpec(
        model="m", replicas=2, context_tokens=2048, is_public=True, parallel_requests=2
    )
    assert spec.task is None


@pytest.mark.parametrize("kind", ["lease", "session"])
def test_other_kinds_are_understood(kind):
    assert parse_job({"kind": kind, "num_nodes": 2}).kind == kind


def with_resources(**resources):
    return {"run": "x", "resources": resources}


BAD = [
    ({"run": "x", "num_node": 2}, "num_node: unknown key", "did you mean num_nodes?"),
    ({"run": "x", "acceleratos": 2}, "acceleratos: unknown key", "known here: name"),
    (with_resources(gpus=1), "resources.gpus: unknown key", ""),
    (with_resources(acelerators=1), "resources.acelerators", "did you mean accelerators?"),
    (with_resources(memoire="1GB", memory="1GB"), "memory is given twice", ""),
    ({}, "run: a job needs a command", "run:"),
    ({"run": "  "}, "run: a job needs a command", ""),
    ({"run": "x", "command": ["y"]}, "both run and command", ""),
    ({"run": ["x"]}, "run: expected a text, found a list", ""),
    ({"run": "x\0y"}, "NUL", ""),
    ({"run": "x" * 300_000}, "run: 300000 characters", ""),
    ({"run": "x", "name": "../up"}, "name: '../up' cannot be a name", ""),
    ({"run": "x", "name": "a" * 64}, "cannot be a name", ""),
    ({"run": "x", "kind": "jobb"}, "kind: there is no 'jobb'", "did you mean job?"),
    ({"run": "x", "model": "m"}, "a job serves no model", "kind: endpoint"),
    ({"run": "x", "replicas": 2}, "replicas: has no meaning for kind job", ""),
    ({"kind": "endpoint", "model": "m", "run": "x"}, "run: has no meaning", ""),
    ({"kind": "endpoint"}, "model: an endpoint needs a model", ""),
    ({"kind": "lease", "run": "x"}, "run: has no meaning for kind lease", ""),
    ({"run": "x", "num_nodes": 0}, "num_nodes: 0 is not from 1", ""),
    ({"run": "x", "num_nodes": 10**9}, "num_nodes: 1000000000 is not from 1 to 100000", ""),
    ({"run": "x", "num_nodes": 1.5}, "num_nodes: expected a whole number", ""),
    ({"run": "x", "num_nodes": True}, "num_nodes: expected a whole number, found True", ""),
    ({"run": "x", "num_nodes": "9" * 5000}, "expected a whole number", ""),
    ({"run": "x", "priority": 101}, "priority: 101 is not from 0 to 100", ""),
    (with_resources(cpus=-1), "resources.cpus", "2 or 0.5"),
    (with_resources(cpus=0), "resources.cpus: 0 is too little", ""),
    (with_resources(cpus="many"), "resources.cpus", ""),
    (with_resources(cpus=10**12), "resources.cpus", ""),
    (with_resources(cpus="9" * 500), "no amount that anything could have", ""),
    (with_resources(memory=64), "resources.memory: 64 is too little", "64GB"),
    (with_resources(memory="64 gigs"), "resources.memory", "16GB"),
    (with_resources(memory="9000TB"), "more than anything here can have", ""),
    (with_resources(memory=True), "resources.memory: expected an amount", ""),
    (with_resources(accelerators="B300:x"), "resources.accelerators: cannot read", "B300:8"),
    (with_resources(accelerators="B300:99999"), "at most 1024", "num_nodes"),
    (with_resources(accelerators=-1), "cannot read -1", ""),
    (with_resources(accelerators=["H100"]), "cannot read a list", ""),
    ({"run": "x", "resources": "all"}, "resources: expected keys with values", ""),
    ({"run": "x", "time_limit": "0s"}, "time_limit: 0s is too little", ""),
    ({"run": "x", "time_limit": "forever"}, "time_limit", "30s, 15m, 6h or 2d"),
    ({"run": "x", "time_limit": "99999999d"}, "time_limit", ""),
    ({"run": "x", "retry": {"attempts": 0}}, "retry.attempts: 0 is not from 1 to 100", ""),
    ({"run": "x", "retry": {"backoff": "30d"}}, "retry.backoff", ""),
    ({"run": "x", "where": {"countries": ["France"]}}, "where.countries: 'France'", "FR or SE"),
    ({"run": "x", "where": {"countries": [False]}}, "where.countries: 'false'", ""),
    ({"run": "x", "where": {"country": "FR"}}, "where.country: unknown", "countries?"),
    ({"run": "x", "where": {"zones": ["a b"]}}, "where.zones: 'a b' cannot be a name", ""),
    ({"run": "x", "when": {"flexible": "yes"}}, "when.flexible: expected true or false", ""),
    ({"run": "x", "envs": {"2X": "y"}}, "envs: '2X' is not a name", ""),
    ({"run": "x", "envs": {"A": ["y"]}}, "envs.A: expected a text", ""),
    ({"run": "x", "envs": {"A=B": "y"}}, "is not a name", ""),
    ({"run": "x", "labels": {f"l{i}": "" for i in range(65)}}, "labels: 65 entries", ""),
    ({"run": "x", 7: "y"}, "the key 7 is not a text", ""),
    (["run"], "expected keys with values, found a list", ""),
    ("run", "expected keys with values", ""),
    (None, "found nothing", ""),
]


@pytest.mark.parametrize(("body", "message", "hint"), BAD, ids=range(len(BAD)))
def test_wrong_files_are_refused_with_the_place(body, message, hint):
    with pytest.raises(InvalidSpec) as caught:
        parse_job(body, origin="job.yaml")
    assert message in caught.value.message
    assert caught.value.message.startswith("read job.yaml: ")
    assert hint in caught.value.hint
    assert len(caught.value.message) < 400
    assert caught.value.details["file"] == "job.yaml"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"idle_stop": "30m"}, IdleStop(after_s=1800)),
        ({"arrêt_inactif": "30m"}, IdleStop(after_s=1800)),
        ({"idle_stop": {"after": "1h", "below": 10}}, IdleStop(after_s=3600, share_ppm=100_000)),
        ({"arret_inactif": {"après": "1h", "sous": 1}}, IdleStop(after_s=3600, share_ppm=10_000)),
        ({}, None),
    ],
)
def test_when_an_idle_job_is_stopped(body, wanted):
    assert parse_job({"run": "true", **body}).idle_stop == wanted


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"run": "true", "idle_stop": 0}, "idle_stop"),
        ({"run": "true", "idle_stop": {"below": 5}}, "idle_stop.after"),
        ({"run": "true", "idle_stop": {"after": "1m", "below": 101}}, "idle_stop.below"),
        ({"kind": "endpoint", "model": "m", "idle_stop": "5m"}, "idle_stop"),
    ],
)
def test_an_idle_stop_that_makes_no_sense_is_refused_by_its_path(body, path):
    with pytest.raises(InvalidSpec, match=path):
        parse_job(body)
