"""What a check's tasks print becomes links; what an operator may want of a check."""

import json

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import Pool
from moulin.domain.factoryfile import parse_factory
from moulin.domain.ids import NodeId
from moulin.domain.preflight import LinkMeasured, Preflight, read_results

NODES = (NodeId("a"), NodeId("b"), NodeId("c"))
BODY = {
    "organisations": {"lab": {}},
    "sites": {"here": {"country": "FR"}},
    "zones": {"z": {"site": "here"}},
    "machine_classes": {"box": {"title": "box"}},
}


def pool(**more: object) -> Pool:
    """Return the pool of a file."""
    body = {"zone": "z", "engine": "slurm", "machine_class": "box", **more}
    objects = parse_factory({**BODY, "pools": {"p": body}}, origin="f", registry={})
    [found] = [each for each in objects if isinstance(each, Pool)]
    return found


def line(rank: int, **said: object) -> bytes:
    return json.dumps({"moulin_check": 1, "rank": rank, "transport": "sockets"} | said).encode()


def test_links_are_from_the_left_in_rank_order():
    lines = [
        b"a warning\n" + line(0, left=2, bytes_per_s=5, round_trip_ns=7, absent=[1]) + b"\nbye",
        b"",
        line(2, left=0, problem="x" * 1000, transport="nccl", right=1, right_problem="it hung up"),
    ]
    transport, links = read_results(NODES, lines)
    assert transport == "nccl,sockets"
    assert links == (
        LinkMeasured(
            sender=NodeId("b"), receiver=NodeId("a"), problem="it did not come to the check"
        ),
        LinkMeasured(sender=NodeId("c"), receiver=NodeId("a"), bytes_per_s=5, round_trip_ns=7),
        LinkMeasured(sender=NodeId("c"), receiver=NodeId("b"), problem="it hung up"),
        LinkMeasured(sender=NodeId("a"), receiver=NodeId("c"), problem="x" * 300),
    )


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"sh: python3: not found",
        b"[1, 2]",
        line(0, left=3),
        line(0, left=-1),
        line(0, left=1, bytes_per_s=True),
        line(0, left=1, round_trip_ns=1 << 70),
        line(0, left="1"),
        line(0, absent=[7]),
        line(0),
        line(0, left=0),
        line(0, left=1),
        line(0, right=0, right_problem="x"),
        line(0, right=5, right_problem="x"),
        b'{"moulin_check": 2, "left": 1}',
        b"\xff\xfe{",
    ],
)
def test_what_is_no_result_is_no_link(said):
    assert read_results(NODES, [said, b"", b""])[1] == ()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (None, None),
        ({}, Preflight()),
        (
            {
                "every": "12h",
                "rate_min": "2GB/s",
                "round_trip_us_max": 200,
                "size": "64MiB",
                "time_limit": "2m",
            },
            Preflight(
                every_s=43_200,
                bytes_per_s_min=2 * 10**9,
                round_trip_ns_max=200_000,
                size_bytes=64 << 20,
                time_limit_s=120,
            ),
        ),
    ],
)
def test_a_pool_may_want_a_check(words, wanted):
    assert pool(preflight=words).preflight == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"preflight": "yes"}, "preflight: expected keys with values"),
        ({"preflight": {"rate": "1GB/s"}}, "pools.p.preflight.rate: unknown key"),
        ({"preflight": {"rate_min": "fast"}}, "pools.p.preflight.rate_min"),
        ({"preflight": {"every": "1s"}}, "1s is too little"),
        ({"preflight": {"size": "1B"}}, "is too little"),
        ({"preflight": {}, "mode": "delegated"}, "in a delegated pool nobody knows its nodes"),
    ],
)
def test_what_no_check_can_be(words, message):
    with pytest.raises(InvalidSpec, match=message):
        pool(**words)
