"""A task of `crash`: says in a file of its own, outside Moulin, what it did and when.

Run by path with few imports: `python -I -S _crash_program.py FILE SECONDS MODE`. Every line is one
write with O_APPEND: what happened, the step, its generation, the process and the machine's
monotonic time in ns. Modes: `plain`; `family` leaves a child in a session of its own; `flaky` fails
in its first generation; `fails` always does. Tasks of a gang first shake hands over MASTER_ADDR.
"""

import os
import socket
import sys
import time

BEAT_S = 0.1
HANDSHAKE_S = 120.0
FAILED = 3


def say(file: str, what: str) -> None:
    """Append one line, whole or not at all."""
    words = (
        what,
        os.environ["MOULIN_STEP_ID"],
        os.environ["MOULIN_GENERATION"],
        str(os.getpid()),
        str(time.monotonic_ns()),
    )
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, " ".join(words).encode() + b"\n")
    os.close(descriptor)


def beat(file: str, seconds: float) -> None:
    """Say for some time that this process lives."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        say(file, "beat")
        time.sleep(BEAT_S)


def connect(address: "tuple[str, int]") -> socket.socket:
    """Return a connection to who listens there, soon or later."""
    until = time.monotonic() + HANDSHAKE_S
    while True:
        try:
            return socket.create_connection(address, timeout=HANDSHAKE_S)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def shake_hands() -> None:
    """Meet the first task of a gang, which meets all others; raises OSError when one does not come."""
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if os.environ["RANK"] == "0":
        with socket.create_server(address) as server:
            server.settimeout(HANDSHAKE_S)
            for _ in range(int(os.environ["WORLD_SIZE"]) - 1):
                connection, _ = server.accept()
                connection.settimeout(HANDSHAKE_S)
                connection.sendall(os.environ["MOULIN_ATTEMPT_ID"].encode())
                connection.recv(1)
        return
    with connect(address) as connection:
        met = connection.recv(4096).decode()
        if met != os.environ["MOULIN_ATTEMPT_ID"]:
            raise OSError("met a task of another attempt: " + met)
        connection.sendall(b"1")


def main() -> int:
    """Start, live, end."""
    file, seconds, mode = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    say(file, "start")
    if int(os.environ["WORLD_SIZE"]) > 1:
        shake_hands()
    if mode == "family" and os.fork() == 0:
        os.setsid()
        beat(file, seconds)
        os._exit(0)
    beat(file, seconds)
    if mode == "fails" or (mode == "flaky" and os.environ["MOULIN_GENERATION"] == "1"):
        say(file, "failed")
        return FAILED
    say(file, "end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
