"""Conservation from intervals to usages, in whatever order and batches the records arrive."""

from hypothesis import given
from hypothesis import strategies as st

from moulin.domain.factory import Site
from moulin.domain.ids import AttemptId, NodeId, OrganisationId, ProjectId, WorkloadId
from moulin.domain.usage import RequestUsage, Usage
from moulin.energy.allocation import carbon
from moulin.energy.requests import SHARE_METHOD, share_requests
from moulin.metering.replicas import (
    MeteringRules,
    OpenMetering,
    ReplicaInterval,
    RequestBegun,
    absorb,
    close_intervals,
)
from moulin.metering.usage import AttemptFacts

REPLICAS = [AttemptId("r1"), AttemptId("r2")]
FACTS = {
    replica: AttemptFacts(
        attempt=replica,
        workload=WorkloadId("end_1"),
        organisation=OrganisationId("o"),
        project=ProjectId("p"),
        zone="z",
        site=Site(name="s", country="FR", carbon_location_ng_per_kwh=10**10),
    )
    for replica in REPLICAS
}
RULES = MeteringRules(
    share=share_requests, share_method=SHARE_METHOD, carbon=carbon, deadline_ns=30
)


@st.composite
def histories(draw):
    intervals = [
        ReplicaInterval(
            replica=replica,
            node=NodeId("n"),
            start_ns=10 * i,
            end_ns=10 * (i + 1),
            energy_mj=(standing := draw(st.integers(0, 500))) + draw(st.integers(0, 500)),
            standing_mj=standing,
            overhead_mj=draw(st.integers(0, 100)),
        )
        for replica in REPLICAS
        for i in range(draw(st.integers(1, 5)))
    ]
    requests = [
        RequestUsage(
            request=f"q{i}",
            organisation=OrganisationId("o"),
            project=ProjectId("p"),
            key="k",
            model="m",
            replica=draw(st.sampled_from(REPLICAS)),
            zone="z",
            start_ns=(start_ns := draw(st.integers(0, 50))),
            end_ns=start_ns + draw(st.integers(0, 30)),
            tokens_input=draw(st.integers(0, 100)),
            tokens_output=draw(st.integers(0, 100)),
            outcome="completed",
        )
        for i in range(draw(st.integers(0, 6)))
    ]
    return intervals, requests


def run(records, gaps):
    """Feed records one by one, closing after each at the time reached, then at the end of time."""
    state, now_ns = OpenMetering(), 0
    usages: list[Usage] = []
    for (name, record), gap in zip(records, gaps, strict=True):
        now_ns += gap
        state = absorb(state, **{name: [record]})
        closing = close_intervals(state, now_ns, journal_until_ns=now_ns, facts=FACTS, rules=RULES)
        state, usages = closing.state, [*usages, *closing.usages]
    closing = close_intervals(state, 10**6, journal_until_ns=10**6, facts=FACTS, rules=RULES)
    assert not closing.unplaced
    assert (closing.state.intervals, closing.state.settled, closing.state.carried) == ((), {}, {})
    return [*usages, *closing.usages]


@given(histories(), st.data())
def test_no_millijoule_is_lost_or_made_in_any_order(history, data):
    intervals, requests = history
    records = [
        *(("intervals", i) for i in intervals),
        *(
            ("begun", RequestBegun(request=r.request, begun_ns=r.start_ns, replica=r.replica))
            for r in requests
        ),
        *(("settled", r) for r in requests),
    ]
    records = data.draw(st.permutations(records))
    # A node's intervals are made one after the other; everything else may come at any time.
    in_order = iter(sorted(intervals, key=lambda i: i.start_ns))
    records = [(n, next(in_order)) if n == "intervals" else (n, r) for n, r in records]
    gaps = data.draw(st.lists(st.integers(0, 20), min_size=len(records), max_size=len(records)))
    usages = run(records, gaps)
    assert len({usage.id for usage in usages}) == len(usages)
    assert sum(u.energy_mj for u in usages) == sum(i.energy_mj + i.overhead_mj for i in intervals)
    assert {u.request for u in usages if u.request} == {r.request for r in requests}


@given(histories(), st.data())
def test_the_order_of_arrival_before_closing_changes_nothing(history, data):
    intervals, requests = history
    shuffled = absorb(
        OpenMetering(),
        intervals=data.draw(st.permutations(intervals)),
        settled=data.draw(st.permutations(requests)),
    )
    straight = absorb(OpenMetering(), intervals=intervals, settled=requests)

    def close(state):
        return close_intervals(state, 10**6, journal_until_ns=10**6, facts=FACTS, rules=RULES)

    first = close(straight)
    assert close(shuffled).usages == first.usages
    assert sum(u.energy_mj for u in first.usages) == sum(
        i.energy_mj + i.overhead_mj for i in intervals
    )
