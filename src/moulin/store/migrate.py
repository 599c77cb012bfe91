"""Brings a schema to the present revision with the packaged migrations.

It runs while another process may lead with the release before: migrations only add what that one
does not miss (docs/decisions, expand and contract). It never goes back.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from moulin.domain.errors import StoreUnavailable
from moulin.store.backend import Backend

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def upgrade(backend: Backend, revision: str) -> None:
    """Run every migration after `revision` (empty: all) in one transaction.

    Raises `StoreUnavailable` when the revision is not one of this release's.
    """
    config = migration_config()
    scripts = ScriptDirectory.from_config(config)
    if revision and revision not in {each.revision for each in scripts.walk_revisions()}:
        head = scripts.get_current_head() or ""
        raise StoreUnavailable(
            f"open the store: its schema {revision} is of another Moulin; this one knows {head}",
            hint="run the release that wrote it, or a newer one",
            details={"found": revision, "known": head},
        )
    with backend.engine.connect() as connection:
        config.attributes["connection"] = connection
        # Connections commit each statement by themselves: the transaction is ours to end.
        connection.exec_driver_sql(backend.begin)
        try:
            command.upgrade(config, "head")
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise


def migration_config() -> Config:
    """Return Alembic's settings for the packaged migrations, without a file."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
