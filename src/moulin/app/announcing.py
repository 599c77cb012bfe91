"""What `moulin up` says when it is ready: where it answers, and how clients come to trust it.

Standard library only: the supervisor uses it.
"""

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from moulin.domain.addresses import is_every_address, reaches_others

_NEXT: Final = (
    "",
    "In another shell:",
    "  moulin run -- echo hello        run a command",
    "  moulin deploy smollm2-135m-instruct && moulin chat",
    "  moulin status                   what there is and what it costs",
    "",
    "Ctrl-C stops Moulin and leaves workloads running; `moulin down` stops both.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Who can reach the two: the addresses they listen on, their ports, and the CA to trust.

    `ca_file` is empty where clients trust what their system trusts, or nothing is encrypted.
    """

    control_listen: str
    gateway_listen: str
    ports: Mapping[str, int]
    is_tls: bool
    ca_file: str = ""


def announce(facts: Mapping[str, Any], reach: Reach, *, is_json: bool) -> None:
    """Print the facts: one JSON object for a program, a frame of lines for people."""
    if is_json:
        facts = {**facts, "listen": reach.gateway_listen, "ca_file": reach.ca_file or None}
        print(json.dumps(facts), flush=True)  # noqa: T201 - the one thing asked for
        return
    lines = list(_lines(facts, reach))
    width = max(len(line) for line in lines)
    rows = [f"│ {line.ljust(width)} │" for line in lines]
    bar = "─" * (width + 2)
    print("\n".join([f"╭{bar}╮", *rows, f"╰{bar}╯"]), flush=True)  # noqa: T201 - what people read


def _lines(facts: Mapping[str, Any], reach: Reach) -> Iterator[str]:
    yield "Moulin is ready."
    yield ""
    yield f"  control API   {facts['control_url']}"
    yield f"  gateway       {facts['gateway_url']}/v1   (OpenAI and Mistral clients)"
    yield f"  credentials   {facts['credentials_file']}   (for you alone)"
    yield f"  data          {facts['data_dir']}"
    yield from _from_outside(reach)
    if reach.ca_file:
        yield ""
        yield "Clients trust it with this file; copy it to them, it is no secret:"
        yield f"  MOULIN_CA={reach.ca_file}       the command line and the SDK"
        yield f"  SSL_CERT_FILE={reach.ca_file}   OpenAI and other Python clients"
    yield from _NEXT


def _from_outside(reach: Reach) -> Iterator[str]:
    """Tell the addresses for other machines, where there are any."""
    found = [
        (name, listen, path)
        for name, listen, path in (
            ("control", reach.control_listen, ""),
            ("gateway", reach.gateway_listen, "/v1"),
        )
        if reaches_others(listen)
    ]
    if not found:
        return
    yield ""
    yield "From other machines:" if reach.is_tls else "From other machines, IN THE CLEAR:"
    for name, listen, path in found:
        host = socket.gethostname() if is_every_address(listen) else listen
        place = f"[{host}]" if ":" in host else host
        scheme = "https" if reach.is_tls else "http"
        yield f"  {name:<13} {scheme}://{place}:{reach.ports[name]}{path}"
