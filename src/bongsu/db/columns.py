"""Column types and expressions that mean the same on SQLite and PostgreSQL.

The only clock that counts is the database's. Replicas' clocks differ; one that is 40 s ahead would see
every lease as expired and steal it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import BindParameter, DateTime, Float, Text, literal
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

__all__ = ["ErrorText", "UTCDateTime", "clock"]

_MAX_ERROR: Final = 1000
# Control characters, of which PostgreSQL stores no NUL; bidi controls, which make a line read as another one;
# surrogates, which UTF-8 has not.
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UTCDateTime(TypeDecorator[datetime]):
    """An instant: aware and in UTC in Python, `timestamptz` on PostgreSQL, ISO text in UTC on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        # SQLite's DATETIME has no zone: what is compared as text must be written in one form.
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ErrorText(TypeDecorator[str]):
    """What some code, perhaps not ours, said of its failure: one line of at most 1,000 characters.

    Any text can be stored: where one could not, the failure would go unrecorded, and happen again. What is
    unfit to be stored or shown becomes �.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        if len(value) > _MAX_ERROR:
            value = value[: _MAX_ERROR - 1] + "…"
        return _UNFIT.sub("�", " ".join(value.split()))


class clock(FunctionElement[datetime]):
    """The database's time now, plus `seconds` (negative: before). Moves on within a transaction."""

    inherit_cache = True
    type = UTCDateTime()
    name = "clock"

    def __init__(self, seconds: float | BindParameter[float] = 0.0) -> None:
        given = isinstance(seconds, BindParameter)
        super().__init__(seconds if given else literal(float(seconds), Float()))


@compiles(clock, "postgresql")
def _postgresql_clock(element: clock, compiler: SQLCompiler, **kw: Any) -> str:
    # Not now(): that is the time the transaction began, and a transaction can wait long for a row lock.
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: SQLCompiler, **kw: Any) -> str:
    # Milliseconds, padded to the six digits in which SQLAlchemy writes a DATETIME: it compares as text.
    seconds = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%.3f seconds', {seconds}))"
