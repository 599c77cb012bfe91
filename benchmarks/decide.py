"""How many placements does one core decide per second, all constraints checked?

The state is folded from events as in life; only `decide` is timed, in CPU seconds, best of three.
Peer in the same run: a plain loop over all nodes per task (best fit, the same constraints of room),
as a first scheduler would be written. Bound: making the same plan's values without deciding them.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, TypeVar

from moulin.domain.events import Event, FactoryApplied, NodeJoined, ObjectChange, Payload
from moulin.domain.events import WorkloadSubmitted as Submitted
from moulin.domain.factory import (
    DeclaredObject,
    Organisation,
    Pool,
    Project,
    Quota,
    Site,
    Zone,
    kind_of,
)
from moulin.domain.ids import NodeId, OrganisationId, ProjectId, WorkloadId
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import Place, Plan, TaskPlacement
from moulin.domain.workload import (
    Resources,
    Submission,
    TaskTemplate,
    Where,
    WorkloadKind,
    WorkloadSpec,
)
from moulin.scheduler import SchedulerPolicy, State, decide, empty_state, fold, plan_events

ZONES = 4
DEVICES = 8
POLICY = SchedulerPolicy(places_max=10**9)
PEER_TASKS = 300

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sizes."""
    parser.add_argument("--nodes", type=int, nargs="+", default=[1250, 12_500])
    parser.add_argument("--pending", type=int, default=10_000)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every size and return rates per CPU second."""
    return {str(nodes): _measure(nodes, options.pending) for nodes in options.nodes}


def _measure(nodes: int, pending: int) -> dict[str, Any]:
    singles = _factory(nodes, [_single(index) for index in range(pending)])
    plan, single_s = _timed(lambda: decide(singles, 0, POLICY))
    peer_tasks, peer_s = _timed(lambda: _naive(singles, PEER_TASKS), repeats=1)
    _, bound_s = _timed(lambda: [_copy(place) for place in plan.places])
    gangs = _factory(nodes, [_gang(index) for index in range(pending)])
    gang_plan, gang_s = _timed(lambda: decide(gangs, 0, POLICY))
    _apply(gangs, gang_plan)
    _, backlog_s = _timed(lambda: decide(gangs, 0, POLICY))
    tasks = sum(len(place.tasks) for place in gang_plan.places)
    return {
        "single_places_per_s": round(len(plan.places) / single_s),
        "single_places": len(plan.places),
        "peer_places_per_s": round(peer_tasks / peer_s),
        "ratio_to_peer": round(len(plan.places) / single_s / (peer_tasks / peer_s), 1),
        "share_spent_making_values": round(bound_s / single_s, 2),
        "gangs_decided_per_s": round(pending / gang_s),
        "gangs_placed": len(gang_plan.places),
        "gang_tasks_placed": tasks,
        "whole_backlog_s": round(gang_s, 4),
        "blocked_backlog_again_s": round(backlog_s, 4),
        "demands": len(gangs.waiting.lines) + len(gang_plan.places),
    }


def _timed(work: Callable[[], T], repeats: int = 3) -> tuple[T, float]:
    spent_s = []
    result = work()
    for _ in range(repeats):
        begin_s = time.process_time()
        result = work()
        spent_s.append(time.process_time() - begin_s)
    return result, min(spent_s)


def _single(index: int) -> WorkloadSpec:
    resources = Resources(cpu_milli=1000 + index % 7 * 1000, accelerators=index % 2)
    return _job(resources, 1, index)


def _gang(index: int) -> WorkloadSpec:
    resources = Resources(cpu_milli=1000 * (1 + index % 32), accelerators=index % (DEVICES + 1))
    return _job(resources, 1 + index % 64, index)


def _job(resources: Resources, nodes: int, index: int) -> WorkloadSpec:
    return WorkloadSpec(
        kind=WorkloadKind.JOB,
        name="job",
        resources=resources,
        nodes=nodes,
        task=TaskTemplate(command=("true",)),
        where=Where(countries=("FR", "SE")) if index % 2 else Where(),
        priority=index % 5 * 10,
    )


def _factory(nodes: int, specs: list[WorkloadSpec]) -> State:
    state = empty_state()
    objects: list[DeclaredObject] = [
        Organisation(name="acme", countries=("FR", "SE")),
        Project(name="web", organisation="acme", quota=Quota(cpu_milli=10**12)),
        *(Site(name=f"s{z}", country="FR", power_envelope_w=10**9) for z in range(ZONES)),
        *(Zone(name=f"z{z}", site=f"s{z}") for z in range(ZONES)),
        *(Pool(name=f"p{z}", zone=f"z{z}", engine="sim", machine_class="m") for z in range(ZONES)),
    ]
    changes = [ObjectChange(kind=kind_of(each), name=each.name, value=each) for each in objects]
    _add(state, FactoryApplied(managed_by="bench", changes=tuple(changes)))
    for index in range(nodes):
        _add(state, NodeJoined(pool=f"p{index % ZONES}", capacity=_node(index)))
    for index, spec in enumerate(specs):
        submission = Submission(
            id=WorkloadId(f"job_{index:08}"),
            organisation=OrganisationId("acme"),
            project=ProjectId("web"),
            spec=spec,
            submitted_by="bench",
            submitted_at_ns=index,
        )
        _add(state, Submitted(submission=submission, reserved_neur=0, policy_decision=""))
    return state


def _node(index: int) -> NodeCapacity:
    return NodeCapacity(
        node=NodeId(f"n{index:06}"),
        cpu_milli=128_000,
        memory_bytes=2 * 10**12,
        machine_class="m",
        accelerators=DEVICES,
        accelerator_class="h100",
        idle_mw=2_000_000,
        peak_mw=10_000_000,
    )


def _add(state: State, payload: Payload) -> None:
    event = Event(sequence=state.sequence + 1, epoch=1, at_ns=0, actor="bench", payload=payload)
    fold(state, event)


def _apply(state: State, plan: Plan) -> None:
    for payload in plan_events(plan):
        _add(state, payload)


def _copy(place: Place) -> Place:
    return Place(
        attempt=place.attempt,
        workload=place.workload,
        unit=place.unit,
        generation=place.generation,
        tasks=tuple(
            TaskPlacement(rank=task.rank, node=task.node, devices=task.devices)
            for task in place.tasks
        ),
    )


def _naive(state: State, count: int) -> int:
    """Place `count` single tasks by looking at every node for each."""
    free = [
        [row.capacity.accelerators, row.capacity.cpu_milli, row.capacity.memory_bytes]
        for row in state.nodes.rows
    ]
    placed = 0
    for workload in list(state.workloads.values())[:count]:
        asked = workload.submission.spec.resources
        fits = [
            (devices, cpu, memory, index)
            for index, (devices, cpu, memory) in enumerate(free)
            if devices >= asked.accelerators
            and cpu >= asked.cpu_milli
            and memory >= asked.memory_bytes
        ]
        if fits:
            node = free[min(fits)[3]]
            node[0] -= asked.accelerators
            node[1] -= asked.cpu_milli
            node[2] -= asked.memory_bytes
            placed += 1
    return placed
