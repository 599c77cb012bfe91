"""Kills the control process of a running demo, and waits until another one leads."""

import os
import signal
import time
from typing import Final, NamedTuple

from moulin.app.datadir import read_run
from moulin.app.demo.stage import Stage, promise, wait_until
from moulin.app.processes import ProcessMark, is_alive
from moulin.domain.errors import MoulinError

RETURN_S: Final = 30.0


class Successor(NamedTuple):
    """The process that took over, the epoch it leads in, and how long nobody led."""

    process: ProcessMark
    epoch: int
    back_s: float


def control_of(stage: Stage) -> ProcessMark:
    """Return the control process, which lives; raises `NotAsPromised`."""
    control = read_run(stage.data).control
    promise(control is not None and is_alive(control), "the control process is not on record")
    assert control is not None
    return control


def kill(stage: Stage, control: ProcessMark) -> Successor:
    """Kill the control process without a word; raises `DeadlineExceeded` when none takes over."""
    epoch = stage.as_operator.status().epoch
    began_s = time.monotonic()
    os.kill(control.pid, signal.SIGKILL)
    wait_until(lambda: _is_back(stage, control), RETURN_S, "the control plane comes back")
    wait_until(lambda: _leads(stage, epoch), RETURN_S, "a new leader leads")
    return Successor(control_of(stage), epoch + 1, time.monotonic() - began_s)


def _is_back(stage: Stage, former: ProcessMark) -> bool:
    control = read_run(stage.data).control
    return control is not None and control != former and is_alive(control)


def _leads(stage: Stage, epoch: int) -> bool:
    try:
        return stage.as_operator.status().epoch > epoch
    except MoulinError:
        return False  # it does not listen yet
