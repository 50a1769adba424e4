"""One connection: its outbox, its single way out, and what happens when it is slow."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ClientOptions(BaseModel):
    """Limits of one client connection (`BONGSU_CLIENT__*`). Sizes in bytes, durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    queue_max_size: int = Field(
        1024 * 1024, gt=0, description="Unsent bytes above which a client counts as slow and is closed (3008)"
    )
    slow_timeout: float = Field(
        5.0, gt=0, description="Seconds a paused client may make no progress before it counts as slow (3008)"
    )
    drain_timeout: float = Field(
        5.0, gt=0, description="Seconds a closed client is given to read what was sent before it is cut off"
    )
