"""The table of permissions, and what it must never say."""

from itertools import pairwise

import pytest

from moulin.domain.ids import KeyId, OrganisationId, ProjectId
from moulin.domain.principal import Principal, Role
from moulin.identity import PERMISSIONS, Action, Reach, permits, reach

OWN = ("alpha", "acme")


def principal(role: Role, project: str = "alpha", organisation: str = "acme") -> Principal:
    return Principal(
        key=KeyId("key_1"),
        name="somebody",
        role=role,
        organisation=OrganisationId(organisation),
        project=ProjectId(project),
    )


def test_every_role_has_a_row():
    assert set(PERMISSIONS) == set(Role)


def test_each_project_role_may_do_all_that_the_weaker_may():
    order = (Role.VIEWER, Role.MEMBER, Role.ADMIN)
    for weaker, stronger in pairwise(order):
        assert set(PERMISSIONS[weaker]) < set(PERMISSIONS[stronger])


def test_only_the_factorys_roles_reach_beyond_a_project():
    for role, row in PERMISSIONS.items():
        widest = max(row.values())
        assert (widest is Reach.FACTORY) == (role in (Role.OPERATOR, Role.GATEWAY)), role


def test_narrow_roles_may_do_little():
    assert dict(PERMISSIONS[Role.INFERENCE]) == dict.fromkeys(
        (Action.INFER, Action.OBJECT_READ, Action.OBJECT_WRITE), Reach.PROJECT
    )
    assert dict(PERMISSIONS[Role.GATEWAY]) == {Action.GATEWAY_SYNC: Reach.FACTORY}


def test_a_viewer_changes_nothing():
    changing = {
        Action.WORKLOAD_SUBMIT,
        Action.WORKLOAD_STOP,
        Action.WORKLOAD_SCALE,
        Action.WORKLOAD_ADJUST,
        Action.FACTORY_APPLY,
        Action.KEY_CREATE,
        Action.KEY_REVOKE,
        Action.MODEL_FETCH,
        Action.GATEWAY_SYNC,
    }
    assert not changing & set(PERMISSIONS[Role.VIEWER])


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("role", list(Role))
def test_reach_decides_over_owners(role, action):
    allowed = reach(role, action)
    caller = principal(role)
    assert permits(caller, action, *OWN) == (allowed > Reach.NONE)
    assert permits(caller, action, "", "") == (allowed > Reach.NONE)
    for others in (("beta", "biota"), ("beta", "acme"), ("alpha", "biota"), ("", "biota")):
        assert permits(caller, action, *others) == (allowed is Reach.FACTORY)


def test_a_project_role_without_a_project_owns_nothing():
    caller = principal(Role.MEMBER, project="")
    assert not permits(caller, Action.WORKLOAD_READ, "", "acme")
    assert not permits(caller, Action.WORKLOAD_READ, *OWN)
