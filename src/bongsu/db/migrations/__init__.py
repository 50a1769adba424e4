"""Alembic's script directory, run by `bongsu.db.migrate`."""
