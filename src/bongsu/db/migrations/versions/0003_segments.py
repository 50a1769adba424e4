"""Uploads that can be resumed: segments by epoch, declared lengths, expiry, quotas, idempotency keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from bongsu.db.columns import clock

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_DAY = 24 * 3600.0


def upgrade() -> None:
    # Column by column: alembic's batch mode would drop and refill SQLite's table, and take the jobs with it.
    for column in (
        sa.Column("media_type", sa.String(127)),
        sa.Column("holder", sa.String(255)),
        sa.Column("length", sa.BigInteger()),
        sa.Column("reserved", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("resumable", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("upload_metadata", sa.Text()),
        sa.Column("partial", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("parts", sa.Text()),
        sa.Column("part_of", sa.String(32)),
        sa.Column("part_number", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("idempotency", sa.String(64)),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
    ):
        op.add_column("upload", column)
    op.drop_index("ix_upload_state_touched_at", "upload")
    op.create_index("ix_upload_expires_at", "upload", ["expires_at"])
    op.create_index("ix_upload_part_of", "upload", ["part_of"])
    op.create_index("ix_upload_idempotency", "upload", ["idempotency"], unique=True)
    op.create_table(
        "upload_segment",
        sa.Column("upload_id", sa.String(32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("upload_id", "epoch", name="pk_upload_segment"),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["upload.id"], name="fk_upload_segment_upload_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "upload_usage",
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", name="pk_upload_usage"),
    )
    _carry_over()


def _carry_over() -> None:
    """What is there already: one segment per upload, of the epoch that it has."""
    upload = sa.table(
        "upload", *map(sa.column, ("state", "size", "length", "reserved", "expires_at", "storage_key"))
    )
    op.execute(sa.update(upload).values(reserved=upload.c.size))
    op.execute(sa.update(upload).where(upload.c.state != "receiving").values(length=upload.c.size))
    # Whoever receives these is of the version before and says nothing of expiry: a day will do.
    unfinished = upload.c.state.in_(("receiving", "expired"))
    op.execute(sa.update(upload).where(unfinished).values(expires_at=clock(_DAY)))
    op.execute(
        "INSERT INTO upload_segment (upload_id, epoch, size) SELECT id, epoch, size FROM upload "
        "WHERE state IN ('received', 'processing', 'failed')"
    )
    op.execute(
        "INSERT INTO upload_usage (scope, size, files) SELECT 'total', coalesce(sum(size), 0), count(*) "
        "FROM upload HAVING count(*) > 0"
    )
    op.execute(
        "INSERT INTO upload_usage (scope, size, files) "
        "SELECT CASE WHEN owner IS NULL THEN 'key' ELSE 'user:' || owner END, sum(size), count(*) "
        "FROM upload GROUP BY 1"
    )


def downgrade() -> None:
    op.drop_table("upload_usage")
    op.drop_table("upload_segment")
    for index in ("ix_upload_idempotency", "ix_upload_part_of", "ix_upload_expires_at"):
        op.drop_index(index, "upload")
    for name in (
        *("expires_at", "idempotency", "part_number", "part_of", "parts", "partial"),
        *("upload_metadata", "resumable", "reserved", "length", "holder", "media_type"),
    ):
        op.drop_column("upload", name)
    op.create_index("ix_upload_state_touched_at", "upload", ["state", "touched_at"])
