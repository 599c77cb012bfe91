"""A TCP proxy in front of PostgreSQL that cuts the line at a chosen moment of a commit."""

import selectors
import socket
import threading
from contextlib import suppress
from enum import Enum


class Cut(Enum):
    NEVER = "never"
    BEFORE_COMMIT_ARRIVES = "before"  # the server never hears of the COMMIT
    BEFORE_ANSWER_ARRIVES = "after"  # the server commits, the client never hears of it


class CuttingProxy:
    """Forwards to `port`; `cut` is done once, then it returns to NEVER.

    With `goes_down_with_cut`, that cut ends every line and refuses new ones.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut = Cut.NEVER
        self.goes_down_with_cut = False
        self._lock = threading.Lock()
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        """End every line and refuse new ones."""
        with self._lock:
            for line in (self._listener, *self._lines):
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def join(self) -> None:
        """Close, and wait until the last line has ended."""
        self.close()
        self._accepting.join(timeout=30)
        for thread in self._threads:
            thread.join(timeout=30)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._lines.append(client)
            thread = threading.Thread(target=self._forward, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _forward(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._server_port))
        with client, server, selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            is_answer_cut = False
            while True:
                for key, _ in selector.select():
                    side, other = (client, server) if key.fileobj is client else (server, client)
                    data = side.recv(1 << 16)
                    if not data or (side is server and is_answer_cut):
                        return
                    if side is client and b"COMMIT" in data:
                        cut = self._take_cut()
                        if cut is Cut.BEFORE_COMMIT_ARRIVES:
                            self._go_down()
                            return
                        is_answer_cut = cut is Cut.BEFORE_ANSWER_ARRIVES
                    other.sendall(data)
                    if is_answer_cut and self.goes_down_with_cut:
                        server.recv(1 << 16)
                        self._go_down()
                        return

    def _take_cut(self) -> Cut:
        cut, self.cut = self.cut, Cut.NEVER
        return cut

    def _go_down(self) -> None:
        if self.goes_down_with_cut:
            self.close()
