"""What many have spent of one rate, in bounded memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable

import attrs

from .._words.rates import Rate


@attrs.define(eq=False)
class RateBook:
    """A bucket for each key, kept only while something of it is spent.

    At `most` keys, the one that has not come for longest is forgotten: whoever can come under so many names is not
    stopped by a rate, and must not fill the memory either.
    """

    rate: Rate
    most: int = 100_000
    #: When each bucket is full again, in the order of the last visit.
    _full_at: OrderedDict[Hashable, float] = attrs.field(factory=OrderedDict)

    @classmethod
    def of(cls, rate: Rate | None) -> RateBook | None:
        """A book for a rate, if there is one."""
        return None if rate is None else cls(rate)

    def __len__(self) -> int:
        return len(self._full_at)

    def spend(self, key: Hashable, now: float) -> float:
        """Spend one; 0.0, or in how many seconds there will be one, and then nothing is spent."""
        full_at = self.rate.spend(self._full_at.pop(key, -math.inf), now)
        excess = self.rate.excess(full_at, now)
        self._full_at[key] = full_at - self.rate.seconds / self.rate.burst if excess else full_at
        self._forget(now)
        return excess

    def _forget(self, now: float) -> None:
        """The buckets that are full again, as far as they come first, and what is too much."""
        while self._full_at:
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now and len(self._full_at) <= self.most:
                return
            del self._full_at[oldest]
