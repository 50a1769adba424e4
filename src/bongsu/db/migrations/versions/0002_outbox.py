"""The outbox and its relays; jobs of the embedding application beside those of uploads."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_PARTITIONS = 16  # bongsu.db.outbox.PARTITIONS, as it was here


def _instant(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    # Batch: SQLite changes a column only by copying the table.
    with op.batch_alter_table("job") as job:
        job.alter_column("upload_id", existing_type=sa.String(32), nullable=True)
        job.alter_column("kind", existing_type=sa.String(32), type_=sa.String(64), existing_nullable=False)
        job.add_column(sa.Column("unique_key", sa.String(255)))
        job.add_column(sa.Column("payload", sa.Text()))
        job.add_column(_instant("finished_at", nullable=True))
        job.create_unique_constraint("uq_job_kind_unique_key", ["kind", "unique_key"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("partition", sa.SmallInteger(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        _instant("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_partition_id", "outbox", ["partition", "id"])
    relay = op.create_table(
        "outbox_relay",
        sa.Column("partition", sa.SmallInteger(), nullable=False, autoincrement=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(255)),
        _instant("lease_until", nullable=True),
        sa.PrimaryKeyConstraint("partition", name="pk_outbox_relay"),
    )
    op.bulk_insert(relay, [{"partition": number, "term": 0} for number in range(_PARTITIONS)])


def downgrade() -> None:
    op.drop_table("outbox_relay")
    op.drop_table("outbox")
    # What the older version would run as an upload's job, and cannot.
    op.execute("DELETE FROM job WHERE upload_id IS NULL")
    with op.batch_alter_table("job") as job:
        job.drop_constraint("uq_job_kind_unique_key", type_="unique")
        job.drop_column("finished_at")
        job.drop_column("payload")
        job.drop_column("unique_key")
        job.alter_column("kind", existing_type=sa.String(64), type_=sa.String(32), existing_nullable=False)
        job.alter_column("upload_id", existing_type=sa.String(32), nullable=False)
