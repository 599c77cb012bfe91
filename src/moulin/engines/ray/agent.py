"""The one program that Moulin runs inside a Ray cluster: a door on every node, a group for every gang.

    python -m moulin.engines.ray.agent --pool NAME --port PORT --package DIGEST --opens MODULE:CLASS
        --spool DIRECTORY

It is a Ray job, and remembers nothing that matters: what ran is on the nodes' disks, what is reserved
is Ray's placement groups, named after attempts. When it dies, tasks go on and the next one finds them.
It never retries and never decides. Its port wants the token that Ray's own ports want.
"""

import argparse
import hmac
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from moulin.domain.errors import EngineRefused, EngineUnavailable, MoulinError, NotFound
from moulin.domain.ids import StepId
from moulin.domain.observation import NodeCapacity, Observation, TaskPhase
from moulin.domain.wire import encode
from moulin.engines.ray.groups import Groups
from moulin.engines.ray.names import NODE_LABEL, node_id
from moulin.engines.ray.node import NodeDoor, WallClock, error_body

log = logging.getLogger(__name__)
Json = dict[str, Any]
REFRESH_S: Final = 1.0
# A node whose door cannot be opened is tried again after this.
REOPEN_S: Final = 30.0
CALL_S: Final = 20.0
LOOK_S: Final = 4.0
BODY_BYTES_MAX: Final = 64 * 1024 * 1024


class Door:
    """A node of the cluster and the actor that answers for it."""

    def __init__(self, facts: Mapping[str, Any], node: str, opens: str, spool: str) -> None:
        resources = facts["Resources"]
        self.ray_id: str = facts["NodeID"]
        self.address: str = facts["NodeManagerAddress"]
        self.label: Mapping[str, str] = {"ray.io/node-id": self.ray_id}
        if NODE_LABEL in facts["Labels"]:
            self.label = {NODE_LABEL: facts["Labels"][NODE_LABEL]}
        self.capacity = NodeCapacity(
            node=node_id(node),
            cpu_milli=int(resources.get("CPU", 0) * 1000),
            memory_bytes=int(resources.get("memory", 0)),
            machine_class="",
            accelerators=int(resources.get("GPU", 0)),
            accelerator_class=facts["Labels"].get("ray.io/accelerator-type", ""),
            address=self.address,
        )
        here = NodeAffinitySchedulingStrategy(self.ray_id, soft=False)
        self.actor: Any = (
            ray.remote(NodeDoor)
            .options(num_cpus=0, scheduling_strategy=here)
            .remote(opens, f"{spool}/{node}", encode(self.capacity))
        )
        self.opening: Any = self.ask("about", {})
        self.about: Json | None = None

    def ask(self, verb: str, request: Json) -> Any:
        """Send a request; return the reference of its answer."""
        return self.actor.answer.remote(verb, request)


class Agent:
    """The verbs of the whole pool."""

    def __init__(self, pool: str, opens: str, spool: str) -> None:
        self._pool = pool
        self._opens = opens
        self._spool = spool
        self._clock = WallClock()
        self._lock = threading.Lock()
        self._doors: dict[str, Door] = {}
        self._seen: dict[str, Json] = {}
        self._reopen_at: dict[str, float] = {}
        self._is_complete = False
        self.groups = Groups(pool)
        self.verbs: Mapping[str, Callable[[Json], Json]] = {
            "nodes": self._nodes,
            "health": self._health,
            "start": self._start,
            "observe": self._observe,
            "steps": self._steps,
            "stop": self._passed_on("stop"),
            "logs": self._passed_on("logs"),
            "bundle": self._passed_on("bundle"),
            "forget": self._passed_on("forget"),
        }

    def refresh(self) -> None:
        """Open doors on nodes that came, close those of nodes that left."""
        alive: dict[str, Any] = {}
        for facts in ray.nodes():
            name = facts["Labels"].get(NODE_LABEL) or facts["NodeManagerAddress"]
            if facts["Alive"] and alive.setdefault(f"{self._pool}-{name}", facts) is not facts:
                log.warning("two nodes are called %s: one is left alone", name)
        with self._lock:
            for node, door in list(self._doors.items()):
                if node not in alive or alive[node]["NodeID"] != door.ray_id:
                    self._close(node)
            for node, facts in sorted(alive.items()):
                is_due = time.monotonic() >= self._reopen_at.get(node, 0.0)
                if node not in self._doors and is_due:
                    self._doors[node] = Door(facts, node, self._opens, self._spool)
            opening = {n: door for n, door in self._doors.items() if door.about is None}
        for node, door in opening.items():
            self._look_whether_open(node, door)
        # Until every node was opened once, the pool would seem smaller than it is.
        self._is_complete |= all(door.about is not None for door in opening.values())

    def _look_whether_open(self, node: str, door: Door) -> None:
        if not ray.wait([door.opening], timeout=0)[0]:
            return
        try:
            answer = ray.get(door.opening)
        except RayError as error:
            log.warning("node %s cannot be opened: %s", node, error)
            self._reopen_at[node] = time.monotonic() + REOPEN_S
            with self._lock:
                self._close(node)
            return
        door.about = answer.get("value")

    def _close(self, node: str) -> None:
        door = self._doors.pop(node, None)
        if door is not None:
            ray.kill(door.actor)

    def _door(self, node: str) -> Door:
        with self._lock:
            door = self._doors.get(node)
        if door is None or door.about is None:
            raise EngineUnavailable(f"reach node {node}: it is not in the cluster now")
        return door

    def _open_doors(self) -> dict[str, Door]:
        with self._lock:
            return {n: door for n, door in self._doors.items() if door.about is not None}

    def _ask_one(self, node: str, verb: str, request: Json) -> Json:
        answers = self._ask_many({node: (self._door(node), request)}, verb, CALL_S)
        if node not in answers:
            raise EngineUnavailable(f"reach node {node}: it did not answer {verb}")
        return answers[node]

    def _ask_many(
        self, asked: Mapping[str, tuple[Door, Json]], verb: str, timeout_s: float
    ) -> dict[str, Json]:
        """Ask several doors at once; one that does not answer in time is left out."""
        references = {node: door.ask(verb, request) for node, (door, request) in asked.items()}
        until = time.monotonic() + timeout_s
        answers = {}
        for node, reference in references.items():
            try:
                answers[node] = ray.get(reference, timeout=max(0.0, until - time.monotonic()))
            except GetTimeoutError:
                continue
            except RayError as error:
                log.warning("node %s is lost: %s", node, error)
                with self._lock:
                    if self._doors.get(node) is asked[node][0]:
                        self._close(node)
        return answers

    def _nodes(self, _request: Json) -> Json:
        if not self._is_complete:
            raise EngineUnavailable("list the nodes: their doors are being opened")
        doors = self._open_doors()
        answers = self._ask_many({n: (door, {}) for n, door in doors.items()}, "about", LOOK_S)
        for node, answer in answers.items():
            self._seen[node] = answer["value"] | {"capacity": encode(doors[node].capacity)}
        states = [
            facts | {"is_reachable": node in answers} for node, facts in sorted(self._seen.items())
        ]
        return {"value": states}

    def _health(self, request: Json) -> Json:
        """Read the nodes of `nodes`, all when it is empty, at once; one that is silent is left out."""
        wanted = request["nodes"]
        doors: dict[str, tuple[Door, Json]] = {
            n: (door, {}) for n, door in self._open_doors().items() if not wanted or n in wanted
        }
        answers = self._ask_many(doors, "health", LOOK_S)
        return {"value": [found for each in answers.values() for found in each.get("value", ())]}

    def _start(self, request: Json) -> Json:
        wanted = request["step"]
        nodes, rank = wanted["nodes"], wanted["rank"]
        doors = [self._door(node) for node in nodes]
        resources = wanted["resources"]
        if not self.groups.reserve(wanted["attempt"], [dict(d.label) for d in doors], resources):
            raise EngineUnavailable(
                f"start {wanted['step']}: Ray has not reserved its {len(nodes)} places yet",
                hint="other work of the cluster may hold them; starting again is safe",
            )
        if len(nodes) > 1:
            answer = self._ask_one(nodes[0], "port", {"step": wanted["step"]})
            if "error" in answer:
                return answer
            wanted["env"] = {**wanted["env"], "MASTER_PORT": str(answer["value"])}
        addresses = {node: door.address for node, door in zip(nodes, doors, strict=True)}
        answer = self._ask_one(nodes[rank], "start", {"step": wanted, "addresses": addresses})
        self.groups.started(wanted["attempt"])
        return answer

    def _observe(self, request: Json) -> Json:
        """Observe `steps`, pairs of step and node; one call for each node, all at once."""
        doors = self._open_doors()
        wanted: dict[str, list[str]] = {}
        for step, node in request["steps"]:
            wanted.setdefault(node, []).append(step)
        asked = {n: (doors[n], {"steps": steps}) for n, steps in wanted.items() if n in doors}
        answers = self._ask_many(asked, "observe", LOOK_S)
        found = {seen["step"]: seen for a in answers.values() for seen in a.get("value", ())}
        return {"value": [found.get(s) or self._unseen(s, node) for s, node in request["steps"]]}

    def _unseen(self, step: str, node: str) -> Json:
        unseen: Json = encode(
            Observation(
                step=StepId(step),
                phase=TaskPhase.UNREACHABLE,
                at_ns=self._clock.now_ns(),
                evidence=f"node {node} does not answer",
            )
        )
        return unseen

    def _steps(self, _request: Json) -> Json:
        answers = self._ask_many(
            {n: (door, {}) for n, door in self._open_doors().items()}, "steps", LOOK_S
        )
        steps = sorted(step for answer in answers.values() for step in answer.get("value", ()))
        return {"value": steps}

    def _passed_on(self, verb: str) -> Callable[[Json], Json]:
        return lambda request: self._ask_one(request["node"], verb, request)

    def release(self) -> None:
        """Give back what Ray reserved for attempts of which nothing runs any more."""
        listed_at = time.monotonic()
        doors = self._open_doors()
        answers = self._ask_many({n: (door, {}) for n, door in doors.items()}, "steps", LOOK_S)
        running = {
            step.rpartition(".t")[0] for a in answers.values() for step in a.get("value", ())
        }
        listed = {doors[node].ray_id for node, answer in answers.items() if "value" in answer}
        self.groups.release_all_but(running, listed, listed_at)

    def answer(self, verb: str, request: Json) -> Json:
        """Return the body of the answer to one call."""
        found = self.verbs.get(verb)
        if found is None:
            return error_body(NotFound(f"there is no verb {verb!r}"))
        try:
            return found(request)
        except MoulinError as error:
            return error_body(error)
        except (KeyError, TypeError, ValueError) as error:
            return error_body(EngineRefused(f"{verb}: the request cannot be read: {error!r}"))
        except Exception as error:
            # Whoever asked is to be told, and not to take the whole agent for dead.
            log.exception("%s failed", verb)
            return error_body(EngineUnavailable(f"{verb}: the agent failed with {error!r}"))


class Handler(BaseHTTPRequestHandler):
    """One POST a verb, JSON both ways."""

    protocol_version = "HTTP/1.1"
    agent: Agent
    token: str
    package: str

    def do_POST(self) -> None:
        """Answer a verb."""
        size = int(self.headers.get("Content-Length") or 0)
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            self._send(401, {})
            self.close_connection = True
            return
        if size > BODY_BYTES_MAX:
            self._send(413, {})
            self.close_connection = True
            return
        body = self.rfile.read(size)
        try:
            self._send(200, self.agent.answer(self.path.strip("/"), json.loads(body or b"{}")))
        except ValueError:
            self._send(400, {})

    def _send(self, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Moulin-Package", self.package)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of calls: they come every second."""


def read_token(environment: Mapping[str, str]) -> str:
    """Return the token of this cluster as Ray itself finds it; empty when there is none."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    default = Path.home() / ".ray" / "auth_token"
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or default)
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return 1 when the cluster has no token or the port is taken."""
    parser = argparse.ArgumentParser(prog="moulin.engines.ray.agent")
    for name in ("pool", "package", "opens", "spool"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", required=True, type=int)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    token = read_token(os.environ)
    if not token:
        log.warning("this cluster has no token: start it with RAY_AUTH_MODE=token")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(address="auto", log_to_driver=False, namespace=f"moulin-{given.pool}")
    spool = given.spool or f"/var/tmp/moulin-{os.getuid()}/ray"  # noqa: S108 - checked to be ours
    agent = Agent(given.pool, given.opens, spool)
    Handler.agent, Handler.token, Handler.package = agent, token, given.package
    try:
        server = ThreadingHTTPServer((ray.util.get_node_ip_address(), given.port), Handler)
    except OSError as error:
        log.warning("listen on port %d: %s; see `agent_port`", given.port, error.strerror)
        return 1
    threading.Thread(target=server.serve_forever, name="doors", daemon=True).start()
    while True:
        agent.refresh()
        agent.release()
        time.sleep(REFRESH_S)


if __name__ == "__main__":
    sys.exit(main())
