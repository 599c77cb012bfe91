"""Aliases and fallbacks on their way to gateways, and what a request that fell back is charged."""

from dataclasses import replace

import pytest

from moulin.domain.errors import InvalidSpec
from moulin.domain.factory import Alias
from moulin.domain.snapshot import AliasTarget, AliasView, GatewaySnapshot
from moulin.domain.workload import EndpointSpec
from tests.integration.controlplane.bench import MODEL, Bench, endpoint
from tests.integration.controlplane.serving import Gateway, cost


def snapshot_of(mill: Bench) -> GatewaySnapshot:
    reply = Gateway(mill, name="looks", epoch=mill.clock.now_ns()).sync()
    assert reply.snapshot is not None
    return reply.snapshot


def test_an_alias_reaches_gateways_changes_and_leaves(mill: Bench) -> None:
    alias = Alias(name="chat", targets={"old": 9, "new": 1}, project="atelier", sunset_at_ns=7)
    mill.apply(alias, file="alias chat")
    old, new = (AliasTarget(model="old", weight=9), AliasTarget(model="new", weight=1))
    assert snapshot_of(mill).aliases == (
        AliasView(name="chat", project="atelier", targets=(new, old), sunset_at_ns=7),
    )
    mill.apply(replace(alias, targets={"old": 1}, sunset_at_ns=0), file="alias chat")
    [found] = snapshot_of(mill).aliases
    assert found.targets == (AliasTarget(model="old", weight=1),)
    mill.apply(file="alias chat")
    assert snapshot_of(mill).aliases == ()


def test_an_alias_for_a_project_that_is_not_there(mill: Bench) -> None:
    with pytest.raises(InvalidSpec):
        mill.apply(Alias(name="chat", targets={"old": 1}, project="attic"), file="alias chat")


def test_fallbacks_reach_gateways_and_the_model_that_served_is_charged(mill: Bench) -> None:
    spec = endpoint("big")
    big = mill.submit(replace(spec, endpoint=EndpointSpec(model=MODEL, fallbacks=("small",))))
    small = mill.submit(endpoint("small"))
    mill.turns(2, 1.0)
    gate = Gateway(mill)
    snapshot = gate.sync().snapshot
    assert snapshot is not None
    fallbacks = {model.name: model.fallbacks for model in snapshot.models}
    assert fallbacks == {"big": ("small",), "small": ()}
    gate.begin("q1", big.id, project="atelier", replica=f"{big.id}.u0.g1", tokens=1000)
    gate.end("q1", small.id, tokens=100)
    gate.sync()
    mill.turns(12, 1.0)
    gate.sync()
    mill.turns(2, 1.0)
    receipts = [r for r in mill.store.receipts(limit=1000) if r.usage.request == "q1"]
    assert [(r.usage.workload, r.charge.amount_neur) for r in receipts] == [(small.id, cost(100))]
