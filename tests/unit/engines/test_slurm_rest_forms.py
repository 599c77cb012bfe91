"""How a job is written for slurmrestd; that Slurm reads it so is the integration tests' affair."""

from dataclasses import replace

import pytest

from moulin.engines.slurm.client import JobRequest
from moulin.engines.slurm.rest_forms import (
    FORMS,
    OLD,
    names_nodes,
    write_excluded,
    write_job,
    write_time_limit,
)

JOB = JobRequest(
    name="a", comment="c", directory="/d", output="/d/o", script=b"#!/bin/sh\n", nodes=2
)
NEW = FORMS[0]


def test_the_newest_form_is_tried_first_and_the_oldest_last():
    assert FORMS[0] == "v0.0.45"
    assert FORMS[-1] == OLD == "v0.0.38"
    assert "v0.0.39" not in FORMS
    assert [names_nodes(form) for form in (NEW, OLD)] == [True, False]


@pytest.mark.parametrize(
    ("form", "environment"), [(NEW, ["PATH=/bin", "A=1"]), (OLD, {"PATH": "/bin", "A": "1"})]
)
def test_a_script_comes_with_where_it_begins(form, environment):
    written = write_job(JOB, {"PATH": "/bin", "A": "1"}, form)
    assert written["job"]["environment"] == environment
    assert {**written, **written["job"]}["script"] == "#!/bin/sh\n"


@pytest.mark.parametrize(
    ("change", "new", "old"),
    [
        ({"time_limit_minutes": 7}, {"set": True, "number": 7}, 7),
        ({"is_unlimited": True}, {"set": True, "infinite": True}, "UNLIMITED"),
        ({}, None, None),
    ],
)
def test_times_are_asked_for_as_each_form_has_them(change, new, old):
    job = replace(JOB, **change)
    found = [write_job(job, {}, form)["job"].get("time_limit") for form in (NEW, OLD)]
    assert found == [new, old]


def test_nodes_and_devices_are_named_as_each_form_has_them():
    job = replace(JOB, gres="gpu:h100:2", excluded=("n1", "n2"))
    new, old = (write_job(job, {}, form)["job"] for form in (NEW, OLD))
    assert (new["tres_per_node"], new["excluded_nodes"]) == ("gres/gpu:h100:2", ["n1", "n2"])
    assert (old["gres"], old["exclude_nodes"]) == ("gpu:h100:2", "n1,n2")
    assert (new["minimum_nodes"], new["maximum_nodes"], old["nodes"]) == (2, 2, [2, 2])
    named = write_job(replace(JOB, hosts=("n1", "n2"), is_exclusive=True), {}, NEW)["job"]
    assert (named["required_nodes"], named["shared"]) == (["n1", "n2"], ["none"])


def test_changes_are_written_as_each_form_has_them():
    assert write_time_limit(9, NEW) == {"time_limit": {"set": True, "number": 9}}
    assert write_time_limit(9, OLD) == {"time_limit": 9}
    assert write_excluded(["n1", "n2"], NEW) == {"excluded_nodes": ["n1", "n2"]}
    assert write_excluded([], NEW) == {"excluded_nodes": [""]}
    assert write_excluded(["n1", "n2"], OLD) == {"exclude_nodes": "n1,n2"}
    assert write_excluded([], OLD) == {"exclude_nodes": ""}
