"""Nodes that fall ill and get well: what is really wrong with them, and what must follow from it.

The truth is what the harness did to a node; the judge keeps it and looks only at the log besides.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moulin.domain.events import AttemptPlaced, AttemptStopDecided, Event
from moulin.domain.health import DeviceReading, NodeReading, Verdict
from moulin.domain.ids import NodeId
from moulin.domain.node_events import NodeHealthObserved, NodeJudged
from moulin.domain.plan import StopCause, TaskPlacement
from tests.simulation.invariants import must
from tests.simulation.world import SECOND, Place

SUSPECT_S = 10
CALM_S = 30


def first_readings(places: Mapping[str, Place]) -> None:
    """Let every node be read, and be well."""
    for place in places.values():
        for capacity in place.world.capacity():
            devices = tuple(
                DeviceReading(index=index, uuid=f"{capacity.node}/{index}", ecc_uncorrected=0)
                for index in range(capacity.accelerators)
            )
            place.world.set_reading(
                NodeReading(node=capacity.node, at_ns=0, devices=devices, memory_errors=0)
            )


@dataclass(slots=True)
class Nursing:
    """What was done to nodes, and what the log says of them.

    `strikes` counts what was done to devices of nodes that had been read before, `seen` what the log
    tells of it; `broken` has the devices there is evidence against since their node was last said to be
    well, `symptom_ns` when the log last told of something wrong, or of its end.
    """

    places: Mapping[str, Place]
    strikes: Counter[tuple[NodeId, int]] = field(default_factory=Counter)
    seen: Counter[tuple[NodeId, int]] = field(default_factory=Counter)
    read_once: set[NodeId] = field(default_factory=set)
    broken: dict[NodeId, set[int]] = field(default_factory=dict)
    ill: set[NodeId] = field(default_factory=set)
    showing: set[NodeId] = field(default_factory=set)
    verdicts: dict[NodeId, tuple[Verdict, int]] = field(default_factory=dict)
    tasks: dict[str, tuple[TaskPlacement, ...]] = field(default_factory=dict)
    symptom_ns: dict[NodeId, int] = field(default_factory=dict)

    # -- what happens to nodes ----------------------------------------------------------------

    def strike(self, rng: random.Random) -> str:
        """Let something go wrong with a node, or go right again."""
        place = self.places[rng.choice(sorted(self.places))]
        reading = rng.choice(place.world.readings() or [None])
        if reading is None:
            return "no node can be read"
        dice = rng.random()
        if dice < 0.35:
            return self._heal(place, reading)
        if dice < 0.55 or not reading.devices or reading.node not in self.read_once:
            self.ill.add(reading.node)
            place.world.set_reading(replace(reading, disk_free_bytes=5))
            return f"the disk of {reading.node} is full"
        device = rng.choice(reading.devices)
        self.strikes[reading.node, device.index] += 1
        self._set(place, reading, replace(device, ecc_uncorrected=device.ecc_uncorrected + 1))
        return f"device {device.index} of {reading.node} miscalculates"

    def heal_all(self) -> None:
        """Let every node show nothing from now on."""
        for place in self.places.values():
            for reading in place.world.readings():
                self._heal(place, reading)

    @staticmethod
    def _heal(place: Place, reading: NodeReading) -> str:
        place.world.set_reading(replace(reading, disk_free_bytes=2**40))
        return f"{reading.node} shows nothing"

    @staticmethod
    def _set(place: Place, reading: NodeReading, device: DeviceReading) -> None:
        devices = tuple(
            device if each.index == device.index else each for each in reading.devices or ()
        )
        place.world.set_reading(replace(reading, devices=devices))

    # -- what the log says --------------------------------------------------------------------

    def read(self, event: Event) -> None:
        """Take in one event and judge it."""
        match event.payload:
            case NodeHealthObserved() as observed:
                self._observe(observed, event.at_ns)
            case NodeJudged() as judged:
                self._judge(judged, event.at_ns)
            case AttemptPlaced() as placed:
                self.tasks[placed.attempt] = placed.tasks
                for task in placed.tasks:
                    verdict, _ = self.verdicts.get(task.node, (Verdict.HEALTHY, 0))
                    must(
                        verdict is not Verdict.QUARANTINED,
                        f"{placed.attempt} is placed on {task.node}, which is in quarantine",
                    )
            case AttemptStopDecided(attempt=attempt, cause=StopCause.UNHEALTHY):
                struck = any(
                    self.broken.get(task.node, set()) & {-1, *task.devices}
                    for task in self.tasks[attempt]
                )
                must(struck, f"{attempt} is stopped as unhealthy and holds nothing broken")
            case _:
                pass

    def _observe(self, observed: NodeHealthObserved, at_ns: int) -> None:
        node = observed.node
        self.read_once.add(node)
        for each in observed.symptoms:
            key = (node, each.device)
            if not each.is_evidence:
                must(node in self.ill, f"{node} shows {each} and nothing was done to it")
                continue
            self.seen[key] += each.value
            must(self.seen[key] <= self.strikes[key], f"{node} shows {each} out of nothing")
            self.broken.setdefault(node, set()).add(each.device)
        if observed.symptoms or node in self.showing:
            self.symptom_ns[node] = at_ns
        (self.showing.add if observed.symptoms else self.showing.discard)(node)

    def _judge(self, judged: NodeJudged, at_ns: int) -> None:
        before, since_ns = self.verdicts.get(judged.node, (Verdict.HEALTHY, 0))
        what = f"{judged.node} goes from {before} to {judged.verdict}"
        must(before is not judged.verdict, f"{what}: nothing changes")
        if judged.verdict is Verdict.HEALTHY:
            calm_s = (at_ns - since_ns) / SECOND
            must(calm_s >= CALM_S, f"{what} after {calm_s} s: it flaps")
            ill_s = (at_ns - self.symptom_ns.get(judged.node, 0)) / SECOND
            must(ill_s >= CALM_S, f"{what} {ill_s} s after it showed something")
            must(judged.node not in self.showing, f"{what} while it shows something")
            self.broken.pop(judged.node, None)
        else:
            must(judged.node in self.symptom_ns, f"{what}, and it never showed anything")
        if before is Verdict.HEALTHY and judged.verdict is Verdict.QUARANTINED:
            must(judged.node in self.broken, f"{what} without evidence")
        self.verdicts[judged.node] = (judged.verdict, at_ns)

    def judge_end(self) -> None:
        """Whatever was done to devices was seen, once each, and put its node away."""
        must(self.seen == self.strikes, f"{self.strikes} was done to devices, {self.seen} was seen")
        for node in self.broken:
            verdict, _ = self.verdicts.get(node, (Verdict.HEALTHY, 0))
            must(verdict is Verdict.QUARANTINED, f"{node} is broken and {verdict} at the end")
