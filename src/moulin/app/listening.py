"""Loopback ports: whether one is free, and whether what listens there says that it is well.

Never opens a port for others than this machine. Standard library only: the supervisor uses it.
"""

import socket
from typing import Final

from moulin.domain.errors import PortInUse

HOST: Final = "127.0.0.1"
_ANSWER_S: Final = 2.0


def choose_port(wanted: int, *, name: str, flag: str) -> int:
    """Return the wanted port, or a free one for 0.

    Another program can still take it before it is used; the process that binds it says so then.
    Raises `PortInUse` naming the flag that chooses another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
            probe.listen(1)
        except OSError as cause:
            raise PortInUse(
                f"start the {name} on {HOST}:{wanted}: {cause.strerror or cause}",
                hint=f"stop the other program, or choose a port with {flag} (0 picks a free one)",
                details={"port": wanted, "flag": flag},
            ) from cause
        return int(probe.getsockname()[1])


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
