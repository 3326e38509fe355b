"""Whether another connection may come in, and at whose expense. Pure: reads rosters, changes nothing."""

from __future__ import annotations

import attrs

from .._words.errors import PER_USER, TOTAL, HardLimitReached, LimitReached, limit_sentence
from .._words.limits import Limits, Overflow, Policies
from .ranking import Ranking
from .roster import Roster
from .stay import Stage, Stay


@attrs.frozen
class Admit:
    """Come in; `evict`, whom `policy` has chosen, leaves for it, if not None, and is told `sentence`."""

    evict: Stay | None = None
    sentence: str = ""
    policy: Overflow | None = None


@attrs.frozen
class Wait:
    """Wait until a claim is free; if none is in time, `refusal` is why not."""

    refusal: LimitReached


@attrs.frozen
class Refuse:
    """Stay out."""

    refusal: LimitReached


Verdict = Admit | Wait | Refuse


def decide(
    name: str, user: Roster | None, total: Roster, ranking: Ranking, limits: Limits, policies: Policies
) -> Verdict:
    """What becomes of one more connection of the user `name`, who has no roster yet on their first."""
    if user is not None and (stuck := stuck_count(user)) > limits.stuck_per_user:
        return Refuse(HardLimitReached(name, user.maximum, user.maximum, stuck))
    if user is not None and user.full:
        return _overflow(name, PER_USER, user, ranking, policies.overflow_user)
    if total.full:
        return _overflow(name, TOTAL, total, ranking, policies.overflow_total)
    return Admit()


def stuck_count(user: Roster) -> int:
    """Handlers of a user that hold no seat and are still there."""
    return len(user.files[Stage.STUCK]) + sum(stay.robbed for stay in user.files[Stage.LEAVING])


def _overflow(name: str, limit: str, roster: Roster, ranking: Ranking, policy: Overflow) -> Verdict:
    current, maximum = len(roster.claims), roster.maximum
    match policy:
        case Overflow.REJECT:
            return Refuse(LimitReached(name, limit, current, maximum))
        case Overflow.WAIT:
            return Wait(LimitReached(name, limit, current, maximum))
    return Admit(victim(roster, ranking, policy), limit_sentence(name, limit, current, maximum), policy)


def victim(roster: Roster, ranking: Ranking, policy: Overflow) -> Stay:
    """Who leaves a limit that is full, or has been lowered: whom the policy would not have here.

    A policy that refuses would not have let the newest in.
    """
    match policy:
        case Overflow.EVICT_OLDEST:
            return next(iter(roster.claims))
        case Overflow.EVICT_IDLEST:
            return next(iter(roster.by_activity))
        case Overflow.EVICT_GREEDIEST:
            return next(iter(ranking.greediest().roster.claims))
    return next(reversed(roster.claims))
