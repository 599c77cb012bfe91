"""Arrays, dependencies, alternatives and ends in job files: what they become, and what is refused."""

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.jobfile import parse_array, parse_job
from moulin.domain.workload import (
    ARRAY_SIZE_MAX,
    After,
    AfterWhen,
    JobArray,
    Resources,
    choices_of,
    units_wanted,
)


def read(**keys):
    return parse_job({"run": "true", **keys})


@pytest.mark.parametrize(
    ("written", "array"),
    [
        ("0-99%10", JobArray(size=100, at_most=10)),
        ("5", JobArray(size=1, first=5)),
        ("1-9:2", JobArray(size=5, first=1, step=2)),
        ("3,7,12", JobArray(size=3, listed=(3, 7, 12))),
        ("12,1-3%2", JobArray(size=4, listed=(1, 2, 3, 12), at_most=2)),
        ("1-2,2", JobArray(size=2, listed=(1, 2))),
        (" 0-0 ", JobArray(size=1)),
    ],
)
def test_slurms_form_of_an_array(written, array):
    assert parse_array(written) == array
    assert read(array=written).array == array
    assert units_wanted(read(array=written)) == array.size


@pytest.mark.parametrize(
    "written",
    ["", "a", "3-1", "1-", "0-99%", "1,,2", "-1", f"0-{ARRAY_SIZE_MAX}", "1-9:0", "0-2%x"],
)
def test_what_is_no_array(written):
    assert parse_array(written) is None
    if written:
        with pytest.raises(InvalidSpec, match="array"):
            read(array=written)


def test_an_array_as_a_mapping():
    assert read(array={"size": 8, "at_most": 2, "first": 1}).array == JobArray(
        size=8, first=1, at_most=2
    )
    assert read(array=7).array == JobArray(size=1, first=7)
    with pytest.raises(InvalidSpec, match=r"array\.size"):
        read(array={"size": 0})


def test_indices_and_units():
    array = JobArray(size=3, first=10, step=5)
    assert [array.index_of(unit) for unit in range(3)] == [10, 15, 20]
    assert array.units_of((20, 10, 11)) == (0, 2)


@pytest.mark.parametrize(
    ("written", "after"),
    [
        ("prepare", (After(workload="prepare"),)),
        (
            ["job_1", {"workload": "b", "when": "any"}],
            (After(workload="job_1"), After(workload="b", when=AfterWhen.ANY)),
        ),
    ],
)
def test_what_comes_first(written, after):
    assert read(after=written).after == after


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"after": [{"when": "ok"}]}, r"after\.0\.workload"),
        ({"after": [{"workload": "a", "when": "later"}]}, r"after\.0\.when"),
        ({"after": ["../x"]}, r"after\.0\.workload"),
        ({"after": ["a"] * 101}, "after"),
        ({"hold": "maybe"}, "hold"),
        ({"stop_signal": "KILL"}, "stop_signal"),
        ({"grace": "2h"}, "grace"),
        ({"resources": {"any_of": []}}, r"resources\.any_of"),
        ({"resources": {"any_of": [{"cpu": 1}]}}, r"resources\.any_of\.0\.cpu"),
        ({"resources": {"any_of": {"cpus": 1}}}, r"resources\.any_of"),
        ({"array": "0-9", "kind": "lease"}, "array|run"),
    ],
)
def test_wrong_words_are_refused_with_their_place(keys, path):
    with pytest.raises(InvalidSpec, match=path):
        read(**keys)


def test_an_endpoint_is_no_array():
    with pytest.raises(InvalidSpec, match="array"):
        parse_job({"kind": "endpoint", "model": "m", "array": "0-3"})


def test_alternatives_stand_over_what_they_share():
    spec = read(resources={"memory": "1GB", "any_of": [{"accelerators": "H100:8"}, {"cpus": 64}]})
    assert choices_of(spec) == (
        Resources(memory_bytes=10**9, accelerator_class="H100", accelerators=8),
        Resources(memory_bytes=10**9, cpu_milli=64_000),
    )


def test_how_it_is_asked_to_end_and_who_is_told():
    spec = read(hold=True, stop_signal="sigusr1", grace="60s", notify=True)
    assert (spec.is_held, spec.stop_signal, spec.stop_grace_s, spec.is_notified) == (
        True,
        "USR1",
        60,
        True,
    )
    assert (read().stop_signal, read().stop_grace_s) == ("TERM", 10)


def test_french_words():
    spec = parse_job(
        {
            "commande": "true",
            "tableau": {"taille": 3, "au_plus": 1},
            "après": "prépare".replace("é", "e"),
            "retenu": True,
            "signal": "INT",
            "délai": "30s",
            "ressources": {"au_choix": [{"processeurs": 2}, {"processeurs": 1}]},
        }
    )
    assert spec.array == JobArray(size=3, at_most=1)
    assert (spec.after, spec.is_held, spec.stop_signal) == (
        (After(workload="prepare"),),
        True,
        "INT",
    )
    assert [each.cpu_milli for each in choices_of(spec)] == [2000, 1000]
