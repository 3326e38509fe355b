"""Whether a client comes back, and when. Pure."""

from __future__ import annotations

import random

from .._words.closing import CloseReason, may_return

#: Seconds over which those spread who all were sent away at once.
SPREAD = 5.0
#: The longest pause, and the first, in seconds; each is twice the one before, and all of it is jitter.
LONGEST = 30.0
FIRST = 0.5
#: A connection that has lasted for so long was a success: whoever loses it begins anew.
SUCCESS = 5.0
_EVERYBODY = frozenset({CloseReason.RESTART.code, CloseReason.OVERLOAD.code, CloseReason.GOING_AWAY.code})


def pause(
    code: int, attempt: int, retry_after: float | None = None, *, longest: float = LONGEST, rng: random.Random
) -> float | None:
    """Seconds until the next attempt after an end with `code`; None if there must be none.

    `attempt` counts those that were no success: 0 for the first. Whom a server sends away together with all others
    (1001, 1012, 1013) spreads the first return over `SPREAD` seconds. Who is refused and told `retry_after` may come
    back in any case, not earlier.
    """
    if retry_after is None and not may_return(code):
        return None
    reach = SPREAD if code in _EVERYBODY else FIRST
    return (retry_after or 0.0) + rng.uniform(0, min(longest, reach * 2.0 ** min(attempt, 30)))
