"""What a node's readings mean: symptoms, verdicts that do not flap, and work that is not worth its wait.

Evidence (a device that is gone or broken) puts a node into quarantine at once, and what holds that
device starts again elsewhere. What may pass (heat, a full disk) first makes it suspect. Nothing here
concludes from silence: a node that cannot be asked keeps its verdict.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from moulin.domain.health import DeviceReading, NodeReading, Signal, Symptom, Verdict, tellers
from moulin.domain.ids import NodeId, StepId
from moulin.domain.plan import Judge
from moulin.domain.reasons import Reason, ReasonCode
from moulin.scheduler.policy import SchedulerPolicy

NS_PER_S: Final = 10**9
# XIDs after which a device computes wrongly or not at all until it is reset or replaced: double-bit
# errors, failed remaps, NVLink faults, off the bus, uncontained errors, a dead GSP (NVIDIA, "XID
# Errors"). Others are mostly a program's own: 13 and 31 are its bad addresses.
FATAL_XIDS: Final = frozenset({"48", "64", "74", "79", "95", "119", "120"})
DISK_FREE_BYTES_MIN: Final = 10**9
CLOCK_SKEW_NS_MAX: Final = NS_PER_S
# A machine that has lost more than this share of the memory it had has lost a module of it.
_MEMORY_LOST_SHARE: Final = 16
# How long a check that did not say which of two nodes is at fault keeps them apart.
DOUBTED_NS: Final = 600 * NS_PER_S
# How long a node stays known as one that was in quarantine before.
_FORGIVEN_NS: Final = 7 * 86_400 * NS_PER_S
_DOUBLINGS_MAX: Final = 20
_COUNTED: Final = frozenset({Signal.XID, Signal.ECC_UNCORRECTED, Signal.MEMORY_UNCORRECTED})
# A signal and what it is about: the name of a device, where it has none its number, or the whole node.
_About = tuple[Signal, str]


@dataclass(slots=True)
class HealthRow:
    """What is known of one node's health.

    `since_ns` has when each present symptom was first seen, `symptom_ns` when the last one was. `evidence`
    is what put it into quarantine, or will; `quarantines` how often in a row it was there. `fit_ns` is
    when the node last passed a check with others, `tried_ns` when one said nothing, and `doubts` when
    each other node and this one failed together.
    """

    verdict: Verdict = Verdict.HEALTHY
    reason: Reason | None = None
    by: str = ""
    reading: NodeReading | None = None
    symptoms: tuple[Symptom, ...] = ()
    since_ns: dict[_About, int] = field(default_factory=dict)
    symptom_ns: int = 0
    evidence: tuple[Symptom, ...] = ()
    quarantines: int = 0
    judged_ns: int = 0
    passed_ns: int = 0
    fit_ns: int = 0
    tried_ns: int = 0
    doubts: dict[NodeId, int] = field(default_factory=dict)
    doubt: Symptom | None = None

    @property
    def is_ailing(self) -> bool:
        """Whether a decision has to look at it."""
        has_signs = bool(self.symptoms or self.evidence or self.doubts)
        return has_signs or self.verdict is not Verdict.HEALTHY

    def is_broken(self, device: int) -> bool:
        """Whether there is evidence against a device, or against the node as a whole.

        One that only failed a check with others may go on with what it has.
        """
        return any(
            each.device < 0 or (each.device == device and not each.steps)
            for each in self.evidence
            if each.signal is not Signal.PREFLIGHT
        )

    def is_against(self, step: StepId) -> bool:
        """Whether there is evidence against a device that a task told of, or the node as a whole."""
        return any(
            (each.device < 0 or step in each.steps) and each.signal is not Signal.PREFLIGHT
            for each in self.evidence
        )

    def doubted_with(self, now_ns: int) -> tuple[NodeId, ...]:
        """Return the nodes it is to be kept apart from now, by name."""
        return tuple(
            node for node, at_ns in sorted(self.doubts.items()) if now_ns - at_ns < DOUBTED_NS
        )


def symptoms_of(before: NodeReading | None, now: NodeReading) -> tuple[Symptom, ...]:
    """Return what is wrong, by signal and device.

    Counters mean what they grew by; one that is smaller than before has started again, and all it
    counts is new. A first reading has nothing to compare with, so its counters mean nothing yet.
    """
    found = [*_of_engine(now), *_of_devices(before, now)]
    if before is not None and _grown(before.memory_errors, now.memory_errors):
        grown = _grown(before.memory_errors, now.memory_errors)
        found.append(Symptom(signal=Signal.MEMORY_UNCORRECTED, value=grown, is_evidence=True))
    if before is not None and 0 <= now.memory_bytes < before.memory_bytes:
        lost = before.memory_bytes - now.memory_bytes
        if lost * _MEMORY_LOST_SHARE > before.memory_bytes:
            found.append(Symptom(signal=Signal.MEMORY_MISSING, value=lost))
    if 0 <= now.disk_free_bytes < DISK_FREE_BYTES_MIN:
        found.append(Symptom(signal=Signal.DISK_FULL, value=now.disk_free_bytes))
    if abs(now.clock_skew_ns) > CLOCK_SKEW_NS_MAX:
        found.append(Symptom(signal=Signal.CLOCK_SKEW, value=now.clock_skew_ns))
    return tuple(sorted(found, key=lambda each: (each.signal, each.device, each.value)))


def is_news(row: HealthRow, reading: NodeReading) -> bool:
    """Whether a reading has to be an event: other symptoms, counted ones again, or a first base."""
    if row.reading is None:
        return _says_anything(reading)
    symptoms = symptoms_of(row.reading, reading)
    if any(each.signal in _COUNTED for each in symptoms):
        return True
    is_other = _names(symptoms) != _names(row.symptoms)
    is_told_anew = not _tellers(symptoms) <= _tellers(row.symptoms)
    return is_other or is_told_anew or _is_other_base(row.reading, reading)


def observe_health(row: HealthRow, reading: NodeReading, at_ns: int) -> None:
    """Take over a reading that is news."""
    symptoms = symptoms_of(row.reading, reading)
    present = _names(symptoms)
    row.since_ns = {name: row.since_ns.get(name, at_ns) for name in sorted(present)}
    if symptoms or row.symptoms:
        row.symptom_ns = at_ns  # also when the last one went: the calm begins here
    row.symptoms = symptoms
    row.evidence = _with_new_evidence(row.evidence, symptoms)
    row.reading = _with_known_devices(row.reading, reading)


def judge(row: HealthRow, verdict: Verdict, reason: Reason, *, by: str, at_ns: int) -> None:
    """Take over a verdict."""
    if verdict is Verdict.QUARANTINED and row.verdict is not Verdict.QUARANTINED:
        is_again = row.quarantines and at_ns - row.judged_ns < _FORGIVEN_NS
        row.quarantines = row.quarantines + 1 if is_again else 1
    if verdict is Verdict.HEALTHY:
        row.evidence = ()
        if by:  # whoever says so vouches for it
            row.doubts.clear()
    row.verdict, row.reason, row.by, row.judged_ns = verdict, reason, by, at_ns


def judgements(
    node: NodeId, row: HealthRow, now_ns: int, policy: SchedulerPolicy
) -> Iterator[Judge]:
    """Yield the verdict a node has now, when it is another one."""
    if row.verdict is Verdict.QUARANTINED:
        if is_calm(row, now_ns, policy) and row.passed_ns > row.judged_ns and not row.by:
            yield Judge(node=node, verdict=Verdict.HEALTHY, reason=_well(node, row, now_ns))
        return
    lasting = [
        each
        for each in row.symptoms
        if now_ns - row.since_ns[_about(each)] >= policy.suspect_s * NS_PER_S
    ]
    worst = row.evidence or (lasting if row.verdict is Verdict.SUSPECT else ())
    if worst:
        reason = _symptom(node, worst[0], row, now_ns)
        yield Judge(node=node, verdict=Verdict.QUARANTINED, reason=reason)
    elif row.verdict is Verdict.HEALTHY and _signs(row, now_ns):
        reason = _symptom(node, _signs(row, now_ns)[0], row, now_ns)
        yield Judge(node=node, verdict=Verdict.SUSPECT, reason=reason)
    elif row.verdict is Verdict.SUSPECT and is_calm(row, now_ns, policy):
        yield Judge(node=node, verdict=Verdict.HEALTHY, reason=_well(node, row, now_ns))


def is_calm(row: HealthRow, now_ns: int, policy: SchedulerPolicy) -> bool:
    """Whether a node has shown nothing for long enough: longer after each quarantine in a row."""
    doublings = min(max(row.quarantines - 1, 0), _DOUBLINGS_MAX)
    calm_s = min(policy.calm_s << doublings, policy.calm_max_s)
    since_ns = max(row.symptom_ns, row.judged_ns if row.verdict is Verdict.QUARANTINED else 0)
    return not _signs(row, now_ns) and now_ns - since_ns >= calm_s * NS_PER_S


def clears(row: HealthRow, reading: NodeReading) -> bool:
    """Whether a reading that shows nothing says enough: of each device there is evidence against."""
    read = {each.uuid for each in reading.devices or () if not each.is_lost}
    return not row.symptoms and {each.uuid for each in row.evidence if each.device >= 0} <= read


def needs_check(row: HealthRow, now_ns: int, policy: SchedulerPolicy) -> bool:
    """Whether a node in quarantine is to be looked at again; what a person said only they take back."""
    is_due = row.verdict is Verdict.QUARANTINED and not row.by and row.passed_ns <= row.judged_ns
    return is_due and is_calm(row, now_ns, policy)


def _signs(row: HealthRow, now_ns: int) -> tuple[Symptom, ...]:
    """Return what speaks against a node now: what it shows, and a check that it failed with another."""
    doubted = row.doubt is not None and row.doubted_with(now_ns)
    return (*row.symptoms, row.doubt) if doubted and row.doubt else row.symptoms


def _of_engine(now: NodeReading) -> Iterator[Symptom]:
    if now.down_because:
        yield Symptom(signal=Signal.NODE_DOWN, is_evidence=True, words=now.down_because)
    if now.complaints:
        yield Symptom(signal=Signal.CONDITION, words="; ".join(now.complaints))


# -- devices --------------------------------------------------------------------------------------


def _of_devices(before: NodeReading | None, now: NodeReading) -> Iterator[Symptom]:
    if now.devices is None:
        return
    known = {each.uuid: each for each in (before.devices or ())} if before is not None else {}
    for device in now.devices:
        for each in _of_device(known.get(device.uuid), device):
            yield replace(each, device=device.index, uuid=device.uuid, steps=device.steps)
    present = {each.uuid for each in now.devices}
    for gone in known.values():
        if gone.uuid not in present and not now.is_partial:
            yield Symptom(
                signal=Signal.DEVICE_MISSING, device=gone.index, uuid=gone.uuid, is_evidence=True
            )


def _of_device(before: DeviceReading | None, now: DeviceReading) -> Iterator[Symptom]:
    """Yield what is wrong with one device, without saying which it is."""
    if now.is_lost:
        yield Symptom(signal=Signal.DEVICE_MISSING, is_evidence=True)
        return
    if before is not None:
        is_going_on = before.xids_since_ns == now.xids_since_ns
        told = before.xids if is_going_on else {}
        for xid, count in sorted(now.xids.items()):
            if xid in FATAL_XIDS and _grown(told.get(xid, 0), count):
                yield Symptom(signal=Signal.XID, value=int(xid), is_evidence=True)
        grown = _grown(before.ecc_uncorrected, now.ecc_uncorrected)
        if grown:
            yield Symptom(signal=Signal.ECC_UNCORRECTED, value=grown, is_evidence=True)
    if now.is_remap_failed:
        yield Symptom(signal=Signal.ROW_REMAP_FAILED, is_evidence=True)
    flags = (
        (Signal.ROW_REMAP_PENDING, now.is_remap_pending),
        (Signal.THERMAL, now.is_hot),
        (Signal.POWER_BRAKE, now.is_braked),
    )
    yield from (Symptom(signal=signal) for signal, is_on in flags if is_on)
    if now.links_down > 0:
        yield Symptom(signal=Signal.NVLINK_DOWN, value=now.links_down)


def _grown(before: int, now: int) -> int:
    """Return by how much a counter grew, 0 where it cannot be known; a smaller one began again."""
    if before < 0 or now < 0:
        return 0
    return now - before if now >= before else now


def _with_known_devices(before: NodeReading | None, now: NodeReading) -> NodeReading:
    """Return a reading as the next one's base, with what was known and could not be read this time.

    A device that is gone stays known, so that it is missed until it comes back.
    """
    if before is None:
        return now
    known = {each.uuid: each for each in before.devices or ()}
    devices = [_with_known_count(known.get(each.uuid), each) for each in now.devices or ()]
    present = {each.uuid for each in devices}
    devices += (each for uuid, each in known.items() if uuid not in present)
    is_known = before.devices is not None or now.devices is not None
    return replace(
        now,
        devices=tuple(devices) if is_known else None,
        memory_errors=now.memory_errors if now.memory_errors >= 0 else before.memory_errors,
        memory_bytes=max(now.memory_bytes, before.memory_bytes),
    )


def _with_known_count(before: DeviceReading | None, now: DeviceReading) -> DeviceReading:
    if before is None or now.ecc_uncorrected >= 0:
        return now
    heard = before if now.is_lost else now
    return replace(
        now,
        ecc_uncorrected=before.ecc_uncorrected,
        xids=heard.xids,
        xids_since_ns=heard.xids_since_ns,
    )


def _is_other_base(before: NodeReading, now: NodeReading) -> bool:
    """Whether there is what no earlier reading had, devices or memory: from here on it is missed."""
    known = {each.uuid for each in before.devices or ()}
    is_first = before.memory_bytes < 0 <= now.memory_bytes
    return is_first or any(each.uuid not in known for each in now.devices or ())


def _says_anything(reading: NodeReading) -> bool:
    counted = (reading.memory_errors, reading.memory_bytes, reading.disk_free_bytes)
    is_counted = any(each >= 0 for each in counted) or reading.devices is not None
    return is_counted or bool(symptoms_of(None, reading))


def _about(symptom: Symptom) -> _About:
    return symptom.signal, symptom.uuid or str(symptom.device)


def _names(symptoms: tuple[Symptom, ...]) -> set[_About]:
    return {_about(each) for each in symptoms}


def _tellers(symptoms: tuple[Symptom, ...]) -> set[tuple[_About, StepId]]:
    """Return which tasks told of what, with an empty name for who speaks of a device of this node."""
    nobody = (StepId(""),)
    return {(_about(each), step) for each in symptoms for step in each.steps or nobody}


def _with_new_evidence(
    known: tuple[Symptom, ...], symptoms: tuple[Symptom, ...]
) -> tuple[Symptom, ...]:
    """Return all evidence, once for all that it is about, with every task that told of it."""
    found = {_about(each): each for each in known}
    for each in symptoms:
        if each.is_evidence:
            before = found.setdefault(_about(each), each)
            found[_about(each)] = replace(before, steps=tellers(before.steps, each.steps))
    return tuple(found.values())


# -- words ----------------------------------------------------------------------------------------


def _symptom(node: NodeId, symptom: Symptom, row: HealthRow, now_ns: int) -> Reason:
    since_ns = row.since_ns.get(_about(symptom), now_ns)
    parameters = {
        "node": node,
        "signal": symptom.signal.value,
        "value": symptom.words or str(symptom.value),
        "device": "the whole node" if symptom.device < 0 else f"device {symptom.device}",
        "since_s": str((now_ns - since_ns) // NS_PER_S),
    }
    return Reason(code=ReasonCode.NODE_SYMPTOM, parameters=parameters)


def _well(node: NodeId, row: HealthRow, now_ns: int) -> Reason:
    calm_s = (now_ns - row.symptom_ns) // NS_PER_S
    parameters = {"node": str(node), "calm_s": str(calm_s)}
    return Reason(code=ReasonCode.NODE_WELL, parameters=parameters)
