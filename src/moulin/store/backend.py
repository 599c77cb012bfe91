"""What differs between the databases: connecting, leading, and what their errors mean.

Each lists its own reasons for an error; everything else about the store is the same code.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Engine

from moulin.domain.errors import MoulinError
from moulin.store.statements import Statements

# A DBAPI connection in autocommit mode: transactions begin and end only by our own statements.
DriverConnection = Any
DriverCursor = Any


class Backend(Protocol):
    """One database. `engine` makes connections in autocommit mode, for reads by any thread."""

    engine: Engine
    statements: Statements
    driver_error: type[Exception]
    begin: str
    name: str

    def open_writer(self) -> DriverConnection:
        """Return a new connection for the writer. Raises the driver's own errors."""
        ...

    def take_lead(self, writer: DriverConnection) -> bool:
        """Try to become the only writer; True as well when this backend is it already."""
        ...

    def release_lead(self) -> None:
        """Let another process lead; the writer's connection is closed already."""
        ...

    def roll_back(self, writer: DriverConnection) -> None:
        """End the transaction, if there is one."""
        ...

    def is_lost(self, writer: DriverConnection) -> bool:
        """Return whether the connection is of no more use."""
        ...

    def migrating(self) -> AbstractContextManager[None]:
        """Hold what keeps two processes from changing the schema at once."""
        ...

    def translate(self, error: BaseException, doing: str) -> MoulinError:
        """Return Moulin's error for a driver's; `doing` says what was attempted."""
        ...
