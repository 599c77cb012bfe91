"""This terminal as the far end's: every key goes there, and its size follows this one's."""

import contextlib
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moulin.sdk._inside import Session


@contextlib.contextmanager
def raw_terminal(session: "Session", *, is_wanted: bool) -> Iterator[None]:
    """Hand the terminal over to a session, and take it back as it was.

    What is typed is not looked at here, Ctrl-C included. Where that is not wanted, or standard input
    is no terminal, it stays as it is.
    """

    def follow(*_: object) -> None:
        columns, rows = shutil.get_terminal_size()
        session.resize(rows, columns)

    if not (is_wanted and sys.stdin.isatty()):
        yield
        return
    before = termios.tcgetattr(0)
    told = signal.signal(signal.SIGWINCH, follow)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, told)
