"""Say what a node sees and has, for `moulin cluster check`; it decides nothing and changes nothing.

Run by path, `python -I -S -E probe.py FOLDER`, as a bare file that imports nothing of Moulin and runs
on Python 3.8. `FOLDER/asked` says what to look at, one `name value` on a line:

    token     what the port greets with
    address   NODE=ADDRESS, one line for each node
    tool      what should run images: `pyxis`, a program, or empty: whatever is there
    url, ca   where replicas would register, and the certificate it is trusted by

It writes `FOLDER/found` in the same form, then lets one caller in at a port of its address in Slurm,
greets with the token and its clock, and ends; it waits for that caller for some seconds.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import urlsplit

EVERY_HOST = "0.0.0.0"  # noqa: S104 - for seconds, and a greeting is all there is
ANSWER_S = 5.0
LISTEN_S = 20.0
WORDS_MAX = 200


def read_asked(path: str) -> list[tuple[str, str]]:
    """Return the names and values of a record, one pair on a line."""
    with open(path, encoding="utf-8") as file:
        pairs = [line.rstrip("\n").partition(" ") for line in file]
    return [(name, value) for name, _, value in pairs]


def format_found(found: dict[str, str]) -> str:
    """Return a record; what has several lines becomes one, and no value is long."""
    return "".join(
        f"{name} {' '.join(value.split())[:WORDS_MAX]}\n" for name, value in found.items()
    )


def knock(url: str, ca: str) -> str:
    """Return why a control plane is not reached, empty when it answers as one that is well."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            import ssl  # not every Python has it, and most pools name no URL

            context = ssl.create_default_context(cafile=ca or None)
            connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=ANSWER_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(
                parts.hostname or "", parts.port, timeout=ANSWER_S
            )
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError, ImportError) as failure:
        return str(failure) or type(failure).__name__
    return "" if status == http.client.OK else f"it answers {status}"


def image_tool(wanted: str) -> str:
    """Return the path of what runs images, `pyxis` where Slurm does, empty where nothing is found."""
    if wanted in ("", "pyxis"):
        try:
            told = subprocess.run(
                ["srun", "--help"], capture_output=True, check=False, timeout=ANSWER_S
            ).stdout
        except (OSError, subprocess.SubprocessError):
            told = b""
        if b"--container-image" in told:
            return "pyxis"
    names = [wanted] if wanted else ["apptainer", "singularity"]
    return next((path for path in map(shutil.which, names) if path), "")


def door(address: str) -> socket.socket | None:
    """Return a socket that listens on this node's address, None where none can."""
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
        hosts = [str(each[4][0]) for each in found]
        first = next((host for host in hosts if ":" not in host), hosts[0])
        # Many machines know their own name as a loopback address, which nobody else would reach.
        if first.startswith("127.") and address not in (first, "localhost"):
            first = EVERY_HOST
        return socket.create_server(
            (first, 0), family=socket.AF_INET6 if ":" in first else socket.AF_INET
        )
    except (OSError, IndexError):
        return None


def greet(server: socket.socket, token: str) -> None:
    """Let one caller in and say the token and the time; give up after a while."""
    server.settimeout(LISTEN_S)
    try:
        with server, server.accept()[0] as caller:
            caller.sendall(f"{token} {time.time_ns()}\n".encode())
    except OSError:
        return


def main(folder: str) -> None:
    """Look, write what was found, and wait for the caller."""
    asked = read_asked(os.path.join(folder, "asked"))
    words = dict(asked)
    node = os.environ.get("SLURMD_NODENAME", "")
    addresses = dict(value.split("=", 1) for name, value in asked if name == "address")
    server = door(addresses.get(node, "")) if addresses.get(node) else None
    url = words.get("url", "")
    found = {
        "node": node,
        "python": sys.version.split()[0],
        "user": str(os.getuid()),
        "tool": image_tool(words.get("tool", "")),
        "address": addresses.get(node, ""),
        "port": str(server.getsockname()[1]) if server is not None else "",
        "trouble": knock(url, words.get("ca", "")) if url else "",
        "clock_ns": str(time.time_ns()),
    }
    path = os.path.join(folder, "found")
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(format_found(found))
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    if server is not None:
        greet(server, words.get("token", ""))


if __name__ == "__main__":
    main(sys.argv[1])
