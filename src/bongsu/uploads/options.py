"""What an operator may set about uploads (`BONGSU_UPLOAD__*`)."""

from __future__ import annotations

import re
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

_TYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]+/(?:[a-z0-9!#$&^_.+-]+|\*)|\*/\*", re.ASCII)


class UploadOptions(BaseModel):
    """Limits of the upload side. Sizes in bytes, durations in seconds; 0 means no limit where it is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_size: int = Field(10 * 1024**3, gt=0, description="Largest accepted file, in bytes")
    user_quota: int = Field(
        0,
        ge=0,
        description="Bytes that one user's files may have together, unfinished ones too; 0 = no limit",
    )
    user_max_files: int = Field(0, ge=0, description="Files that one user may have; 0 = no limit")
    total_quota: int = Field(0, ge=0, description="Bytes that all files may have together; 0 = no limit")
    total_max_files: int = Field(0, ge=0, description="Files that there may be; 0 = no limit")
    min_free: int = Field(
        256 * 1024**2,
        ge=0,
        description="Free bytes of the storage below which nothing is accepted; 0 = do not look",
    )
    allowed_types: list[str] = Field(
        default_factory=list,
        description="Types of files that are accepted, by their content, such as image/*; none = all",
    )
    read_timeout: float = Field(
        60.0, gt=0, description="Seconds without a byte of a body after which its request ends"
    )
    min_rate: int = Field(
        256,
        ge=0,
        description="Bytes a second that a body must bring on average of the read timeout; 0 = no limit",
    )
    expire_after: float = Field(
        24 * 3600.0,
        ge=1,
        description="Seconds without a byte after which an unfinished resumable upload is removed",
    )
    abandoned_after: float = Field(
        300.0,
        ge=30,
        description="Seconds without a byte after which any other unfinished upload is removed",
    )
    orphaned_after: float = Field(
        24 * 3600.0,
        ge=3600,
        description="Age in seconds at which stored bytes that belong to no upload are removed",
    )
    jobs_at_once: int = Field(2, gt=0, description="Files that one replica finishes at the same time")
    job_poll: float = Field(5.0, gt=0, description="Seconds between looks for jobs that nobody rang for")
    job_lease: float = Field(30.0, ge=1, description="Seconds after which a dead replica's job is taken over")

    hook_time_limit: float = Field(
        600.0,
        gt=0,
        description="Seconds after which a hook is ended and has failed, unless it says another time",
    )

    @field_validator("allowed_types")
    @classmethod
    def _are_types(cls, types: list[str]) -> list[str]:
        types = [each.strip().lower() for each in types]
        for each in types:
            if _TYPE.fullmatch(each) is None:
                raise ValueError(f"“{each}” is not a type; write image/png or image/*")
        return types
