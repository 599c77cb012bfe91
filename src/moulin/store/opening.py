"""Opens a store by URL and brings its schema up to date; it decides which database is meant.

Alembic is loaded only when the schema is not the present one: it costs 0.4 s and 11 MB.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from moulin.domain.errors import InvalidRequest, StoreUnavailable
from moulin.store.backend import Backend
from moulin.store.schema import HEAD_REVISION
from moulin.store.sql import SqlStore
from moulin.store.sqlite import SqliteBackend

_POSTGRES: Final = ("postgresql", "postgres", "postgresql+psycopg")


def open_store(place: str | Path) -> SqlStore:
    """Return the store at a path, a `sqlite:///path` or a `postgresql://` URL, made if new.

    Raises `InvalidRequest` for another kind of URL, `StoreUnavailable` when the database cannot
    be reached, is of a newer Moulin, or its driver is not installed, `StoreCorrupt` when the file
    is no database, `DiskFull` when there is no room for it.
    """
    backend = _backend(place)
    try:
        _bring_up_to_date(backend)
    except BaseException as error:
        backend.engine.dispose()
        if isinstance(error, (SQLAlchemyError, backend.driver_error)):
            cause = getattr(error, "orig", None) or error
            raise backend.translate(cause, "open the store") from error
        raise
    return SqlStore(backend)


def _backend(place: str | Path) -> Backend:
    if isinstance(place, Path) or "://" not in place:
        return SqliteBackend(Path(place))
    url = _parsed(place)
    if url.drivername == "sqlite" and url.database:
        return SqliteBackend(Path(url.database))
    if url.drivername in _POSTGRES:
        return _postgres(url)
    raise InvalidRequest(
        f"open the store {url.render_as_string()}: {url.drivername} is not a known database",
        hint="use sqlite:///PATH or postgresql://USER@HOST/DATABASE",
    )


def _parsed(place: str) -> URL:
    try:
        return make_url(place)
    except ArgumentError as error:
        raise InvalidRequest(
            "open the store: its URL cannot be read",
            hint="use sqlite:///PATH or postgresql://USER@HOST/DATABASE",
        ) from error


def _postgres(url: URL) -> Backend:
    try:
        from moulin.store.postgres import PostgresBackend  # noqa: PLC0415 - only its users pay
    except ImportError as error:
        raise StoreUnavailable(
            "open the store: the PostgreSQL driver is not installed",
            hint="pip install 'moulin[postgres]'",
        ) from error
    return PostgresBackend(url)


def _bring_up_to_date(backend: Backend) -> None:
    if _revision(backend) == HEAD_REVISION:
        return
    from moulin.store.migrate import upgrade  # noqa: PLC0415 - rarely needed, see above

    with backend.migrating():
        upgrade(backend, _revision(backend))


def _revision(backend: Backend) -> str:
    """Return the schema's revision, empty for a new database."""
    with backend.engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return ""
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return str(found or "")
