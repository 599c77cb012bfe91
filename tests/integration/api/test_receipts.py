"""What receipts show to whom."""

import pytest

from moulin.domain.principal import Role


@pytest.mark.parametrize(
    ("role", "cost"),
    [(Role.OPERATOR, "1"), (Role.ADMIN, "-1"), (Role.MEMBER, "-1"), (Role.VIEWER, "-1")],
)
def test_only_the_operator_reads_the_operators_cost(world, role, cost):
    receipt = world.receipts["alpha"]
    with world.client(role) as client:
        one = client.get(f"/api/v1/receipts/{receipt}").json()
        listed = client.get("/api/v1/receipts").json()["items"]
    assert one["charge"]["operator_cost_neur"] == cost
    assert {r["charge"]["operator_cost_neur"] for r in listed} == {cost}
    assert one["charge"]["amount_neur"] == str(2**64)
