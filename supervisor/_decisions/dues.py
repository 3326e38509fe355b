"""When a stay is next due for something, and for what. Pure; the keeper only sleeps until then and acts."""

from __future__ import annotations

import enum
import math

from .._words.closing import CloseReason
from .._words.identity import Identity
from .._words.limits import Limits, Timeouts
from .stay import Stage, Stay

# A goodbye ends by its own deadline; if a wire has not let go this much later, it never will.
OVERRUN = 0.1


class Act(enum.Enum):
    """What is due, other than a reason to leave."""

    PING = "ping"
    SET_ASIDE = "set aside"


Due = tuple[float, CloseReason | Act]


def next_due(stay: Stay, limits: Limits, timeouts: Timeouts) -> Due:
    """The next moment at which `stay` needs its keeper, and why."""
    match stay.stage:
        case Stage.CLAIM:
            return min(expiry(stay, limits), _heartbeat(stay, timeouts), key=_moment)
        case Stage.LEAVING:
            assert stay.end is not None
            return max(stay.end.at + timeouts.handler_exit, stay.host.grace_until), Act.SET_ASIDE
        case Stage.CLOSING:
            assert stay.end is not None
            return max(stay.end.at + timeouts.close + OVERRUN, stay.host.grace_until), Act.SET_ASIDE
    return math.inf, Act.SET_ASIDE


def patience(closing: int, limits: Limits, timeouts: Timeouts) -> float:
    """Seconds, since its end, for the goodbye of the last of `closing` that say theirs; 0.0 beyond the limit.

    Of many silent peers one after another is cut in the second half of the time, so that all are gone at its end.
    """
    if closing > limits.closing:
        return 0.0
    return timeouts.close * (1 - (closing - 1) / limits.closing / 2)


def lifetime(identity: Identity, limits: Limits, now: float, wall_clock: float) -> tuple[float, CloseReason]:
    """When a connection that opens now is over in any case, and why. From here on, the wall clock may jump."""
    ends_at = now + limits.lifetime
    if identity.expires_at is not None:
        expires_at = now + max(0.0, identity.expires_at - wall_clock)
        if expires_at < ends_at:
            return expires_at, CloseReason.CREDENTIAL_EXPIRED
    return ends_at, CloseReason.LIFETIME


def _moment(due: Due) -> float:
    return due[0]


def expiry(stay: Stay, limits: Limits) -> tuple[float, CloseReason]:
    """When its time is over, and which of its times that is."""
    idle_until = max(max(stay.last_active, stay.spared_at) + limits.idle_ttl, stay.host.grace_until)
    return (idle_until, CloseReason.IDLE) if idle_until < stay.ends_at else (stay.ends_at, stay.ends_for)


def _heartbeat(stay: Stay, timeouts: Timeouts) -> Due:
    if not stay.begun:
        return math.inf, Act.PING
    silent_since = stay.wire.silent_since
    if silent_since is None:  # we are not listening, so silence says nothing; the ping still wakes a dead transport
        return max(stay.pinged_at, stay.opened_at) + timeouts.ping_interval, Act.PING
    if silent_since < stay.pinged_at:
        return max(stay.pinged_at + timeouts.pong, stay.host.grace_until), CloseReason.UNRESPONSIVE
    return silent_since + timeouts.ping_interval, Act.PING
