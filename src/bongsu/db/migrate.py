"""Bring a database to the tables of this version. Safe when several replicas start at the same moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, column, inspect, select, table, text

from bongsu.db.session import Database

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["VERSION_TABLE", "MigrationsPending", "migrate", "pending", "require_migrated"]

# Not alembic's default name: the database may be an application's, with migrations of its own.
VERSION_TABLE: Final = "bongsu_version"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_LOCK: Final = 0x626F6E677375  # "bongsu": the advisory lock that replicas starting together queue at


class MigrationsPending(Exception):
    """The database has not the tables of this version; the message says what to run."""


async def migrate(url: str) -> list[str]:
    """Apply what is missing, in one transaction, and return the applied revisions, oldest first.

    A second caller waits for the first (an advisory lock on PostgreSQL, the write lock on SQLite) and
    then finds nothing to do. Raises `DatabaseUnavailable`, and `ValueError` for an unusable URL.
    """
    database = Database(url)
    try:
        await database.start()
        async with database.transaction() as session:
            if not database.is_sqlite:
                await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            connection = await session.connection()
            return await connection.run_sync(_upgrade)
    finally:
        await database.stop()


async def pending(url: str) -> list[str]:
    """The revisions that `migrate` would apply, oldest first. Raises `DatabaseUnavailable`."""
    database = Database(url)
    try:
        await database.start()
        async with database.session() as session:
            connection = await session.connection()
            return await connection.run_sync(_missing)
    finally:
        await database.stop()


async def require_migrated(url: str) -> None:
    """Raise `MigrationsPending` unless the database has the tables of this version."""
    if missing := await pending(url):
        raise MigrationsPending(
            f"the database lacks {len(missing)} migration(s): {', '.join(missing)}; run `bongsu migrate`"
        )


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # Alembic interpolates with %; an installation path may contain one.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _head() -> str:
    """The newest revision. A migration's file is named after its revision, and these count up."""
    return max(file.name for file in _MIGRATIONS.glob("versions/[0-9]*.py")).partition("_")[0]


def _missing(connection: Connection) -> list[str]:
    current: str | None = None
    if inspect(connection).has_table(VERSION_TABLE):
        current = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
    if current == _head():
        return []
    # Imported late: nearly every start finds nothing to do, and without alembic it takes a tenth less.
    from alembic.script import ScriptDirectory

    # A database newer than this code has a revision unknown here; alembic says so by raising.
    script = ScriptDirectory.from_config(_config())
    return [step.revision for step in reversed(list(script.iterate_revisions("head", current or "base")))]


def _upgrade(connection: Connection) -> list[str]:
    missing = _missing(connection)
    if missing:
        from alembic import command

        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return missing
