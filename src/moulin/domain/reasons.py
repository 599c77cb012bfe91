"""Why something waits or was refused: a stable code with numbers, turned into words at the edge.

The catalogue below is the only place with sentences, so that another language is another mapping.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from moulin.domain.needs import HINTS as NEED_HINTS


class ReasonCode(StrEnum):
    """CamelCase codes as Kubernetes conditions use them; the comment order is the check order."""

    JURISDICTION_FORBIDS = "JurisdictionForbids"
    COUNTRY_NOT_ASSERTED = "CountryNotAsserted"
    UNKNOWN_ZONE = "UnknownZone"
    ZONE_NOT_OPEN = "ZoneNotOpen"
    NO_SUCH_HARDWARE = "NoSuchHardware"
    EXCEEDS_NODE = "ExceedsNode"
    EXCEEDS_FACTORY = "ExceedsFactory"
    CANNOT_CARRY = "CannotCarry"
    EXCEEDS_TIME_LIMIT = "ExceedsTimeLimit"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    NODE_UNREACHABLE = "NodeUnreachable"
    POWER_ENVELOPE = "PowerEnvelope"
    INSUFFICIENT_QUOTA = "InsufficientQuota"
    EXCEEDS_QUOTA = "ExceedsQuota"
    BUDGET_EXCEEDED = "BudgetExceeded"
    ALLOWANCE_EXCEEDED = "AllowanceExceeded"
    TOO_MANY_USERS = "TooManyUsers"
    RATE_EXCEEDED = "RateExceeded"
    BACKING_OFF = "BackingOff"
    BEHIND_OTHERS = "BehindOthers"
    MODEL_TOO_LARGE = "ModelTooLarge"
    PROGRAM_FAILED = "ProgramFailed"
    TASK_LOST = "TaskLost"
    TIME_LIMIT_REACHED = "TimeLimitReached"
    DEADLINE_PASSED = "DeadlinePassed"
    ENGINE_REFUSED = "EngineRefused"
    CANCELLED_BY = "CancelledBy"
    KIND_NOT_SERVED = "KindNotServed"
    LOAD_ASKS = "LoadAsks"
    SCALED_TO_ZERO = "ScaledToZero"
    ROLLING_OUT = "RollingOut"
    DRAINING = "Draining"
    MODEL_RETIRED = "ModelRetired"
    LICENCE_NOT_ACCEPTED = "LicenceNotAccepted"
    HELD = "Held"
    WAITS_FOR = "WaitsFor"
    DEPENDENCY_FAILED = "DependencyFailed"
    DEPENDENCY_UNKNOWN = "DependencyUnknown"
    DEPENDENCY_NEVER_OK = "DependencyNeverOk"
    ARRAY_LIMIT = "ArrayLimit"
    ARRAY_PART = "ArrayPart"
    NOBODY_TO_TELL = "NobodyToTell"
    BUNDLE_UNKNOWN = "BundleUnknown"
    SECRET_UNKNOWN = "SecretUnknown"  # noqa: S105 - a reason, no secret
    NODES_WANTED = "NodesWanted"
    NODE_QUARANTINED = "NodeQuarantined"
    NODE_SYMPTOM = "NodeSymptom"
    NODE_WELL = "NodeWell"
    NODE_SAID = "NodeSaid"
    CHECKED = "Checked"
    NODES_APART = "NodesApart"
    TIME_ENDS = "TimeEnds"
    SUCCESSION = "Succession"
    NOT_HEARD = "NotHeard"
    PREEMPTED_BY = "PreemptedBy"
    GIVES_WAY = "GivesWay"
    MAKES_ROOM = "MakesRoom"
    IDLE_STOPPED = "IdleStopped"
    IDLE_SO_FAR = "IdleSoFar"
    IDLE_UNREAD = "IdleUnread"
    IDLE_NOT_A_JOB = "IdleNotAJob"
    ENGINE_HOLDS = "EngineHolds"
    ENGINE_HOLDS_SOME = "EngineHoldsSome"
    ENGINE_SAYS = "EngineSays"
    ENGINE_EXPECTS = "EngineExpects"
    ENGINE_SILENT = "EngineSilent"
    ENGINE_ENDS = "EngineEnds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason with the numbers and names it was made from (all values are text)."""

    code: ReasonCode
    parameters: Mapping[str, str] = field(default_factory=dict)


ENGLISH: Final[Mapping[ReasonCode, str]] = {
    ReasonCode.JURISDICTION_FORBIDS: "only {allowed} may be used, and zone {zone} is in {country}",
    ReasonCode.COUNTRY_NOT_ASSERTED: (
        "zone {zone} has no country asserted by its operator, so it cannot satisfy `where`"
    ),
    ReasonCode.UNKNOWN_ZONE: "there is no zone {zone}; zones: {known}",
    ReasonCode.ZONE_NOT_OPEN: "zone {zone} is {state}; only an open zone accepts placements",
    ReasonCode.NO_SUCH_HARDWARE: "no permitted node has {wanted}",
    ReasonCode.EXCEEDS_NODE: "each task needs {wanted}, the largest permitted node has {largest}",
    ReasonCode.EXCEEDS_FACTORY: "{wanted} nodes are needed at once, {total} could ever fit a task",
    ReasonCode.CANNOT_CARRY: (
        "it needs {what}, which none of the {count} permitted node(s) large enough can carry"
        " (pools: {pools})"
    ),
    ReasonCode.EXCEEDS_TIME_LIMIT: (
        "its time limit is {wanted_min} min, the longest that the {count} permitted node(s) large enough"
        " allow is {longest_min} min (pools: {pools})"
    ),
    ReasonCode.INSUFFICIENT_CAPACITY: "{wanted} nodes with room are needed, {free} have it now",
    ReasonCode.NODE_UNREACHABLE: "{count} node(s) cannot be reached; their work is left alone",
    ReasonCode.POWER_ENVELOPE: (
        "site {site} may draw {limit_w} W; {held_w} W are committed and this needs {wanted_w} W"
    ),
    ReasonCode.INSUFFICIENT_QUOTA: (
        "project {project} holds {held} of its {limit} {resource}; this needs {wanted}"
    ),
    ReasonCode.EXCEEDS_QUOTA: (
        "this needs {wanted} {resource} and project {project} may never hold more than {limit}"
    ),
    ReasonCode.BUDGET_EXCEEDED: (
        "project {project} has {left_eur} EUR left of {limit_eur} EUR; this reserves {wanted_eur} EUR"
    ),
    ReasonCode.ALLOWANCE_EXCEEDED: (
        "{scope} {owner} has {left} left of {limit} ({period}); this reserves {wanted}"
    ),
    ReasonCode.TOO_MANY_USERS: (
        "{scope} {owner} has {limit} users with an allowance already; another begins {when}"
    ),
    ReasonCode.RATE_EXCEEDED: (
        "{scope} {owner} may have {limit} {what}; {left} are left here and this needs {wanted}"
    ),
    ReasonCode.BACKING_OFF: "attempt {generation} starts in {left_s} s, after the previous one ended",
    ReasonCode.BEHIND_OTHERS: "{count} workload(s) come first by priority and time",
    ReasonCode.MODEL_TOO_LARGE: (
        "{model} needs {needed} of memory, the largest permitted node has {largest}"
    ),
    ReasonCode.PROGRAM_FAILED: "the program ended with {how} on attempt {generation}",
    ReasonCode.TASK_LOST: "the engine reports task {step} gone: {evidence}",
    ReasonCode.TIME_LIMIT_REACHED: "the time limit of {limit_s} s was reached",
    ReasonCode.DEADLINE_PASSED: "the deadline passed {late_s} s ago",
    ReasonCode.ENGINE_REFUSED: "the engine declined: {detail}",
    ReasonCode.CANCELLED_BY: "stopped by {actor}",
    ReasonCode.KIND_NOT_SERVED: "no engine of this factory serves {kind} workloads yet",
    ReasonCode.LOAD_ASKS: (
        "{requests} request(s) are under way or wait; {wanted} replica(s) are wanted for them"
    ),
    ReasonCode.SCALED_TO_ZERO: "nobody asks for it; the next request starts a replica",
    ReasonCode.ROLLING_OUT: (
        "revision {revision} has {ready} of {wanted} replica(s) ready; {former} older one(s) serve"
    ),
    ReasonCode.DRAINING: "{count} replica(s) finish what they have begun, for {left_s} s at most",
    ReasonCode.MODEL_RETIRED: "{model} was retired on {day}; its successor: {successor}",
    ReasonCode.LICENCE_NOT_ACCEPTED: (
        "nobody has accepted the licence {licence} of {model} for organisation {organisation}; "
        "its terms: {url}"
    ),
    ReasonCode.HELD: "it is held; `moulin release` lets it go on",
    ReasonCode.WAITS_FOR: "it starts when {workload} has ended ({when}), which is {state}",
    ReasonCode.DEPENDENCY_FAILED: (
        "it was to start when {workload} had succeeded, and that ended {state}"
    ),
    ReasonCode.DEPENDENCY_UNKNOWN: "it is to start after {workload}, which this project never had",
    ReasonCode.DEPENDENCY_NEVER_OK: (
        "it is to start when {workload} has succeeded, and an endpoint never ends well"
    ),
    ReasonCode.ARRAY_LIMIT: (
        "at most {at_most} of its {size} elements run at once; {waiting} wait for their turn"
    ),
    ReasonCode.ARRAY_PART: (
        "of {size} elements {succeeded} succeeded, {failed} failed and {cancelled} were cancelled"
    ),
    ReasonCode.NODES_WANTED: "{count} of its node(s) are kept for {workload}, which waits for them",
    ReasonCode.NODE_QUARANTINED: "{count} node(s) that would have room are in quarantine",
    ReasonCode.NODE_SYMPTOM: "node {node}: {signal} ({value}) at {device}, {since_s} s ago",
    ReasonCode.NODE_WELL: "node {node} has shown nothing for {calm_s} s",
    ReasonCode.TIME_ENDS: (
        "replica {replica} may run for {left_s} s more; its successor is started in {starts_s} s, as a"
        " start takes about {start_s} s ({basis})"
    ),
    ReasonCode.SUCCESSION: (
        "{count} replica(s) have reached the end of their time, the first in {left_s} s; {ready} of"
        " {wanted} with time left are ready"
    ),
    ReasonCode.NOT_HEARD: (
        "{count} replica(s) that answered before get no requests, and are not restarted: {replica}: {words}"
    ),
    ReasonCode.NODE_SAID: "{actor} said so: {words}",
    ReasonCode.CHECKED: "its {count} nodes are checked together before it starts",
    ReasonCode.NODES_APART: (
        "{count} node(s) failed a check with one another lately and are not put together"
    ),
    ReasonCode.BUNDLE_UNKNOWN: (
        "it is to start in a copy of bundle {digest}, which project {project} does not keep"
    ),
    ReasonCode.SECRET_UNKNOWN: "it names the secret {secret}, which project {project} has not",
    ReasonCode.PREEMPTED_BY: (
        "attempt {generation} was stopped to make room for {workload}, of a higher priority;"
        " it starts again when there is room"
    ),
    ReasonCode.GIVES_WAY: (
        "attempt {generation} is being stopped to make room for {workload}, of a higher priority"
    ),
    ReasonCode.MAKES_ROOM: (
        "{workloads}, of priority {priority} at most, is being stopped to make room for it (priority"
        " {own}), and its nodes are kept"
    ),
    ReasonCode.IDLE_STOPPED: (
        "it used less than {share} % of its CPU for {idle_s} s, and was to be stopped after {limit_s} s"
    ),
    ReasonCode.IDLE_SO_FAR: (
        "it has used less than {share} % of its CPU for {idle_s} s, and is stopped after {limit_s} s"
    ),
    ReasonCode.IDLE_UNREAD: (
        "nobody can read what it uses of its {what}, so it is never stopped for being idle"
    ),
    ReasonCode.IDLE_NOT_A_JOB: (
        "only a job can be stopped when it is idle, and this is a workload of kind {kind}"
    ),
    ReasonCode.ENGINE_HOLDS: (
        "{engine} holds it: job {job} has waited since {since}, now for {word}: {meaning}"
    ),
    ReasonCode.ENGINE_HOLDS_SOME: (
        "{engine} holds {count} of its {jobs} jobs, such as {job}, since {since}, now for {word}: {meaning}"
    ),
    ReasonCode.ENGINE_SAYS: "{engine} says of job {job}: {words}",
    ReasonCode.ENGINE_EXPECTS: (
        "{engine} expects to start job {job} at {expected}: sooner if others end early, later if others"
        " come first"
    ),
    ReasonCode.ENGINE_ENDS: (
        "{engine} ends job {job} at {wall}, sooner than its own time limit would at {limit}"
    ),
    ReasonCode.ENGINE_SILENT: (
        "what {engine} says of {jobs} job(s) could not be read again (last read: {read_at}): {failure}"
    ),
    ReasonCode.NOBODY_TO_TELL: "its end is to be told, and project {project} has no webhook",
}


HINTS: Final[Mapping[ReasonCode, str]] = {
    ReasonCode.BUDGET_EXCEEDED: "shorten time_limit, ask for less, or have the budget raised",
    ReasonCode.JURISDICTION_FORBIDS: "widen `where.countries`, or choose another zone",
    ReasonCode.MODEL_TOO_LARGE: "choose a smaller model or variant, or a shorter context",
    ReasonCode.EXCEEDS_NODE: "ask for less on each task, or spread over more nodes",
    ReasonCode.EXCEEDS_TIME_LIMIT: (
        "ask for a shorter `time_limit` and save checkpoints, or for a zone whose pools allow it"
    ),
    ReasonCode.LICENCE_NOT_ACCEPTED: "read the terms, then `moulin deploy … --accept-licence ID`",
    ReasonCode.MODEL_RETIRED: "deploy its successor",
    ReasonCode.DEPENDENCY_UNKNOWN: "`moulin jobs` lists ids and names",
    ReasonCode.DEPENDENCY_FAILED: "run that again first, or write `when: any`",
    ReasonCode.BUNDLE_UNKNOWN: "send the folder again; `moulin run` with a relative workdir does",
    ReasonCode.SECRET_UNKNOWN: "`moulin secrets set NAME` sets it; `moulin secrets list` lists them",
    ReasonCode.NOBODY_TO_TELL: "have the operator declare one for it, or leave `notify` out",
    ReasonCode.DEPENDENCY_NEVER_OK: "write `when: any`",
    ReasonCode.NODES_WANTED: "release the lease in time, or order another for later",
}


def hint_of(reason: Reason) -> str:
    """Return what to do about a refusal, empty for what there is no advice for.

    Of what engines cannot carry it is about the first of it.
    """
    if reason.code is ReasonCode.CANNOT_CARRY:
        known = (each for each in NEED_HINTS if each in reason.parameters.get("needs", "").split())
        need = next(known, None)
        if need is not None:
            return NEED_HINTS[need]
    return HINTS.get(reason.code, "")


def sentence(reason: Reason, catalogue: Mapping[ReasonCode, str] = ENGLISH) -> str:
    """Return the reason in words; a missing parameter shows as `?` rather than failing."""
    return catalogue[reason.code].format_map(_Parameters(reason.parameters))


class _Parameters(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "?"
