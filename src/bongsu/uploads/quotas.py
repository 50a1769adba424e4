"""What uploads count against the quotas: reserved when they are created, given back when they go."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from bongsu.protocol import problems
from bongsu.protocol.problems import Problem
from bongsu.uploads.options import UploadOptions

__all__ = ["charge"]

_CHARGE = text(
    "INSERT INTO upload_usage (scope, size, files) VALUES (:scope, :size, :files) "
    "ON CONFLICT (scope) DO UPDATE SET size = upload_usage.size + excluded.size, "
    "files = upload_usage.files + excluded.files RETURNING size, files"
)


async def charge(
    session: AsyncSession,
    owner: str | None,
    *,
    size: int,
    files: int = 0,
    limits: UploadOptions | None = None,
) -> None:
    """Count `size` bytes and `files` more (negative: fewer) for `owner` and in total.

    With `limits` raises `Problem(QUOTA_EXCEEDED)`: the transaction must then be rolled back. Without,
    nothing is refused: bytes that are given back, or a file that is here already.

    Call it last in a transaction. Whoever counts holds the rows until the commit, and takes the user's
    before the total: with other locks in between two transactions could wait for each other.
    """
    scope = "key" if owner is None else f"user:{owner}"
    used = (await session.execute(_CHARGE, {"scope": scope, "size": size, "files": files})).one()
    # The API key is the operator's own: only the total bounds it.
    if limits is not None and owner is not None:
        _check(used.size, limits.user_quota, "Your files", "bytes")
        _check(used.files, limits.user_max_files, "You", "files")
    used = (await session.execute(_CHARGE, {"scope": "total", "size": size, "files": files})).one()
    if limits is not None:
        _check(used.size, limits.total_quota, "All files together", "bytes")
        _check(used.files, limits.total_max_files, "All together", "files")


def _check(used: int, limit: int, whose: str, what: str) -> None:
    if 0 < limit < used:
        raise Problem(
            problems.QUOTA_EXCEEDED,
            f"{whose} may have up to {limit} {what}; this one would make it {used}. Delete some first.",
            extra={"limit": limit},
        )
