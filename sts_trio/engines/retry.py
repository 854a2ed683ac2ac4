"""When a failed request is tried again: a plan without a clock.

The wait doubles from try to try and is jittered, so that callers that failed together do not come back together (AWS
Architecture Blog, "Exponential Backoff And Jitter"). What a server asked for in ``Retry-After`` is the least that is
waited. A try that would come too late to be of use is not waited for.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

from attrs import frozen


@frozen
class RetryPlan:
    """How long to wait before the next try.

    Attributes:
        first_s: wait after the first failure, before jitter.
        factor: how much longer each further wait is.
        longest_s: no wait of our own is longer, before jitter.
        jitter: which part of a wait is left to chance, 0..1.
        useful_s: with less time than this left after the wait, another try is pointless.
    """

    first_s: float = 0.2
    factor: float = 2.0
    longest_s: float = 2.0
    jitter: float = 0.5
    useful_s: float = 0.2

    def wait_s(self, failures: int, *, chance: float, retry_after_s: float | None, left_s: float) -> float | None:
        """Seconds to wait after the `failures`-th failure in a row; None where no further try is worth it.

        Args:
            failures: 1 and up.
            chance: a random number, 0..1.
            retry_after_s: what the server asked for, if it did.
            left_s: until an answer is of no use any more.
        """
        doublings = min(failures - 1, 64)  # beyond which a float may overflow
        backoff = min(self.first_s * self.factor**doublings, self.longest_s)
        wait = max(backoff * (1 - self.jitter * chance), retry_after_s or 0.0)
        return wait if wait + self.useful_s <= left_s else None


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks to wait (RFC 9110, 10.2.3): a number of them, or a date.

    Args:
        now: Unix time, in seconds.

    Returns:
        0 or more; None where there is no header, or one that says nothing.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])  # more digits are three centuries
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000": UTC, of unknown place (RFC 5322, 3.3)
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)
