"""Who is calling: a user or a service that showed a valid key, and what its role allows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.limits import Allowance, RateLimit


class Role(StrEnum):
    """Roles, strongest first. OPERATOR and GATEWAY belong to the factory, the others to a project."""

    OPERATOR = "operator"
    GATEWAY = "gateway"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"
    INFERENCE = "inference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authenticated caller; `project` is empty for factory roles."""

    key: KeyId
    name: str
    role: Role
    organisation: OrganisationId
    project: ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as stored: never the secret, only its HMAC.

    Empty `models` and `countries` mean no restriction; `expires_at_ns` and `revoked_at_ns` are 0
    when unset. `origin` is the id of the key that this one replaced, or that one's origin: limits
    and what was used of them belong to the line of keys, so that a rotation renews nothing.
    `per_user` is what each user of the line may use. The label `user` says that the key is one
    user's, whatever its requests say.
    """

    id: KeyId
    name: str
    role: Role
    organisation: OrganisationId
    project: ProjectId
    digest: str
    models: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    created_at_ns: int = 0
    expires_at_ns: int = 0
    revoked_at_ns: int = 0
    origin: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    rate: RateLimit = field(default_factory=RateLimit)
    allowance: Allowance = field(default_factory=Allowance)
    per_user: Allowance = field(default_factory=Allowance)

    @property
    def line(self) -> str:
        """The id of the first key of the line this key belongs to."""
        return self.origin or self.id
