"""What a tenant asks Moulin to keep: files, stored responses, and batches of requests over them.

Each has an owner, an expiry and a delete (DESIGN rule 12). These values name and describe; the
bytes are in a folder that only the control process opens, never in the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from moulin.domain.ids import KeyId, OrganisationId, ProjectId

DAY_S: Final = 86_400
FILE_KEPT_S: Final = 30 * DAY_S
RESPONSE_KEPT_S: Final = 30 * DAY_S
BUNDLE_KEPT_S: Final = 30 * DAY_S
BATCH_WINDOW_S: Final = DAY_S
BATCH_LINES_MAX: Final = 50_000
PROJECT_BYTES_MAX: Final = 10 * 10**9
BATCH_FACTOR_PPM: Final = 500_000
"""What a batch pays of the price, where the price book does not say."""


class StoredKind(StrEnum):
    """A file was uploaded or written by a batch; a response was asked for with `store: true`.

    A bundle is a folder packed by whoever submitted a job, named by its digest.
    """

    FILE = "file"
    RESPONSE = "response"
    BUNDLE = "bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """Bytes kept for a project until `expires_at_ns`; `key` is who asked, `sha256` in hexadecimal."""

    id: str
    kind: StoredKind
    organisation: OrganisationId
    project: ProjectId
    key: KeyId
    name: str
    purpose: str
    size_bytes: int
    sha256: str
    created_at_ns: int
    expires_at_ns: int


class BatchState(StrEnum):
    """Where a batch is; the last four are final."""

    RUNNING = "running"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


FINAL_BATCH_STATES: Final = frozenset(
    {BatchState.COMPLETED, BatchState.FAILED, BatchState.CANCELLED, BatchState.EXPIRED}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """Why a batch could not be read; `line` counts from 1, 0 is the batch as a whole."""

    line: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """Requests in files, carried out with the rights of `key` when there is room, at a lower price.

    Every line goes to `endpoint`; `model`, where not empty, is what lines are sent to that name
    none. After `deadline_at_ns` what is not done is left. Counts are of lines; of a batch that runs
    they are as of the answer. `output_file` and `error_file` are empty until there is one.
    """

    id: str
    organisation: OrganisationId
    project: ProjectId
    key: KeyId
    endpoint: str
    input_files: tuple[str, ...]
    created_at_ns: int
    deadline_at_ns: int
    model: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    state: BatchState = BatchState.RUNNING
    cancelled_at_ns: int = 0
    ended_at_ns: int = 0
    lines: int = 0
    completed: int = 0
    failed: int = 0
    output_file: str = ""
    error_file: str = ""
    errors: tuple[LineError, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWanted:
    """What a caller asks for. `requests` are lines sent along instead of files."""

    endpoint: str
    input_files: tuple[str, ...] = ()
    requests: tuple[Mapping[str, object], ...] = ()
    model: str = ""
    window_s: int = BATCH_WINDOW_S
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPage:
    """Stored objects, newest first."""

    items: tuple[StoredObject, ...]
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPage:
    """Batches, newest first."""

    items: tuple[BatchJob, ...]
    next: str = ""
