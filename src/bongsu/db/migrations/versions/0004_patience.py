"""Jobs remember since when something that they need has been away."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("away_since", sa.DateTime(timezone=True)))


def downgrade() -> None:
    op.drop_column("job", "away_since")
