"""Threads of a model server do not spin for long, unless the operator says how they shall wait."""

import pytest

from moulin.runtimes.program import SPIN_COUNT, waiting_politely


@pytest.mark.parametrize(
    ("environment", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": SPIN_COUNT}),
        ({"PATH": "/bin"}, {"GOMP_SPINCOUNT": SPIN_COUNT}),
        ({"GOMP_SPINCOUNT": "infinity"}, {}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
    ],
)
def test_spinning_is_short_unless_said(environment, added):
    assert waiting_politely(environment) == added
