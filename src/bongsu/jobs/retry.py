"""When a failed job runs again, and when it has failed often enough. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter. Delays in seconds.

    Failures (the work raised) and expiries (the worker vanished) are bounded apart. Expiries must be
    bounded too: a job that kills its process would otherwise take one replica down after the other.

    That something the work needs is away is neither; it is bounded by time (`patience`).
    """

    first_delay: float = 1.0
    longest_delay: float = 300.0
    max_failures: int = 8
    max_expiries: int = 25
    patience: float = 86_400.0
    longest_wait: float = 60.0

    def waits(self, away: float) -> bool:
        """Whether what has been away for so long is waited for, without counting a failure."""
        return away < self.patience

    def wait(self, away: float, *, chance: float) -> float:
        """Seconds until the next look at what has been away for `away`: about as long again, up to a limit.

        Short, beside `longest_delay`: when it is back, whoever uploaded a file waits for this.
        """
        return min(self.longest_wait, max(self.first_delay, away)) * (0.5 + 0.5 * chance)

    def exhausted(self, *, failures: int, expiries: int) -> bool:
        """Whether the job is dead after that many."""
        return failures >= self.max_failures or expiries >= self.max_expiries

    def delay(self, failures: int, *, chance: float) -> float:
        """Seconds to wait after the `failures`-th failure (from 1); `chance` in [0, 1) spreads them.

        Between half and all of the doubled delay: jobs that failed together, because the storage was
        away, must not come back together.
        """
        # The exponent is bounded, or a large count would overflow before `min` could help.
        full = min(self.longest_delay, self.first_delay * 2.0 ** min(failures - 1, 32))
        return full * (0.5 + 0.5 * chance)
