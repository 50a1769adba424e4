"""What an operator may set: the outbox (`BONGSU_OUTBOX__*`), the application's jobs (`BONGSU_JOBS__*`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["JobOptions", "OutboxOptions"]


class OutboxOptions(BaseModel):
    """Durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    poll: float = Field(
        1.0, gt=0, description="Seconds between looks for publications that other programs committed"
    )
    turn: float = Field(
        10.0, ge=1, description="Seconds after which a replica that froze while it published is passed over"
    )


class JobOptions(BaseModel):
    """Durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_once: int = Field(
        4, gt=0, description="Jobs of the embedding application that one replica runs at once"
    )
    poll: float = Field(5.0, gt=0, description="Seconds between looks for jobs that nobody rang for")
    lease: float = Field(30.0, ge=1, description="Seconds after which a dead replica's job is taken over")
    time_limit: float = Field(
        600.0,
        gt=0,
        description="Seconds after which an attempt is ended and counts as failed, unless the job says",
    )
    kept: float = Field(86_400.0, ge=0, description="Seconds for which a done job, and so its key, is kept")
