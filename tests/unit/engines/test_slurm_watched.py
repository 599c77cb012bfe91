"""A question that is asked again and again: what failed says so, whatever it failed with."""

import pytest

from moulin.domain.errors import EngineUnavailable
from moulin.engines.slurm.watched import Watched


class Asked:
    """An answer, or what is raised instead of it."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.times = 0

    def __call__(self) -> int:
        self.times += 1
        if self.failure is not None:
            raise self.failure
        return self.times


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "failure", [ValueError("a form of a later version"), EngineUnavailable("no answer")]
)
def test_what_raised_anything_is_a_failure_and_not_the_last_answer(failure, caplog):
    asked = Asked()
    watched = Watched(asked, 3600.0)
    assert watched.read().known() == 1
    asked.failure = failure
    for _ in range(3):
        watched.doubt()
        reading = watched.read()
        assert reading.value is None
        with pytest.raises(EngineUnavailable, match=str(failure)):
            reading.known()
    assert asked.times == 4
    assert len(caplog.records) == (0 if isinstance(failure, EngineUnavailable) else 1)
    asked.failure = None
    watched.doubt()
    assert watched.read().known() == 5
