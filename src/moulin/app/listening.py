"""Ports of this machine: which may be listened on, and whether what listens says that it is well.

It decides nothing about who may listen where (`moulin.domain.addresses`) and asks no other machine.
Standard library only: the supervisor uses it.
"""

import errno
import socket
from collections.abc import Sequence
from typing import Final

from moulin.domain.addresses import LOOPBACK
from moulin.domain.errors import InvalidRequest, PortInUse

HOST: Final = LOOPBACK
_ANSWER_S: Final = 2.0
_DRAWS_MAX: Final = 20


def choose_port(
    wanted: int, *, name: str, flag: str, addresses: Sequence[str] = (LOOPBACK,)
) -> int:
    """Return the wanted port, or for 0 one that is free on every address.

    Another program can still take it before it is used; the process that binds it says so then.
    Raises `PortInUse` naming the flag that chooses another, `InvalidRequest` for an address that
    this machine has not.
    """
    for _ in range(_DRAWS_MAX - 1):
        try:
            return _probe(wanted, name, flag, addresses)
        except PortInUse:
            if wanted:
                raise
    return _probe(wanted, name, flag, addresses)


def open_socket(address: str, port: int, *, name: str, flag: str) -> socket.socket:
    """Return a socket that is bound to an address; raises as `choose_port` does."""
    is_v6 = ":" in address
    bound = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_v6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address, port))
    except OSError as cause:
        bound.close()
        place = f"[{address}]:{port}" if is_v6 else f"{address}:{port}"
        raise _refusal(cause, f"start the {name} on {place}", flag) from cause
    return bound


def _probe(wanted: int, name: str, flag: str, addresses: Sequence[str]) -> int:
    port = wanted
    probes: list[socket.socket] = []
    try:
        for address in addresses:
            probes.append(open_socket(address, port, name=name, flag=flag))
            port = int(probes[-1].getsockname()[1])
            probes[-1].listen(1)  # says what binding does not: another may listen here already
    except OSError as cause:
        raise _refusal(cause, f"start the {name} on port {port}", flag) from cause
    finally:
        for probe in probes:
            probe.close()
    return port


def _refusal(cause: OSError, what: str, flag: str) -> PortInUse | InvalidRequest:
    words = f"{what}: {cause.strerror or cause}"
    if cause.errno == errno.EADDRNOTAVAIL:
        hint = "give --listen an address that this machine has, or 0.0.0.0 for all of them"
        return InvalidRequest(words, hint=hint)
    return PortInUse(
        words,
        hint=f"stop the other program, or choose a port with {flag} (0 picks a free one)",
        details={"flag": flag},
    )


def is_free(port: int) -> bool:
    """Say whether a port of this machine can be listened on."""
    try:
        choose_port(port, name="probe", flag="")
    except PortInUse:
        return False
    return True


def is_well(port: int, *, is_tls: bool = False) -> bool:
    """Say whether GET /healthz on a port of this machine answers 200 within two seconds.

    With `is_tls` the certificate is not looked at: it is made for another name than this address.
    """
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection((HOST, port), timeout=_ANSWER_S) as connection:
            connection.settimeout(_ANSWER_S)
            with _secured(connection) if is_tls else connection as line:
                line.sendall(request)
                answer = _first_bytes(line)
    except OSError:
        return False
    return answer[:5] == b"HTTP/" and answer[8:12] == b" 200"


def _first_bytes(line: socket.socket) -> bytes:
    answer = b""
    while len(answer) < 12:
        received = line.recv(256)
        if not received:
            break
        answer += received
    return answer


def _secured(connection: socket.socket) -> socket.socket:
    import ssl  # its memory is paid by factories that serve with TLS alone

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection)
