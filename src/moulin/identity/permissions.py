"""Decides what a role may do, as one table: role, action, and how far the action reaches.

It never looks at an object, only at who owns it. A pair that is not in the table is forbidden.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Final

from moulin.domain.principal import Principal, Role


class Action(StrEnum):
    """Everything an edge lets a principal do; each route names exactly one."""

    API_READ = "api.read"
    STATUS_READ = "status.read"
    WORKLOAD_SUBMIT = "workload.submit"
    WORKLOAD_TRY = "workload.try"
    WORKLOAD_READ = "workload.read"
    WORKLOAD_STOP = "workload.stop"
    WORKLOAD_SCALE = "workload.scale"
    WORKLOAD_ADJUST = "workload.adjust"
    WORKLOAD_ENTER = "workload.enter"
    LOGS_READ = "logs.read"
    EVENTS_READ = "events.read"
    FACTORY_READ = "factory.read"
    FACTORY_APPLY = "factory.apply"
    KEY_CREATE = "key.create"
    KEY_READ = "key.read"
    KEY_REVOKE = "key.revoke"
    RECEIPT_READ = "receipt.read"
    USAGE_READ = "usage.read"
    NODE_READ = "node.read"
    NODE_JUDGE = "node.judge"
    REPLICA_READ = "replica.read"
    INTERVAL_READ = "interval.read"
    MODEL_READ = "model.read"
    MODEL_FETCH = "model.fetch"
    LICENCE_ACCEPT = "licence.accept"
    EVIDENCE_READ = "evidence.read"
    OBJECT_READ = "object.read"
    OBJECT_WRITE = "object.write"
    SECRET_READ = "secret.read"  # noqa: S105 - an action, no secret
    SECRET_WRITE = "secret.write"  # noqa: S105
    SECRET_ROTATE = "secret.rotate"  # noqa: S105
    INFER = "infer"
    GATEWAY_SYNC = "gateway.sync"


class Reach(IntEnum):
    """Whose objects an action may touch: nobody's, those of the caller's project, everybody's."""

    NONE = 0
    PROJECT = 1
    FACTORY = 2


_VIEWER: Final[Mapping[Action, Reach]] = {
    Action.API_READ: Reach.PROJECT,
    Action.STATUS_READ: Reach.PROJECT,
    Action.WORKLOAD_TRY: Reach.PROJECT,
    Action.WORKLOAD_READ: Reach.PROJECT,
    Action.LOGS_READ: Reach.PROJECT,
    Action.EVENTS_READ: Reach.PROJECT,
    Action.FACTORY_READ: Reach.PROJECT,
    Action.RECEIPT_READ: Reach.PROJECT,
    Action.USAGE_READ: Reach.PROJECT,
    Action.NODE_READ: Reach.PROJECT,
    Action.MODEL_READ: Reach.PROJECT,
    Action.EVIDENCE_READ: Reach.PROJECT,
}
# Whoever may ask a model may also keep files, batches and responses, and read those of the project.
_INFERENCE: Final[Mapping[Action, Reach]] = {
    Action.INFER: Reach.PROJECT,
    Action.OBJECT_READ: Reach.PROJECT,
    Action.OBJECT_WRITE: Reach.PROJECT,
}
# Whoever may run a job in a project can read its secrets in there, so he may set them as well, and go
# into what runs.
_SECRETS: Final[Mapping[Action, Reach]] = {
    Action.WORKLOAD_ENTER: Reach.PROJECT,
    Action.SECRET_READ: Reach.PROJECT,
    Action.SECRET_WRITE: Reach.PROJECT,
}
_MEMBER: Final[Mapping[Action, Reach]] = {
    **_VIEWER,
    Action.WORKLOAD_SUBMIT: Reach.PROJECT,
    Action.WORKLOAD_STOP: Reach.PROJECT,
    Action.WORKLOAD_SCALE: Reach.PROJECT,
    Action.WORKLOAD_ADJUST: Reach.PROJECT,
    Action.MODEL_FETCH: Reach.PROJECT,
    **_SECRETS,
    **_INFERENCE,
}
_ADMIN: Final[Mapping[Action, Reach]] = {
    **_MEMBER,
    Action.LICENCE_ACCEPT: Reach.PROJECT,
    Action.KEY_CREATE: Reach.PROJECT,
    Action.KEY_READ: Reach.PROJECT,
    Action.KEY_REVOKE: Reach.PROJECT,
}

# A gateway is trusted with usage, not with tenants' objects; an operator runs the factory but
# has no budget of its own, so it does not infer, and what tenants keep is not the operator's to read.
PERMISSIONS: Final[Mapping[Role, Mapping[Action, Reach]]] = {
    Role.OPERATOR: {
        action: Reach.FACTORY
        for action in Action
        if action not in (Action.GATEWAY_SYNC, *_SECRETS, *_INFERENCE)
    },
    Role.GATEWAY: {Action.GATEWAY_SYNC: Reach.FACTORY},
    Role.ADMIN: _ADMIN,
    Role.MEMBER: _MEMBER,
    Role.VIEWER: _VIEWER,
    Role.INFERENCE: _INFERENCE,
}


def reach(role: Role, action: Action) -> Reach:
    """Return how far `role` may go with `action`."""
    return PERMISSIONS[role].get(action, Reach.NONE)


def permits(
    principal: Principal, action: Action, owner_project: str, owner_organisation: str
) -> bool:
    """Say whether the principal may do `action` to an object of this project and organisation.

    Objects of the factory as a whole have no owner (both empty): whoever may do the action at
    all may do it to them.
    """
    allowed = reach(principal.role, action)
    if allowed is not Reach.PROJECT:
        return allowed is Reach.FACTORY
    if not owner_project and not owner_organisation:
        return True
    return (
        principal.project != ""
        and owner_project == principal.project
        and owner_organisation == principal.organisation
    )
