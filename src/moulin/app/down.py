"""Stops everything on one data directory: workloads, then Moulin's processes, then what is left over.

The control plane is asked, so that every end is recorded and charged; where none lives, this process
is one until all work has ended. Only what none knows is stopped behind its back, on this machine. It touches no process that is not on record with its start time and boot id.
"""

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moulin.app.datadir import (
    CREDENTIALS,
    RUN,
    RunRecord,
    lock,
    read_json,
    read_run,
    trusted_file,
)
from moulin.app.processes import end, is_alive, send, wait_until_gone
from moulin.domain.errors import DeadlineExceeded, LocalError, MoulinError, NotFound
from moulin.domain.views import WorkloadView
from moulin.domain.workload import FINAL_WORKLOAD_STATES, WorkloadState
from moulin.sdk import Credentials, Moulin

LIVE_STATES: Final = tuple(s.value for s in WorkloadState if s not in FINAL_WORKLOAD_STATES)
PROCESS_WAIT_S: Final = 40.0
_POLL_S: Final = 0.1

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """What `down` found and stopped; `steps` counts tasks stopped without a control plane."""

    was_running: bool
    workloads: int
    steps: int


def bring_down(data: Path, *, wait_s: float, report: Report) -> Stopped:
    """Stop every workload and Moulin itself; return when nothing of them lives.

    Raises `NotFound` where Moulin never was, `DeadlineExceeded` when workloads do not end in
    time (Moulin then keeps running), `LocalError` when a process does not end.
    """
    if not (data / CREDENTIALS).exists():
        raise NotFound(
            f"stop Moulin on {data}: it was never started there",
            hint="name its directory with --data",
        )
    run = read_run(data)
    was_running = run.supervisor is not None and is_alive(run.supervisor)
    stopped = 0
    has_control = run.control is not None and (was_running or is_alive(run.control))
    if has_control:
        stopped = _stop_workloads(data, run, wait_s=wait_s, report=report)
    _end_processes(run)
    descriptor = lock(data, os.getpid())
    try:
        if not has_control:
            stopped = _stop_without_control(data, wait_s=wait_s, report=report)
        _hang_up(data)
        steps = _stop_left_over(data, wait_s=wait_s)
        (data / RUN).unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return Stopped(was_running=was_running, workloads=stopped, steps=steps)


def operator_credentials(data: Path, control_url: str = "") -> Credentials:
    """Return the operator's credentials of a data directory.

    Raises `LocalError` when the file is damaged.
    """
    known = read_json(data / CREDENTIALS)
    return Credentials(
        control_url=control_url or str(known.get("control_url", "")),
        gateway_url=str(known.get("gateway_url", "")),
        api_key=str(known.get("operator_key") or known.get("api_key", "")),
        project=str(known.get("project", "")),
        ca=str(trusted_file(data, known) or ""),
    )


def _stop_workloads(data: Path, run: RunRecord, *, wait_s: float, report: Report) -> int:
    with Moulin(credentials=operator_credentials(data, run.control_url)) as client:
        live = _live(client)
        for view in live:
            client.workloads.stop(view.id)
        if live:
            report(f"stopping {len(live)} workload(s)")
        deadline_s = time.monotonic() + wait_s
        while remaining := _live(client):
            if time.monotonic() >= deadline_s:
                names = ", ".join(view.id for view in remaining[:5])
                raise DeadlineExceeded(
                    f"stop {len(remaining)} workload(s) in {wait_s:g} s: {names}",
                    hint="Moulin still runs; try again, or give more time with --wait",
                )
            time.sleep(_POLL_S)
        return len(live)


def _live(client: Moulin) -> Sequence[WorkloadView]:
    return list(client.workloads.every(states=LIVE_STATES))


def _end_processes(run: RunRecord) -> None:
    if run.supervisor is not None:
        send(run.supervisor, signal.SIGTERM)
        if not wait_until_gone(run.supervisor, PROCESS_WAIT_S):
            raise LocalError(
                f"stop Moulin: process {run.supervisor.pid} did not end in {PROCESS_WAIT_S:g} s",
                hint=f"look at it with ps -p {run.supervisor.pid}, then try again",
            )
    for child in run.children:
        end(child, PROCESS_WAIT_S / 4)


def _stop_without_control(data: Path, *, wait_s: float, report: Report) -> int:
    """Stop work that went on after Moulin ended; what keeps its log from being read is reported."""
    from moulin.app.last_cycles import stop_all_work

    try:
        return stop_all_work(data, wait_s=wait_s)
    except DeadlineExceeded:
        raise
    except MoulinError as problem:
        report(f"{problem.message}; only tasks of this machine are stopped")
        return 0


def _hang_up(data: Path) -> None:
    """Close what a control plane that was killed left open to login nodes."""
    if (data / "slurm").is_dir():
        from moulin.app.wiring.slurm import hang_up_all

        hang_up_all(data)


def _stop_left_over(data: Path, *, wait_s: float) -> int:
    """Stop tasks that no control plane watches; return how many there were."""
    spool = data / "spool"
    if not spool.is_dir() or not any(spool.iterdir()):
        return 0
    from moulin.app.wiring.local import stop_everything_local

    found = remaining = stop_everything_local(data)
    deadline_s = time.monotonic() + wait_s
    while remaining:
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded(
                f"stop {remaining} task(s) in {wait_s:g} s", hint="try again with a longer --wait"
            )
        time.sleep(_POLL_S)
        remaining = stop_everything_local(data)
    return found
