"""Inner nodes of the evidence log's trees.

The table starts empty: who leads fills it before anything else is written, because a leader of the
release before may go on after this migration, and it writes leaves alone (docs/decisions).
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "tree_nodes",
        sa.Column("origin", sa.Text, primary_key=True),
        sa.Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("node_index", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("node_hash", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
