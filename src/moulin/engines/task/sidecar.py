"""Stand beside a model server on its node: the only door to it, and its word to the control plane.

Run by path, `python -I -S -E sidecar.py PROGRAM ARGUMENT...`, as a bare file that imports nothing of
Moulin, in a step's environment. It starts the program, which listens on the loopback address alone and
says so in a file; then it opens a door on an address that others reach, lets in who shows the replica's
key and nobody else, and says the door's address in the step's own `ready` file. Where it is told a URL it
also holds a registration there, renewed every few seconds, and lets go of it at the end. It ends when
the program does, with its status; that no control plane can be reached is no reason to end.

The first request of a connection shows the key, and the rest of that connection is taken to be the same
caller's. Nothing of what goes through is kept or printed.

`door` in the step's directory says what it needs, one `name value` on a line:

    replica_key       what callers show
    host              address to listen on, empty: found out
    url               where to register, empty: nowhere
    registration_key  what is shown there
    ca                file of the authority that signed its certificate, empty: the system's
    model, attempt    what is registered
    heartbeat_s       how often
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_HOST = "0.0.0.0"  # noqa: S104 - only who shows the key gets through, wherever from
HEAD_BYTES_MAX = 65536
HEAD_S = 20.0
BACKLOG = 512
LOOK_S = 0.05
ANSWER_S = 5.0
FIRST_RETRY_S = 1.0
UNKNOWN = (
    b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n"
)
AWAY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def read_facts(path: str) -> dict[str, str]:
    """Return the names and values of a record, one pair on a line."""
    with open(path, encoding="ascii") as file:
        pairs = (line.rstrip("\n").partition(" ") for line in file)
        return {name: value for name, _, value in pairs}


def shows_key(head: bytes, key: str) -> bool:
    r"""Say whether the head of a request has the key as its bearer token.

    >>> shows_key(b"GET / HTTP/1.1\r\nAuthorization: Bearer abc\r\n\r\n", "abc")
    True
    >>> shows_key(b"GET / HTTP/1.1\r\nX: Bearer abc\r\n\r\n", "abc")
    False
    """
    shown = [
        line.partition(b":")[2].strip()
        for line in head.split(b"\r\n")[1:]
        if line[:14].lower() == b"authorization:"
    ]
    return len(shown) == 1 and hmac.compare_digest(shown[0], b"Bearer " + key.encode())


class Side(asyncio.Protocol):
    """One of two connections that are one: what comes here goes out there, no faster than it can."""

    transport: asyncio.Transport
    other: Side | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Pass on what came."""
        if self.other is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        """Let the other side wait: this one takes nothing now."""
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Let the other side go on."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other side, after what it still has to send."""
        if self.other is not None:
            self.other.transport.close()


class Caller(Side):
    """A connection to the door: nothing of it goes through before it has shown the key."""

    def __init__(self, key: str, server: tuple[str, int]) -> None:
        self.key = key
        self.server = server
        self.head = b""
        self.timer: asyncio.TimerHandle | None = None
        self.reaching: asyncio.Task[tuple[asyncio.Transport, Side]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the head of a request, not for long."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self.timer = loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Pass on what came, or look for the key first."""
        if self.other is not None:
            self.other.transport.write(data)
            return
        self.head += data
        end = self.head.find(b"\r\n\r\n")
        if end < 0 and len(self.head) <= HEAD_BYTES_MAX:
            return
        if end < 0 or not shows_key(self.head[:end], self.key):
            self.refuse(UNKNOWN)
            return
        self.transport.pause_reading()
        loop = asyncio.get_running_loop()
        self.reaching = loop.create_task(loop.create_connection(Side, *self.server))
        self.reaching.add_done_callback(self.reached)

    def reached(self, reaching: asyncio.Task[tuple[asyncio.Transport, Side]]) -> None:
        """Send the server what was held back, now that there is a connection to it."""
        if reaching.cancelled() or reaching.exception() is not None:
            self.refuse(AWAY)
            return
        _, server = reaching.result()
        server.other = self
        if self.transport.is_closing():
            server.transport.close()
            return
        self.other = server
        if self.timer is not None:
            self.timer.cancel()
        server.transport.write(self.head)
        self.head = b""
        self.transport.resume_reading()

    def refuse(self, words: bytes) -> None:
        """Answer and hang up."""
        if not self.transport.is_closing():
            self.transport.write(words)
            self.transport.close()


def open_door(facts: dict[str, str], inner: str) -> str:
    """Serve in a thread of its own from now on; return the address to come to.

    Raises `OSError` when it cannot listen.
    """
    host = facts["host"] or own_host(facts["url"])
    inner_host, _, inner_port = inner.rpartition(":")
    server = (inner_host.strip("[]"), int(inner_port))
    try:
        listener = listening(bound_host(host))
    except OSError:  # others reach this machine by an address that it does not know of
        listener = listening(EVERY_HOST)
    caller = functools.partial(Caller, facts["replica_key"], server)
    threading.Thread(target=serve, args=(listener, caller), daemon=True).start()
    port = listener.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listening(address: str) -> socket.socket:
    """Return a socket that listens on a free port; raises `OSError`."""
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        opened.bind((address, 0))
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def serve(listener: socket.socket, caller: Callable[[], Caller]) -> None:
    """Let callers in for as long as this process lives."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(loop.create_server(caller, sock=listener))
    loop.run_forever()


def bound_host(host: str) -> str:
    """Return the one address to listen on, for a host that others know this machine by.

    Many machines know their own name as a loopback address, which nobody else would reach.
    """
    found = [str(each[4][0]) for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    first = next((address for address in found if ":" not in address), found[0])
    is_mistaken = first.startswith("127.") and host not in (first, "localhost")
    return EVERY_HOST if is_mistaken else first


def own_host(url: str) -> str:
    """Return the address by which this machine goes to where it registers, else its own name's."""
    parts = urlsplit(url)
    for target in (parts.hostname, os.environ.get("SLURM_LAUNCH_NODE_IPADDR")):
        if not target:
            continue
        try:
            found = socket.getaddrinfo(target, parts.port or 443, type=socket.SOCK_DGRAM)[0]
            with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
                probe.connect(found[4])  # a datagram socket sends nothing by this
                return str(probe.getsockname()[0])
        except OSError:
            continue
    for name in (os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()):
        try:
            address = socket.gethostbyname(name) if name else ""
        except OSError:
            continue
        if address:
            return name if address.startswith("127.") else address
    return "127.0.0.1"


class Registration:
    """The word of a replica to the control plane, said again and again."""

    def __init__(self, facts: dict[str, str], address: str) -> None:
        self.facts = facts
        self.url = urlsplit(facts["url"])
        self.address = address
        self.started_ns = time.time_ns()
        self.is_over = threading.Event()
        self.speaking = threading.Lock()
        self.said = ""

    def hold(self) -> None:
        """Register and renew until told to let go; whatever fails is tried again."""
        retry_s = FIRST_RETRY_S
        heartbeat_s = float(self.facts["heartbeat_s"])
        while not self.is_over.is_set():
            with self.speaking:
                if self.is_over.is_set():
                    return  # nothing is said after the last word
                is_held = self.ask("PUT")
            retry_s = FIRST_RETRY_S if is_held else min(2 * retry_s, heartbeat_s)
            self.is_over.wait(heartbeat_s if is_held else retry_s)

    def let_go(self) -> None:
        """Say that this replica answers no more."""
        self.is_over.set()
        with self.speaking:
            self.ask("DELETE")

    def ask(self, method: str) -> bool:
        """Send one request; return whether it was granted, and say when that changes."""
        body = {
            "model": self.facts["model"],
            "address": self.address,
            "started_at_ns": str(self.started_ns),
        }
        path = f"{self.url.path.rstrip('/')}/api/v1/registrations/{self.facts['attempt']}"
        headers = {
            "Authorization": f"Bearer {self.facts['registration_key']}",
            "Content-Type": "application/json",
        }
        try:
            connection = self.connect()
            try:
                sent = json.dumps(body) if method == "PUT" else None
                connection.request(method, path, sent, headers)
                status = connection.getresponse().status
            finally:
                connection.close()
        except (OSError, ValueError, http.client.HTTPException) as cause:
            self.say(f"cannot be reached: {cause!r}")
            return False
        self.say("has the registration" if status == 200 else f"answers {status}")
        return status == 200

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the control plane, not opened yet."""
        host, port = self.url.hostname or "", self.url.port
        if self.url.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=ANSWER_S)
        import ssl  # only where it is used: it is as large as all else here

        context = ssl.create_default_context(cafile=self.facts["ca"] or None)
        return http.client.HTTPSConnection(host, port, timeout=ANSWER_S, context=context)

    def say(self, words: str) -> None:
        """Write to the task's log what is new about the registration."""
        if words != self.said and not self.is_over.is_set():
            self.said = words
            tell(f"control plane {self.url.netloc} {words}")


def tell(words: str) -> None:
    """Write a line to the task's log."""
    os.write(2, f"moulin: {words}\n".encode())


def announce(path: str, address: str) -> None:
    """Say the address in a file, whole or not at all."""
    draft = f"{path}.{os.getpid()}"
    with open(draft, "w", encoding="ascii") as file:
        file.write(f"{address}\n")
    os.replace(draft, path)


def wait_for_server(inner: str) -> str:
    """Return the server's address once it says one."""
    while True:
        try:
            with open(inner, encoding="ascii") as file:
                said = file.read()
        except OSError:
            said = ""
        if said.endswith("\n"):
            return said.strip()
        time.sleep(LOOK_S)


def attend(facts: dict[str, str], inner: str, ready: str, held: list[Registration]) -> None:
    """Open the door when the server answers, say where it is, and hold the registration."""
    try:
        address = open_door(facts, wait_for_server(inner))
        if facts["url"]:
            held.append(Registration(facts, address))
        announce(ready, address)
    except OSError as cause:
        tell(f"nobody can come to this replica: {cause}")
        return
    for registration in held:
        registration.hold()


def main() -> int:
    """Start the program, attend to it, and end as it does."""
    # Requests pass through this memory; 1 byte, unlike 0, also stops systems that pipe dumps elsewhere.
    limit = 0 if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    directory, ready = os.environ["MOULIN_STEP_DIR"], os.environ["MOULIN_READY_FILE"]
    facts = read_facts(f"{directory}/door")
    inner = f"{directory}/inner"
    held: list[Registration] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Whoever asks a task to end asks all of its processes: the program has got it, too.
        signal.signal(number, lambda *_: None)
    try:
        program = subprocess.Popen(sys.argv[1:], env={**os.environ, "MOULIN_READY_FILE": inner})
    except OSError as cause:
        tell(f"cannot run {sys.argv[1]}: {cause.strerror}")
        return 127 if isinstance(cause, FileNotFoundError) else 126
    threading.Thread(target=attend, args=(facts, inner, ready, held), daemon=True).start()
    status = program.wait()
    for registration in held:
        registration.let_go()
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    # What the threads still have to do is for nobody.
    os._exit(main())
