"""Every error Moulin raises on purpose, as one tree with stable codes.

    MoulinError                     code, message, hint, retryable, details
    ├─ InvalidRequest        400    ├─ InvalidSpec ├─ UnknownName ├─ BodyTooLarge 413
    ├─ Unauthenticated       401
    ├─ BudgetExceeded        402
    ├─ Forbidden             403    ├─ LicenceNotAccepted
    ├─ NotFound              404    ├─ LogsDropped 410
    ├─ Conflict              409    ├─ AlreadyExists ├─ InUse ├─ StaleGeneration ├─ IdempotencyMismatch
    ├─ Refused               422    (a placement or policy refusal, raised only at an edge)
    ├─ QuotaExceeded         429    ├─ RateLimited
    ├─ EngineError           502    ├─ EngineUnavailable ├─ EngineRefused
    ├─ SourceError           502    ├─ SourceUnavailable ├─ DigestMismatch
    ├─ StoreError            503    ├─ StoreUnavailable ├─ StoreCorrupt
    ├─ Unavailable           503    (busy, stale or cut off; trying later can succeed)
    ├─ DeadlineExceeded      504
    ├─ LocalError            500    ├─ PortInUse ├─ DataDirectoryBusy ├─ DiskFull
    └─ InternalError         500    (a bug, as a caller is told of it)
    InvariantViolated(AssertionError)  a bug; never caught below the process boundary

A refusal that is normal business (quota, budget, no capacity) is a value inside the core
(`moulin.domain.reasons.Reason`); the classes here exist for edges that must answer a caller.
The HTTP status lives on the class because the API and the gateway must agree on it.
"""

from collections.abc import Mapping
from typing import ClassVar


class MoulinError(Exception):
    """Base of all operating errors.

    `message` says what was being attempted and what stopped it; `hint` says what to do next;
    `details` holds JSON values (numbers, names) that the message was made from.
    """

    code: ClassVar[str] = "moulin_error"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, hint: str = "", details: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: Mapping[str, object] = dict(details or {})


class InvalidRequest(MoulinError):
    """The request cannot be understood or breaks a stated limit."""

    code = "invalid_request"
    http_status = 400


class InvalidSpec(InvalidRequest):
    """A job file, operator file or spec holds an unknown key or an impossible value."""

    code = "invalid_spec"


class UnknownName(InvalidRequest):
    """A name refers to no model, machine class, zone or project; the hint names the nearest."""

    code = "unknown_name"


class BodyTooLarge(InvalidRequest):
    """The body is larger than the stated limit; it was not read to its end."""

    code = "body_too_large"
    http_status = 413


class Unauthenticated(MoulinError):
    """No key, or a key that is unknown, expired or revoked."""

    code = "unauthenticated"
    http_status = 401


class BudgetExceeded(MoulinError):
    """The project's euro budget does not cover what was asked."""

    code = "budget_exceeded"
    http_status = 402


class Forbidden(MoulinError):
    """The key is valid but its role, project or restrictions do not allow this."""

    code = "forbidden"
    http_status = 403


class LicenceNotAccepted(Forbidden):
    """The model's licence has terms that nobody accepted yet for this organisation."""

    code = "licence_not_accepted"


class NotFound(MoulinError):
    """The object does not exist, or the caller may not know that it does."""

    code = "not_found"
    http_status = 404


class LogsDropped(NotFound):
    """The task's output was kept as long as its workload's `retention` said, then dropped."""

    code = "logs_dropped"
    http_status = 410


class Conflict(MoulinError):
    """The request contradicts the present state."""

    code = "conflict"
    http_status = 409


class AlreadyExists(Conflict):
    """An object with this name exists."""

    code = "already_exists"


class InUse(Conflict):
    """The object cannot be removed because others use it; `details["users"]` lists them."""

    code = "in_use"


class StaleGeneration(Conflict):
    """An effect arrived from a generation that is no longer the current one."""

    code = "stale_generation"


class IdempotencyMismatch(Conflict):
    """An idempotency key came back with another body."""

    code = "idempotency_mismatch"


class Refused(MoulinError):
    """What was asked can never be placed here; `details` carries the reasons with numbers."""

    code = "refused"
    http_status = 422


class QuotaExceeded(MoulinError):
    """A rate or quota limit was reached; trying later can succeed."""

    code = "quota_exceeded"
    http_status = 429
    retryable = True


class RateLimited(QuotaExceeded):
    """Models are called faster than a key, project or organisation may; `Retry-After` says when."""

    code = "rate_limit_exceeded"


class EngineError(MoulinError):
    """An engine failed to do what a plan asked."""

    code = "engine_error"
    http_status = 502


class EngineUnavailable(EngineError):
    """The engine cannot be reached or its software is missing; nothing is known of its tasks."""

    code = "engine_unavailable"
    retryable = True


class EngineRefused(EngineError):
    """The engine understood the step and declined it."""

    code = "engine_refused"


class SourceError(MoulinError):
    """Reading a model file, meter or feed failed."""

    code = "source_error"
    http_status = 502


class SourceUnavailable(SourceError):
    """The source cannot be reached or does not have the file; what was fetched so far is kept."""

    code = "source_unavailable"
    retryable = True


class DigestMismatch(SourceError):
    """The bytes received are not the bytes that were promised; they were not kept."""

    code = "digest_mismatch"


class StoreError(MoulinError):
    """The store failed."""

    code = "store_error"
    http_status = 503


class StoreUnavailable(StoreError):
    """The store cannot commit now; nothing was acknowledged."""

    code = "store_unavailable"
    retryable = True


class StoreCorrupt(StoreError):
    """The log has a gap, a wrong digest or an unreadable event; Moulin stops rather than guess."""

    code = "store_corrupt"


class Unavailable(MoulinError):
    """This part of Moulin cannot serve just now; `details["retry_after_s"]` says when to return."""

    code = "unavailable"
    http_status = 503
    retryable = True


class DeadlineExceeded(MoulinError):
    """The answer did not come in the time allowed."""

    code = "deadline_exceeded"
    http_status = 504
    retryable = True


class LocalError(MoulinError):
    """This machine cannot do what was asked."""

    code = "local_error"


class PortInUse(LocalError):
    """Another program listens on the address Moulin was told to use."""

    code = "port_in_use"


class DataDirectoryBusy(LocalError):
    """Another Moulin runs on this data directory."""

    code = "data_directory_busy"


class DiskFull(LocalError):
    """The disk has no room; what was being written was put aside whole or not at all."""

    code = "disk_full"
    http_status = 507


class InternalError(MoulinError):
    """A bug stopped the answer; the operator's log has the place under the request's id."""

    code = "internal_error"


class InvariantViolated(AssertionError):
    """A bug in Moulin: a stated invariant does not hold."""


def all_errors() -> tuple[type[MoulinError], ...]:
    """Return every class of the tree, parents before children, in order of definition."""
    found: list[type[MoulinError]] = [MoulinError]
    for error in found:
        found.extend(error.__subclasses__())
    return tuple(found)


def error_by_code(code: str) -> type[MoulinError]:
    """Return the class that carries `code`; an unknown code gives `MoulinError` itself."""
    for error in all_errors():
        if error.code == code:
            return error
    return MoulinError


def check(condition: bool, statement: str) -> None:  # noqa: FBT001 - reads as an assertion
    """Raise `InvariantViolated` with `statement` unless `condition` holds; works under -O too."""
    if not condition:
        raise InvariantViolated(statement)
