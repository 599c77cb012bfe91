"""What a stand-in control plane answers about secrets: each project has one, and it is never gone."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from moulin.controlplane import commands as c
from moulin.controlplane.sealed import SealedSecrets
from moulin.domain.ids import OrganisationId, ProjectId, make_id
from moulin.domain.secrets import SealedSecret, SecretInfo, info_of

AT_NS = 1_790_000_000_000_000_000


class Sealing:
    """Seals by turning bytes round, and remembers what it was told to destroy."""

    def __init__(self) -> None:
        self.book = SealedSecrets()
        self.shredded: list[str] = []

    def seal(self, secret: SealedSecret, value: bytes) -> SealedSecret:
        return replace(secret, ciphertext=value[::-1])

    def shred(self, ids: Collection[str]) -> None:
        self.shredded.extend(ids)

    def rotate(self) -> int:
        return len(self.book.by_name)

    def answer(self, command: Any) -> SecretInfo:
        if isinstance(command, c.SetSecret):
            self.book.by_name[command.secret.project, command.secret.name] = command.secret
            return info_of(command.secret)
        return info_of(self.book.by_name[command.project, command.name])


def kept(project: str, organisation: str, name: str, ciphertext: bytes) -> SealedSecret:
    """Return a secret as it is recorded."""
    return SealedSecret(
        id=make_id("sec", AT_NS, len(name)),
        organisation=OrganisationId(organisation),
        project=ProjectId(project),
        name=name,
        ciphertext=ciphertext,
        set_by="somebody",
        set_at_ns=AT_NS,
    )
