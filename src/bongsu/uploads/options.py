"""What an operator may set about uploads (`BONGSU_UPLOAD__*`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class UploadOptions(BaseModel):
    """Limits of the upload side. Sizes in bytes, durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_size: int = Field(10 * 1024**3, gt=0, description="Largest accepted file, in bytes")
    abandoned_after: float = Field(
        300.0, ge=30, description="Seconds without a byte after which an unfinished upload is removed"
    )
    jobs_at_once: int = Field(2, gt=0, description="Files that one replica finishes at the same time")
    job_poll: float = Field(5.0, gt=0, description="Seconds between looks for jobs that nobody rang for")
    job_lease: float = Field(30.0, ge=1, description="Seconds after which a dead replica's job is taken over")
