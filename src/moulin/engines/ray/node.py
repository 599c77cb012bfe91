"""One node's door: answers the verbs of the engine's port for this machine, in JSON-able values.

It runs as an actor of Ray and imports nothing of it. The engine behind it is named by whoever wires
the pool; everything the engine knows is on the node's disk, so a door may die at any time.
"""

import base64
import contextlib
import importlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from moulin.domain.errors import MoulinError
from moulin.domain.ids import NodeId, StepId
from moulin.domain.observation import NodeCapacity
from moulin.domain.plan import StartStep
from moulin.domain.wire import decode, encode
from moulin.ports.engine import Engine, Forgets, ListsSteps, ReportsHealth

Json = dict[str, Any]


class MemberEngine(Engine, ListsSteps, Forgets, ReportsHealth, Protocol):
    """What a node's engine must be able to do."""

    def agree_port(self, step: StepId) -> int:
        """Return the port on which the tasks of the step's attempt meet."""
        ...

    def take_bundle(self, digest: str, offset: int, data: bytes, *, is_last: bool) -> int:
        """Add a piece of a folder's bundle; return which is wanted next, -1 when it is here."""
        ...


class WallClock:
    """UTC as one reading of the wall clock plus the monotonic time since."""

    def __init__(self) -> None:
        self._anchor_ns = time.time_ns() - time.monotonic_ns()

    def now_ns(self) -> int:
        """Return ns since 1970 UTC."""
        return self._anchor_ns + time.monotonic_ns()


class NodeDoor:
    """The verbs of one node."""

    def __init__(self, opens: str, directory: str, own: Json) -> None:
        """Open the engine `opens`, MODULE:CLASS, under `directory`; `own` is this node's capacity."""
        self._opens = opens
        self._directory = Path(directory)
        self._own = decode(NodeCapacity, own | {"boot_id": _boot_id()})
        self._clock = WallClock()
        self._addresses: dict[NodeId, str] = {}
        self._engine = self._open()
        self._verbs: Mapping[str, Callable[[Json], Any]] = {
            "about": self._about,
            "start": self._start,
            "observe": self._observe,
            "stop": self._stop,
            "logs": self._logs,
            "steps": self._steps,
            "forget": self._forget,
            "port": self._port,
            "bundle": self._bundle,
            "health": self._health,
        }

    def answer(self, verb: str, request: Json) -> Json:
        """Return `{"value": …}`, or `{"error": …}` with the code, message and hint of an error."""
        try:
            return {"value": self._verbs[verb](request)}
        except MoulinError as error:
            return error_body(error)

    def _open(self) -> MemberEngine:
        module, _, name = self._opens.partition(":")
        opened: MemberEngine = getattr(importlib.import_module(module), name)(
            self._directory, clock=self._clock, own=self._own, addresses=self._addresses
        )
        return opened

    def _about(self, _request: Json) -> Json:
        [own] = (each for each in self._engine.capacity() if each.node == self._own.node)
        return {"boot_id": own.boot_id, "cpu_model": _cpu_model(), "lacks": list(own.lacks)}

    def _start(self, request: Json) -> Any:
        step = decode(StartStep, request["step"])
        addresses = {NodeId(node): address for node, address in request["addresses"].items()}
        if not addresses.items() <= self._addresses.items():
            self._addresses |= addresses
            self._engine = self._open()
        return encode(self._engine.start(step))

    def _observe(self, request: Json) -> Any:
        steps = [StepId(step) for step in request["steps"]]
        return [encode(seen) for seen in self._engine.observe(steps)]

    def _stop(self, request: Json) -> None:
        self._engine.stop(StepId(request["step"]), request["grace_s"])

    def _logs(self, request: Json) -> Any:
        found = self._engine.logs(
            StepId(request["step"]), request["cursor"], request["limit_bytes"]
        )
        return encode(found)

    def _steps(self, _request: Json) -> Any:
        return list(self._engine.steps())

    def _forget(self, request: Json) -> None:
        self._engine.forget(StepId(request["step"]))

    def _health(self, _request: Json) -> Any:
        return [encode(found) for found in self._engine.health((self._own.node,))]

    def _bundle(self, request: Json) -> int:
        data = base64.b64decode(request["data"])
        return self._engine.take_bundle(
            request["digest"], request["offset"], data, is_last=request["is_last"]
        )

    def _port(self, request: Json) -> int:
        return self._engine.agree_port(StepId(request["step"]))


def error_body(error: MoulinError) -> Json:
    """Return an error as it crosses the wire."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def _boot_id() -> str:
    return _text("/proc/sys/kernel/random/boot_id").strip()


def _cpu_model() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return os.uname().machine


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""
