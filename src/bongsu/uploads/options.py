"""What an operator may set about uploads (`BONGSU_UPLOAD__*`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class UploadOptions(BaseModel):
    """Limits of the upload side. Sizes in bytes, durations in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_size: int = Field(10 * 1024**3, gt=0, description="Largest accepted file, in bytes")
