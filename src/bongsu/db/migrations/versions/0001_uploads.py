"""Uploads, their jobs and their log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _instant(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "upload",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("content_type", sa.String(127), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64)),
        sa.Column("storage_key", sa.String(255)),
        sa.Column("owner", sa.Text()),
        sa.Column("received_by", sa.String(255), nullable=False),
        sa.Column("finished_by", sa.String(255)),
        sa.Column("error", sa.Text()),
        _instant("created_at"),
        _instant("touched_at"),
        _instant("received_at", nullable=True),
        _instant("stored_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_upload"),
    )
    op.create_index("ix_upload_created_at_id", "upload", ["created_at", "id"])
    op.create_index("ix_upload_state_touched_at", "upload", ["state", "touched_at"])
    op.create_table(
        "job",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("upload_id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("expiries", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(255)),
        _instant("lease_until", nullable=True),
        _instant("run_after"),
        sa.Column("last_error", sa.Text()),
        _instant("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.ForeignKeyConstraint(["upload_id"], ["upload.id"], name="fk_job_upload_id", ondelete="CASCADE"),
        sa.UniqueConstraint("upload_id", "kind", name="uq_job_upload_id_kind"),
    )
    op.create_index("ix_job_state_run_after", "job", ["state", "run_after"])
    op.create_table(
        "upload_log",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("upload_id", sa.String(32), nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("received_by", sa.String(255), nullable=False),
        sa.Column("finished_by", sa.String(255), nullable=False),
        _instant("created_at"),
        _instant("received_at"),
        _instant("stored_at"),
        sa.Column("duration", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_upload_log"),
        sa.UniqueConstraint("upload_id", name="uq_upload_log_upload_id"),
    )


def downgrade() -> None:
    op.drop_table("upload_log")
    op.drop_table("job")
    op.drop_table("upload")
