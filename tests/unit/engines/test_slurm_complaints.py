"""Which of Slurm's words about a submission are its last, over the releases that were read."""

import pytest

from moulin.domain.errors import EngineRefused, EngineUnavailable
from moulin.engines.slurm.client import Crowded, complaint

WHAT = "submit the job"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Unable to create job record, try again",  # 2007 until 25.11
        "MaxJobCount limit reached",  # and in 26.05
        "Rate limit exceeded, please retry momentarily",
        "Authentication credential expired",
        "Authentication failure",
        "Unable to contact slurm controller (connect failure)",
        "Slurm backup controller in standby mode",
        "Required partition not available (inactive or drain)",
    ],
)
def test_what_passes_by_itself_is_tried_again(said):
    found = complaint(WHAT, said)
    assert type(found) is EngineUnavailable
    assert found.hint


@pytest.mark.parametrize(
    "said",
    [
        "Invalid account or account/partition combination specified",
        "Invalid feature specification",
        "Requested node configuration is not available",
        "Invalid qos specification",
    ],
)
def test_what_slurm_never_takes_is_refused(said):
    assert type(complaint(WHAT, said)) is EngineRefused


def test_too_many_jobs_of_an_account_may_be_less_later():
    assert type(complaint(WHAT, "AssocGrpSubmitJobsLimit")) is Crowded
