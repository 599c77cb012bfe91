"""Opening a store: which URLs are meant, what is made, what the schema is, what it costs."""

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event

from moulin.domain.errors import InvalidRequest, StoreUnavailable
from moulin.store import opening, schema
from moulin.store.migrate import migration_config
from moulin.store.opening import open_store

ROOT = Path(__file__).parents[3]
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    return str(request.getfixturevalue("postgres_server").new_schema_url())


def run_python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )


@pytest.mark.parametrize("form", ["sqlite:///{}", "{}"])
def test_a_path_or_url_names_the_same_file(tmp_path, form):
    path = tmp_path / "it's 100% a log.db"
    with open_store(form.format(path)) as store:
        assert store.open_epoch() == 1
    with open_store(path) as store:
        assert store.open_epoch() == 2


@pytest.mark.parametrize("place", ["mysql://h/d", "sqlite://", "ftp://x", "://", "sqlite+x:///a"])
def test_another_kind_of_url_is_refused(place):
    with pytest.raises(InvalidRequest) as caught:
        open_store(place)
    assert "sqlite:///" in caught.value.hint


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(StoreUnavailable, match="No such file") as caught:
        open_store(tmp_path / "missing" / "log.db")
    assert caught.value.hint


def test_the_files_are_their_owners_alone(tmp_path):
    with open_store(tmp_path / "log.db") as store:
        store.open_epoch()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert {"log.db", "log.db-wal", "log.db-shm", "log.db.lead"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_sqlite_writes_are_durable_and_strict(tmp_path):
    with open_store(tmp_path / "log.db") as store:
        store.open_epoch()
        settings = {
            name: store._writer.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
    }


@pytest.mark.postgres
def test_postgresql_writes_are_durable_whatever_the_role_prefers(postgres_server):
    url = postgres_server.new_schema_url() + "%20-csynchronous_commit%3Doff"
    with open_store(url) as store:
        store.open_epoch()
        assert store._writer.execute("SHOW synchronous_commit").fetchone()[0] == "on"
        with store._backend.engine.connect() as reader:
            assert reader.exec_driver_sql("SHOW synchronous_commit").scalar() == "off"


def test_the_migrations_make_the_schema_the_code_knows(url):
    with open_store(url) as store, store._backend.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_the_migrations_make_the_same_tables_in_sqlite_to_the_letter(tmp_path):
    open_store(tmp_path / "migrated.db").close()
    engine = create_engine(f"sqlite:///{tmp_path}/created.db")
    schema.metadata.create_all(engine)
    engine.dispose()
    migrated, created = (_definitions(tmp_path / name) for name in ("migrated.db", "created.db"))
    assert {name: text for name, text in migrated.items() if "alembic" not in name} == created


def _definitions(path: Path) -> dict[str, str]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    found = {name: " ".join(text.split()) for name, text in rows}
    connection.close()
    return found


def test_the_code_knows_the_newest_migration():
    assert ScriptDirectory.from_config(migration_config()).get_current_head() == (
        schema.HEAD_REVISION
    )


def test_every_tenant_table_has_organisation_and_project():
    tenants = {
        "events", "workloads", "keys", "receipts", "entries", "postings", "accounts", "idempotency",
    }  # fmt: skip
    for name in sorted(tenants):
        assert {"organisation", "project"} <= set(schema.metadata.tables[name].columns.keys())


def test_a_known_schema_is_opened_without_alembic(tmp_path):
    open_store(tmp_path / "log.db").close()
    program = (
        "import sys; from moulin.store.opening import open_store\n"
        "open_store(sys.argv[1]).open_epoch()\n"
        "print([name for name in ('alembic', 'psycopg', 'mako') if name in sys.modules])"
    )
    with run_python(program, str(tmp_path / "log.db")) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "[]\n"


def test_two_processes_may_make_the_schema_at_once(url):
    program = (
        "import sys; from moulin.store.opening import open_store\n"
        "print(open_store(sys.argv[1]).last_sequence())"
    )
    processes = [run_python(program, url) for _ in range(3)]
    assert [process.communicate()[0] for process in processes] == ["0\n"] * 3
    assert [process.returncode for process in processes] == [0] * 3


def test_a_new_file_that_another_writes_is_waited_for(tmp_path):
    path = tmp_path / "log.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    later = threading.Timer(0.5, other.execute, ("COMMIT",))
    later.start()
    with open_store(f"sqlite:///{path}") as store:
        assert store.last_sequence() == 0
    later.join()
    other.close()


@pytest.mark.parametrize("place", DATABASES)
def test_a_schema_change_that_never_ends_is_told(place, request, tmp_path, monkeypatch):
    monkeypatch.setattr("moulin.store.sqlite.MIGRATION_WAIT_S", 0)
    monkeypatch.setattr("moulin.store.postgres.MIGRATION_WAIT_S", 1)
    url = str(tmp_path / "log.db")
    if place == "postgresql":
        url = request.getfixturevalue("postgres_server").new_schema_url()
    other = opening._backend(url)
    with other.migrating(), pytest.raises(StoreUnavailable) as caught:
        open_store(url)
    other.engine.dispose()
    assert caught.value.hint


def test_a_migration_that_fails_leaves_nothing(url):
    def fail(_connection, _cursor, statement, *_rest):
        if "CREATE TABLE leaves" in statement:
            raise RuntimeError("planted")

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(RuntimeError, match="planted"):
            open_store(url)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    with open_store(url) as store:
        assert store.open_epoch() == 1
