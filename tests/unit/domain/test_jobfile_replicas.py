"""Numbers of replicas in a job file: one, a range, or all of how load moves them."""

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.jobfile import parse_job
from moulin.domain.workload import Scaling


def parsed(**body: object):
    found = parse_job({"kind": "endpoint", "model": "m", **body}).endpoint
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("written", "replicas", "scaling"),
    [
        (2, 2, None),
        (0, 0, None),
        ("3", 3, None),
        ("0-3", 1, Scaling(replicas_min=0, replicas_max=3)),
        ("2..4", 2, Scaling(replicas_min=2, replicas_max=4)),
        ({"max": 2}, 1, Scaling(replicas_max=2)),
        ({"min": 2}, 2, Scaling(replicas_min=2, replicas_max=2)),
        (
            {"min": 0, "max": 3, "target": 4, "queue": "2s", "stabilise": "1m", "idle": "10m"},
            1,
            Scaling(
                replicas_max=3, target_requests=4, target_queue_s=2, stabilise_s=60, idle_s=600
            ),
        ),
        (
            {"max": 1, "inactivité": "1h", "démarrage": "2m"},
            1,
            Scaling(idle_s=3600, cold_start_s=120),
        ),
    ],
)
def test_replicas(written, replicas, scaling):
    found = parsed(replicas=written)
    assert (found.replicas, found.scaling) == (replicas, scaling)


@pytest.mark.parametrize(
    "written",
    ["3-1", "0-0", "0-5000", {"min": 3, "max": 2}, {"most": 3}, {"idle": "0s"}, [1, 2], "some"],
)
def test_what_no_endpoint_can_have(written):
    with pytest.raises(InvalidSpec, match="replicas"):
        parsed(replicas=written)


def test_a_grace_for_what_is_under_way():
    assert parsed().drain_s == 300
    assert parsed(drain="1m").drain_s == 60
