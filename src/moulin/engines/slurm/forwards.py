"""Keeps one port of this machine for each replica that is reached over SSH; starts and stops none.

A port is handed out only after a request through it was refused for want of the replica's key, over the
connection that is open now. When that is lost the same ports are led through the next one. Ports are on
record, so that the next control plane finds them as they are. Decision 0044.
"""

import contextlib
import logging
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moulin.domain.errors import EngineError, EngineUnavailable
from moulin.domain.ids import AttemptId
from moulin.engines.slurm.tunnel import LOOPBACK, Tunnel, drop_port
from moulin.engines.task.spool import format_record, is_there, read_record, write_whole

log = logging.getLogger(__name__)

TEND_S: Final = 1.0
# After this a port that led nowhere is tried again.
RETRY_S: Final = 5.0
PROBE_S: Final = 5.0
PORTS_TRIED_MAX: Final = 8
PORT_MAX: Final = 65535
AT_ONCE: Final = 8
_OPEN: Final = "connection"
_NOT_YET: Final = "it is not reached over SSH just now"
_LINE: Final = re.compile(r"[0-9]{1,5} ([A-Za-z0-9_.-]+) (\S+:[0-9]{1,5}) (-|[0-9]+)")
_PROBE: Final = b"GET / HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n"


@dataclass(slots=True, kw_only=True)
class Forward:
    """One replica's port, 0 before it has one; `connection` is the last that it was proved over."""

    attempt: AttemptId
    target: str
    port: int = 0
    connection: str = ""
    reserved: socket.socket | None = None
    retry_s: float = float("-inf")
    why_not: str = ""


class Forwards:
    """The ports of one pool's replicas; safe to use from several threads."""

    def __init__(self, tunnel: Tunnel, record: Path, is_live: Callable[[AttemptId], bool]) -> None:
        """Go on with what is on record; ports of replicas that are not live are given up."""
        self._tunnel = tunnel
        self._record = str(record)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._tended_s = float("-inf")
        self._is_due = True
        self._said = ""
        self._connect_s = float("-inf")
        self._connection = ""
        self._known: dict[tuple[AttemptId, str], Forward] = {}
        self._unwanted: list[Forward] = []
        weakref.finalize(self, _let_go_of_all, self._known)
        self._adopt(is_live)

    def address(self, attempt: AttemptId, target: str) -> str:
        """Return where a replica's door answers on this machine, empty until it does."""
        with self._lock:
            found = self._known.get((attempt, target))
            if found is None:
                self._known[attempt, target] = Forward(attempt=attempt, target=target)
                self._is_due = True
            elif found.connection and found.connection == self._connection:
                return f"{LOOPBACK}:{found.port}"
        return ""

    def word(self, attempt: AttemptId) -> str:
        """Return what is known of a replica's ports, in a form that changes when that does."""
        with self._lock:
            mine = [each for (owner, _), each in self._known.items() if owner == attempt]
            led = [each for each in mine if each.connection and each.connection == self._connection]
            return " ".join(f"{each.port}:{each.connection}" for each in led)

    def why_not(self, attempt: AttemptId) -> str:
        """Return why nobody can come to a replica, empty while that is not known."""
        with self._lock:
            mine = [each for (owner, _), each in self._known.items() if owner == attempt]
            missed = [each for each in mine if each.connection != self._connection]
            return next((each.why_not or _NOT_YET for each in missed), "")

    def release(self, attempt: AttemptId) -> None:
        """Give up the ports of a replica that has ended."""
        with self._lock:
            for key in [key for key in self._known if key[0] == attempt]:
                forward = self._known.pop(key)
                _let_go(forward)
                self._unwanted.append(forward)
                self._is_due = True

    def tend(self) -> None:
        """Lead in the background what is not led, and see whether the connection is still the same."""
        now_s = time.monotonic()
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            is_time = bool(self._known) and now_s >= self._tended_s + TEND_S
            if not (self._is_due or is_time):
                return
            self._is_due, self._tended_s = False, now_s
            self._thread = threading.Thread(target=self._tend, name="forwards", daemon=True)
            self._thread.start()

    def _tend(self) -> None:
        try:
            self._connect()
            self._doubt()
            with self._lock:
                unwanted = list(self._unwanted)
                due = [each for each in self._known.values() if self._is_to_do(each)]
            for each in unwanted:
                self._give_up(each)
            self._carry_all(due)
            if unwanted or due:
                self._save()
            if self._connection:
                self._say("")
        except (EngineError, OSError) as failure:
            self._say(_words(failure))

    def _connect(self) -> None:
        """Note which connection is open, having opened one if anything is to go over it."""
        found = self._tunnel.connection()
        with self._lock:
            self._connection = found
            is_wanted = bool(self._known)
        now_s = time.monotonic()
        if is_wanted and not found and now_s >= self._connect_s:
            self._connect_s = now_s + RETRY_S
            self._tunnel.connect()
            found = self._tunnel.connection()
            with self._lock:
                self._connection = found
            self._connect_s = float("-inf")

    def _doubt(self) -> None:
        """Have ports led again that were given up meanwhile: the pool was reached otherwise for a while."""
        if not is_there(self._record):
            with self._lock:
                for each in self._known.values():
                    each.connection = ""

    def _is_to_do(self, forward: Forward) -> bool:
        is_done = forward.connection == self._connection
        return bool(self._connection) and not is_done and time.monotonic() >= forward.retry_s

    def _carry_all(self, due: Sequence[Forward]) -> None:
        """Lead ports, several at once: one that hangs keeps no other waiting."""
        if not due:
            return
        for each in due:
            self._reserve(each, each.port)
        self._save()
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            list(pool.map(self._carry, due))

    def _carry(self, forward: Forward) -> None:
        """Lead one port and prove it; what fails is tried again later."""
        connection = self._connection
        try:
            self._lead(forward)
            self._prove(forward)
        except EngineError as failure:
            why_not = _words(failure)
            if why_not != forward.why_not:
                log.warning("replica %s: [%s] %s", forward.attempt, failure.code, why_not)
            forward.why_not, forward.retry_s = why_not, time.monotonic() + RETRY_S
            return
        with self._lock:
            forward.connection, forward.why_not = connection, ""

    def _lead(self, forward: Forward) -> None:
        for _ in range(PORTS_TRIED_MAX):
            if self._tunnel.carry(forward.port, forward.target):
                return
            self._reserve(forward, 0)
        raise EngineUnavailable(
            f"carry {forward.target} over SSH: none of {PORTS_TRIED_MAX} ports of this machine is free",
            hint="see what listens on 127.0.0.1; it is tried again",
        )

    def _prove(self, forward: Forward) -> None:
        """Return when the door refuses who has no key; anything else there is not the door."""
        said = _first_words(forward.port)
        if said[:5] == b"HTTP/" and said[8:13] == b" 401 ":
            return
        self._tunnel.drop(forward.port, forward.target)
        if said:
            raise EngineUnavailable(
                f"reach {forward.target} over SSH: what answers there asks for no key",
                hint="another program has the replica's port; nothing is sent to it",
            )
        raise self._refusal(forward.target)

    def _refusal(self, target: str) -> EngineUnavailable:
        """Find out on the other side why nothing comes through."""
        host = self._tunnel.host
        is_reached = self._tunnel.is_reached_there(target)
        if is_reached is None:
            hint = f"{host} must reach its nodes' ports, and its sshd allow `AllowTcpForwarding`"
            return EngineUnavailable(
                f"reach {target} over SSH: {host} lets nothing through", hint=hint
            )
        if is_reached:
            return EngineUnavailable(
                f"reach {target} over SSH: the sshd of {host} forwards no ports there",
                hint="it needs `AllowTcpForwarding` (`yes` or `local`) and `PermitOpen` for this user",
            )
        return EngineUnavailable(
            f"reach {target} over SSH: {host} itself cannot connect to it",
            hint="a firewall between the login node and the nodes, or the replica is ending",
        )

    def _reserve(self, forward: Forward, port: int) -> None:
        """Have a port that nobody gets by chance, between two connections too; 0 is any.

        Bound and not listened on: the `ssh` process, which listens, may bind it beside this one.
        """
        if forward.reserved is not None and port:
            return
        _let_go(forward)
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((LOOPBACK, port))
        except OSError:  # led there already, or somebody else's: leading it will tell
            held.close()
            return
        forward.reserved, forward.port = held, held.getsockname()[1]

    def _give_up(self, forward: Forward) -> None:
        if forward.port and self._connection:
            self._tunnel.drop(forward.port, forward.target)
        _let_go(forward)
        with self._lock:
            self._unwanted.remove(forward)

    def _say(self, words: str) -> None:
        """Log what is new about the connection as a whole."""
        if words and words != self._said:
            log.warning("no replica of %s can be reached: %s", self._tunnel.host, words)
        self._said = words

    # The record: `connection` and one line for each port.

    def _save(self) -> None:
        with self._lock:
            lines = [
                (f"{each.port}", f"{each.attempt} {each.target} {each.connection or '-'}")
                for each in (*self._known.values(), *self._unwanted)
                if each.port
            ]
            facts = {_OPEN: self._connection, **dict(lines)}
        write_whole(self._record, format_record(facts), is_durable=False)

    def _adopt(self, is_live: Callable[[AttemptId], bool]) -> None:
        """Take over what is on record; a connection that is still the same needs no new proof."""
        try:
            facts = dict(read_record(self._record) or {})
            former = facts.pop(_OPEN, "")
            is_same = bool(former) and self._tunnel.connection() == former
        except (EngineError, OSError):
            return
        self._connection = former if is_same else ""
        for found, connection in _recorded(facts):
            if is_same and connection == former:
                found.connection = former
            if is_live(found.attempt):
                self._known[found.attempt, found.target] = found
            elif is_same:
                self._unwanted.append(found)


def drop_recorded(record: Path, control_path: str) -> None:
    """Give up the ports on record, led over another connection than their pool is reached by now.

    What goes through them goes on. Doing so again is no error, nor is a connection that is closed.
    """
    with contextlib.suppress(EngineError, OSError):
        for each, _ in _recorded(dict(read_record(str(record)) or {})):
            if control_path:
                drop_port(control_path, each.port, each.target)
        record.unlink(missing_ok=True)


def _recorded(facts: Mapping[str, str]) -> Iterator[tuple[Forward, str]]:
    """Yield the ports on record, each with the connection that it was proved over."""
    for port, words in facts.items():
        line = _LINE.fullmatch(f"{port} {words}")
        if line is not None and int(port) <= PORT_MAX:  # else it is what a power cut left
            attempt, target, connection = line.groups()
            yield Forward(attempt=AttemptId(attempt), target=target, port=int(port)), connection


def _first_words(port: int) -> bytes:
    """Return how an answer to a request without a key begins, empty when none comes."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=PROBE_S) as probe:
            probe.sendall(_PROBE)
            return probe.recv(64)
    except OSError:
        return b""


def _let_go(forward: Forward) -> None:
    if forward.reserved is not None:
        forward.reserved.close()
        forward.reserved = None


def _let_go_of_all(known: Mapping[tuple[AttemptId, str], Forward]) -> None:
    for each in known.values():
        _let_go(each)


def _words(failure: Exception) -> str:
    hint = getattr(failure, "hint", "")
    return f"{failure} ({hint})" if hint else str(failure)
