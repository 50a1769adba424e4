"""Alembic's entry. The connection, its transaction and the lock are the caller's (`bongsu.db.migrate`)."""

from __future__ import annotations

from alembic import context

from bongsu.db.migrate import VERSION_TABLE
from bongsu.db.models import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
