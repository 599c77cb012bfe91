"""Secrets in events: one is set, set again, named by a job, and gone."""

from typing import Final

from moulin.domain.events import Payload, WorkloadSubmitted
from moulin.domain.ids import OrganisationId, ProjectId, WorkloadId
from moulin.domain.secret_events import SecretDeleted, SecretSet
from moulin.domain.secrets import SealedSecret
from moulin.domain.workload import Submission, TaskTemplate, WorkloadKind, WorkloadSpec

START_NS: Final = 1_790_000_000_000_000_000
JOB: Final = WorkloadId(f"job_{7:026}")
TASK: Final = TaskTemplate(
    command=("sh", "-c", "./train"),
    secrets={"HF_TOKEN": "hugging-face"},
    secret_files={"TLS_KEY": "tls-key"},
)


def secrets() -> list[Payload]:
    """Two values of one name, a job that names it, and its end."""
    spec = WorkloadSpec(kind=WorkloadKind.JOB, name="train", task=TASK)
    submission = Submission(
        id=JOB,
        organisation=OrganisationId("uni"),
        project=ProjectId("lab"),
        spec=spec,
        submitted_by="ada",
        submitted_at_ns=START_NS,
    )
    return [
        SecretSet(secret=sealed(1, b"\x00\xff sealed")),
        SecretSet(secret=sealed(2, b"sealed again")),
        WorkloadSubmitted(submission=submission, reserved_neur=7, policy_decision="allowed"),
        SecretDeleted(project=ProjectId("lab"), name="hugging-face", by="ada"),
    ]


def sealed(number: int, ciphertext: bytes) -> SealedSecret:
    """Return a secret of the project of the stories."""
    return SealedSecret(
        id=f"sec_{number:026}",
        organisation=OrganisationId("uni"),
        project=ProjectId("lab"),
        name="hugging-face",
        ciphertext=ciphertext,
        set_by="ada",
        set_at_ns=START_NS,
    )
