"""The health of a node in events: heat that passes, an error that does not, a check, a person's word."""

from typing import Final

from moulin.domain.events import Payload
from moulin.domain.health import DeviceReading, NodeReading, Signal, Symptom, Verdict
from moulin.domain.ids import AttemptId, NodeId
from moulin.domain.node_events import GangChecked, NodeChecked, NodeHealthObserved, NodeJudged
from moulin.domain.preflight import LinkMeasured
from moulin.domain.reasons import Reason, ReasonCode

START_NS: Final = 1_790_000_000_000_000_000
NODE: Final = NodeId("node-1")


def health() -> list[Payload]:
    """One node from its first reading into quarantine and out of it."""
    hot = Symptom(signal=Signal.THERMAL, device=1)
    broken = Symptom(signal=Signal.XID, device=0, value=79, is_evidence=True)
    return [
        observed(0),
        observed(10, hot, is_hot=True),
        judged(Verdict.SUSPECT, Signal.THERMAL),
        observed(20),
        observed(30, broken, xids={"79": 1}),
        judged(Verdict.QUARANTINED, Signal.XID),
        observed(40),
        NodeChecked(node=NODE, is_passed=True, by="moulin"),
        NodeJudged(
            node=NODE,
            verdict=Verdict.HEALTHY,
            reason=Reason(code=ReasonCode.NODE_WELL, parameters={"node": NODE, "calm_s": "300"}),
        ),
        NodeJudged(
            node=NODE,
            verdict=Verdict.QUARANTINED,
            reason=Reason(
                code=ReasonCode.NODE_SAID, parameters={"actor": "ada", "words": "a fan is loud"}
            ),
            by="ada",
        ),
    ]


def preflight() -> list[Payload]:
    """A node that its engine calls down, and the check of a gang that is known no more."""
    down = Symptom(signal=Signal.NODE_DOWN, is_evidence=True, words="Slurm says down: no power")
    reading = NodeReading(node=NODE, at_ns=START_NS, is_partial=True, down_because="no power")
    return [
        NodeHealthObserved(node=NODE, reading=reading, symptoms=(down,)),
        GangChecked(
            attempt=AttemptId("job_of_old.u0.g1"),
            links=(
                LinkMeasured(
                    sender=NodeId("node-2"),
                    receiver=NODE,
                    bytes_per_s=2**40,
                    round_trip_ns=20_000,
                ),
                LinkMeasured(sender=NODE, receiver=NodeId("node-2"), problem="it hung up"),
            ),
            transport="sockets",
        ),
        GangChecked(attempt=AttemptId("job_of_old.u0.g2"), links=(), words="no python3"),
    ]


def observed(
    after_s: int, *symptoms: Symptom, is_hot: bool = False, xids: dict[str, int] | None = None
) -> NodeHealthObserved:
    devices = (
        DeviceReading(index=0, uuid="GPU-0", xids=xids or {}, ecc_uncorrected=2**40),
        DeviceReading(index=1, uuid="GPU-1", is_hot=is_hot, is_remap_pending=False),
    )
    reading = NodeReading(
        node=NODE,
        at_ns=START_NS + after_s * 10**9,
        devices=devices,
        memory_errors=3,
        disk_free_bytes=2**44,
        clock_skew_ns=-5,
    )
    return NodeHealthObserved(node=NODE, reading=reading, symptoms=symptoms)


def judged(verdict: Verdict, signal: Signal) -> NodeJudged:
    parameters = {"node": NODE, "signal": signal.value}
    reason = Reason(code=ReasonCode.NODE_SYMPTOM, parameters=parameters)
    return NodeJudged(node=NODE, verdict=verdict, reason=reason)
