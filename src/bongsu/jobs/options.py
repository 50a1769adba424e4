"""What an operator may set about the outbox (`BONGSU_OUTBOX__*`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["OutboxOptions"]


class OutboxOptions(BaseModel):
    """Durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    poll: float = Field(
        1.0, gt=0, description="Seconds between looks for publications that other programs committed"
    )
    turn: float = Field(
        10.0, ge=1, description="Seconds after which a replica that froze while it published is passed over"
    )
