"""Plays the demo from beginning to end and always cleans up; the steps are in the order of the story.

factory → model → job → control plane killed → refusals → receipts → stop
"""

import importlib.util
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final, Generic, TypeVar

from moulin.app.datadir import CREDENTIALS
from moulin.app.demo.briefs import kill_control_plane, start_job
from moulin.app.demo.documents import select
from moulin.app.demo.factory import build_factory
from moulin.app.demo.model import deploy_model
from moulin.app.demo.processes import command_of
from moulin.app.demo.proof import leave, results_of, settle_up
from moulin.app.demo.refusals import refuse
from moulin.app.demo.screen import Screen
from moulin.app.demo.stage import Stage, Wanted, end_by_force, end_everything
from moulin.domain.errors import InvalidRequest, LocalError, MoulinError

NEEDED: Final = ("openai", "xllamacpp")
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
S = TypeVar("S", bound=Stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story(Generic[S]):
    """What is played: each step's short name, title and doing, on one kind of stage."""

    stage: type[S]
    steps: Sequence[tuple[str, str, Callable[[S], dict[str, Any]]]]


STORY: Final = Story(
    stage=Stage,
    steps=(
        ("factory", "A factory on this machine", build_factory),
        ("model", "A language model behind an endpoint", deploy_model),
        ("job", "A batch job: documents become briefs", start_job),
        ("crash", "The control plane is killed while the job runs", kill_control_plane),
        ("refusals", "What the factory refuses", refuse),
        ("receipts", "Receipts, and what proves them", settle_up),
    ),
)


class Interrupted(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def play(wanted: Wanted, story: Story[Any] = STORY) -> int:
    """Run every step; return 0 when all of them held, 1 when one did not, 128 + a signal's number.

    With `is_json` words go to stderr and one JSON object to stdout, whatever happens.
    """
    screen = Screen(sys.stderr if wanted.is_json else sys.stdout)
    began_s = time.monotonic()
    report: dict[str, Any] = {"ok": False, "model": wanted.model, "steps": []}
    status = 1
    with _signals():
        try:
            _check(wanted)
            status = _play_in(wanted, story, screen, report)
        except MoulinError as error:
            _tell(screen, error, report)
        except Interrupted as interrupted:
            screen.bad(f"stopped by {signal.Signals(interrupted.number).name}")
            status = 128 + interrupted.number
    report["ok"] = status == 0
    report["seconds"] = round(time.monotonic() - began_s, 1)
    _sum_up(screen, report, wanted, len(story.steps))
    if wanted.is_json:
        sys.stdout.write(f"{json.dumps(report, ensure_ascii=False)}\n")
        sys.stdout.flush()
    return status


def _play_in(wanted: Wanted, story: Story[S], screen: Screen, report: dict[str, Any]) -> int:
    """Play in a data directory, and leave no process behind on any way out."""
    made = None if wanted.data else Path(tempfile.mkdtemp(prefix="moulin-demo-"))
    data = (wanted.data or made or Path()).resolve()
    stage = story.stage(wanted=wanted, screen=screen, data=data)
    report["data_dir"] = str(data)
    has_played = False
    try:
        for number, (name, title, step) in enumerate(story.steps, start=1):
            screen.headline(f"{number}/{len(story.steps)}", title)
            _run_step(stage, name, step, report)
        screen.gap()
        _run_step(stage, "stop", leave, report)
        has_played = True
    finally:
        with _deaf():
            if not has_played:
                _clean_up(stage)
            stage.close()
            if made is not None and has_played and not wanted.is_kept:
                shutil.rmtree(made, ignore_errors=True)
    return 0


def _run_step(
    stage: S, name: str, step: Callable[[S], dict[str, Any]], report: dict[str, Any]
) -> None:
    began_s = time.monotonic()
    entry: dict[str, Any] = {"name": name, "ok": False, "seconds": 0.0}
    report["steps"].append(entry)
    try:
        entry |= step(stage)
        entry["ok"] = True
    finally:
        entry["seconds"] = round(time.monotonic() - began_s, 1)


def _clean_up(stage: Stage) -> None:
    """Stop what was started, in good order if that goes, else by force; say which."""
    stage.screen.gap()
    stage.screen.quiet("stopping everything the demo started")
    try:
        left = end_everything(stage)
    except (MoulinError, OSError) as problem:
        stage.screen.bad(f"not in good order: {problem}")
        left = ()
    for mark in end_by_force(stage):
        stage.screen.bad(f"ended by force: {mark.pid} {command_of(mark.pid)}")
    if not left:
        stage.screen.good("nothing of it runs any more")


def _check(wanted: Wanted) -> None:
    """Refuse before anything is started: missing parts, documents or a directory already in use."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise LocalError(
            f"play the demo: {' and '.join(missing)} is not installed",
            hint="pip install 'moulin[demo]', or use `make demo`",
        )
    if wanted.data is not None and (wanted.data / CREDENTIALS).exists():
        raise InvalidRequest(
            f"play the demo in {wanted.data}: there is a factory already",
            hint="name a directory that does not exist yet, or leave --data out",
        )
    select(wanted.docs)


def _tell(screen: Screen, error: MoulinError, report: dict[str, Any]) -> None:
    screen.gap()
    screen.bad(f"error: {error.message}")
    if error.hint:
        screen.say(f"hint: {error.hint}")
    report["error"] = {"code": error.code, "message": error.message, "hint": error.hint}


def _sum_up(screen: Screen, report: dict[str, Any], wanted: Wanted, steps: int) -> None:
    screen.gap()
    data = report.get("data_dir", "")
    if report["ok"]:
        screen.good(f"all {steps} steps held, in {report['seconds']:.0f} s")
        if wanted.data or wanted.is_kept:
            screen.say(f"Briefs, receipt and public key are in {results_of(Path(data))}")
        else:
            screen.quiet(
                "Nothing is left but the model's file in your cache (--keep keeps the rest). Next: moulin up"
            )
        return
    done = sum(step["ok"] for step in report["steps"])
    screen.bad(f"{done} of {steps} steps held, in {report['seconds']:.0f} s")
    if data and Path(data).exists():
        screen.say(f"What it left, logs included, is in {data}")


@contextmanager
def _signals() -> Iterator[None]:
    """Turn signals that end a program into an exception, so that everything is cleaned up."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        """Raise `Interrupted` wherever the program is."""
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _deaf() -> Iterator[None]:
    """Let no further signal cut the cleaning short."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
