"""How many in how much time, and what has been spent of it."""

from __future__ import annotations

import math
import re

import attrs

_SPELLING = re.compile(r"(?P<count>[1-9]\d{0,11})/(?P<number>\d{1,9}(\.\d{1,9})?)?(?P<unit>s|min|h)", re.ASCII)
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
#: Two ways of adding up the same floating-point numbers may differ by this much, in seconds.
_HAIR = 1e-9


class Rate(str):
    """So many in so much time: ``100/s``, ``20/10s``, ``600/min``, ``5000/h``.

    Spent as from a bucket: `burst` of them at once, then one more every ``seconds / burst``.
    """

    burst: int
    seconds: float

    def __new__(cls, text: str) -> Rate:
        """ValueError if `text` is no rate."""
        spelled = _SPELLING.fullmatch(text) if isinstance(text, str) else None
        seconds = 0.0 if spelled is None else float(spelled["number"] or 1) * _SECONDS[spelled["unit"]]
        if spelled is None or not seconds:
            raise ValueError(f"a rate is spelled like 100/s, 20/10s, 600/min or 5000/h, not {text!r}")
        rate = super().__new__(cls, text)
        rate.burst, rate.seconds = int(spelled["count"]), seconds
        return rate

    def spend(self, full_at: float, now: float, amount: int = 1) -> float:
        """Spend `amount` at `now` from a bucket that would be full again at `full_at`; when it then would be.

        What is later than ``now + seconds`` is more than the bucket holds, by so many seconds.
        """
        return max(full_at, now) + amount * self.seconds / self.burst

    def excess(self, full_at: float, now: float) -> float:
        """By how many seconds a bucket that will be full at `full_at` is overspent; 0 if it is not."""
        early = full_at - now - self.seconds
        return early if early > _HAIR else 0.0


@attrs.define(eq=False)
class Bucket:
    """What one thing has spent of its rate."""

    rate: Rate
    _full_at: float = -math.inf

    def spend(self, now: float, amount: int = 1) -> bool:
        """Spend `amount`; False, and nothing is spent, if that is more than there is."""
        full_at = self.rate.spend(self._full_at, now, amount)
        if self.rate.excess(full_at, now):
            return False
        self._full_at = full_at
        return True
