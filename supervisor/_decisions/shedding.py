"""Emergency cleanup: how many must go at the high-water mark, and who may be taken. Pure."""

from __future__ import annotations

import math
from itertools import chain, islice, takewhile

from .._words.limits import Limits, Policies, Timeouts
from .roster import Roster
from .stay import Stay

# A product such as 0.7 * 10 may fall short of or beyond its whole number by rounding; a hair decides nothing.
_HAIR = 1e-9


def excess(claims: int, maximum: int, policies: Policies) -> int:
    """How many to shed when there would be `claims` of `maximum`: none below the high-water mark."""
    if claims < math.ceil(maximum * policies.shed_at - _HAIR):
        return 0
    return claims - math.floor(maximum * policies.shed_to + _HAIR)


def reclaimable(
    roster: Roster, count: int, now: float, limits: Limits, timeouts: Timeouts, policies: Policies
) -> tuple[Stay, ...]:
    """Up to `count` to shed, in order: the unresponsive, then from the longest idle to ``shed_idle_after``.

    The overdue have been idle longest of all, so they come first among the idle. Healthy recent ones never come.
    """
    unresponsive = {stay: None for stay in roster.suspects if stay.unresponsive(now, timeouts.suspect)}
    idle_after = limits.idle_ttl / 2 if policies.shed_idle_after is None else policies.shed_idle_after
    idle = takewhile(lambda stay: now - stay.last_active >= idle_after, roster.by_activity)
    return tuple(islice(chain(unresponsive, (stay for stay in idle if stay not in unresponsive)), count))
