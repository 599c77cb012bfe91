"""Every golden log folds to the state it was recorded with."""

import json

import pytest

from tests.golden.states import LOGS, RECORDED, digest, facts, folded

PATHS = sorted(LOGS.glob("*.jsonl"))


def test_every_log_has_a_recorded_state():
    assert sorted(json.loads(RECORDED.read_text())) == [path.stem for path in PATHS]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_log_folds_to_its_recorded_state(path):
    state = folded(path)
    assert digest(state) == json.loads(RECORDED.read_text())[path.stem], facts(state)
