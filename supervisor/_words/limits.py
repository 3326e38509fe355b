"""How much, how long, and what then: the three records of settings, validated and frozen.

`Limits` is what connections may use, `Timeouts` how long others are waited for, `Policies` what happens at the limit.
"""

from __future__ import annotations

import enum
import math
from typing import Any

import attrs

from .rates import Rate


class Overflow(enum.Enum):
    """What happens when a limit is full and another connection arrives."""

    EVICT_OLDEST = "evict-oldest"
    """The one that was admitted first leaves (close code 4505)."""
    EVICT_IDLEST = "evict-idlest"
    """The one that has been without activity longest leaves (4505)."""
    EVICT_GREEDIEST = "evict-greediest"
    """The oldest of the user who holds most leaves (4505). For the total limit only."""
    REJECT = "reject"
    """The newcomer is refused with `LimitReached`: HTTP 429 for a user's limit, 503 for the total."""
    WAIT = "wait"
    """The newcomer waits up to ``timeouts.wait`` for somebody to leave, then is refused."""


class SlowConsumer(enum.Enum):
    """What happens when a connection's outbox is full and another message is to be queued."""

    CLOSE = "close"
    """The connection is closed (4003). Nobody misses a message without knowing."""
    DROP_OLDEST = "drop-oldest"
    """The oldest queued message is dropped."""
    DROP_NEWEST = "drop-newest"
    """The new message is dropped."""


#: More than anybody has; and the shortest time that is worth a clock.
_MOST = 1_000_000_000
_SHORTEST = 0.001


def _at_least(bound: int) -> Any:
    def check(_: object, attribute: attrs.Attribute[int | None], value: object) -> None:
        if value is None and attribute.default is None:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise ValueError(f"{attribute.name} must be a whole number of at least {bound}, is {value!r}")
        if value > _MOST:
            raise ValueError(f"{attribute.name} must be at most {_MOST}")

    return check


def _seconds(*, zero: bool = False) -> Any:
    def check(_: object, attribute: attrs.Attribute[float], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            raise ValueError(f"{attribute.name} must be a number of seconds, is {value!r}")
        if value < 0 or (value == 0 and not zero):
            raise ValueError(f"{attribute.name} must be {'at least' if zero else 'more than'} 0 s, is {value!r}")
        if 0 < value < _SHORTEST or _MOST < value < math.inf:
            raise ValueError(f"{attribute.name} must be {_SHORTEST:g} to {_MOST:g} s, or endless")

    return check


def _rate(value: str | None) -> Rate | None:
    return None if value is None else Rate(value)


@attrs.frozen(kw_only=True)
class Limits:
    """What connections may use. Times are in seconds; ``math.inf`` switches a time limit off."""

    per_user: int = attrs.field(default=5, validator=_at_least(1))
    """Connections of one user; at the limit ``policies.overflow_user`` decides."""
    total: int = attrs.field(default=1000, validator=_at_least(1))
    """Connections of all users; at the limit ``policies.overflow_total`` decides."""
    stuck: int | None = attrs.field(default=None, validator=_at_least(0))
    """Handlers of one user that ignored their cancellation; with more, the user's newcomers get `HardLimitReached`.
    None means as many as ``per_user``."""
    stuck_total: int = attrs.field(default=50, validator=_at_least(0))
    """Stuck handlers of all users; with more, the server says that it is not ready."""
    closing: int = attrs.field(default=1000, validator=_at_least(0))
    """Connections saying goodbye at once; beyond it a leaving connection is cut without a close frame's wait."""
    idle_ttl: float = attrs.field(default=300.0, validator=_seconds())
    """A connection without activity for this long ends (4001)."""
    lifetime: float = attrs.field(default=math.inf, validator=_seconds())
    """A connection of this age ends, active or not (4004)."""
    max_message_size: int = attrs.field(default=1_048_576, validator=_at_least(1))
    """Bytes of one received message, in UTF-8 for text; a larger one ends the connection (1009)."""
    max_fragments: int = attrs.field(default=4096, validator=_at_least(1))
    """Frames of one received message; more end the connection (1008)."""
    outbox_messages: int = attrs.field(default=1000, validator=_at_least(1))
    """Messages queued towards one connection; at the limit ``policies.slow_consumer`` decides."""
    outbox_bytes: int = attrs.field(default=1_048_576, validator=_at_least(1))
    """Bytes queued towards one connection; at the limit ``policies.slow_consumer`` decides."""
    outbox_bytes_user: int = attrs.field(default=4_194_304, validator=_at_least(1))
    """Bytes queued towards all connections of one user; at the limit ``policies.slow_consumer`` decides, about the one
    that another message is for."""
    lobby: int = attrs.field(default=1024, validator=_at_least(1))
    """Sockets of which it is not known yet who they are; beyond it the oldest of them is closed. They hold no seats.
    Also how many may wait under `Overflow.WAIT`; more are refused."""

    rooms: int = attrs.field(default=100, validator=_at_least(0))
    """Rooms that one connection may be in at a time; `RoomLimitReached` beyond."""
    rooms_total: int = attrs.field(default=100_000, validator=_at_least(0))
    """Rooms of all connections; nobody makes another one at the limit, everybody may join those there are."""
    history_messages: int = attrs.field(default=100, validator=_at_least(0))
    """Of what is told in one room or to one user, so many messages are kept for those who come back: see
    `Audience.tell`."""
    history_bytes: int = attrs.field(default=262_144, validator=_at_least(0))
    """And so many of their bytes."""
    history_bytes_total: int = attrs.field(default=16_777_216, validator=_at_least(0))
    """Of all histories together; those in which nothing was told for longest go first."""
    history_age: float = attrs.field(default=300.0, validator=_seconds())
    """And none that is older."""
    runs: int = attrs.field(default=10, validator=_at_least(0))
    """Runs of one user that have not ended; more are refused with `RunLimitReached`."""
    run_messages: int = attrs.field(default=500, validator=_at_least(1))
    """Of the events of one run, so many are kept for those who follow it later."""
    run_bytes: int = attrs.field(default=262_144, validator=_at_least(1))
    """And so many of their bytes, on the wire; in memory they are twice that. Of each user, the last four runs that
    have ended are kept, too. Both should be less than an outbox takes, for those who come back."""
    connect_rate_user: Rate | None = attrs.field(default=None, converter=_rate)
    """Connection attempts of one user, as ``20/10s``; more are refused (429). None: any number."""
    connect_rate_address: Rate | None = attrs.field(default=None, converter=_rate)
    """Connection attempts from one address (an IPv6 network of 64 bits counts as one); more are refused (429), before
    they are authenticated. None: any number."""
    message_rate: Rate | None = attrs.field(default=None, converter=_rate)
    """Messages received by one connection, as ``100/s``; more end it (4008). None: any number."""
    byte_rate: Rate | None = attrs.field(default=None, converter=_rate)
    """Bytes received by one connection, as ``1000000/s``; more end it (4008). At least one message of the greatest size
    and what it is wrapped in should be allowed at once. None: any number."""
    control_rate: Rate | None = attrs.field(default=Rate("1000/10s"), converter=_rate)
    """Pings and pongs received by one connection; more end it (4008). None: any number."""
    enforce: bool = attrs.field(default=True, validator=attrs.validators.instance_of(bool))
    """False watches only: nobody is refused, evicted, shed or expired for a number of connections, for
    ``connect_rate_user``, ``idle_ttl`` or ``lifetime``, and each time that would have happened is a `Spared` event.
    What protects the process is in force as ever: rates of addresses and of messages, sizes, dead and slow peers,
    expired credentials."""

    @property
    def stuck_per_user(self) -> int:
        """``stuck``, with None resolved."""
        return self.per_user if self.stuck is None else self.stuck


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long others are waited for, in seconds. Nothing is ever waited for without a bound."""

    handshake: float = attrs.field(default=5.0, validator=_seconds())
    """From accepting a socket to a complete request, TLS included; in total, not per byte."""
    evict: float = attrs.field(default=0.1, validator=_seconds(zero=True))
    """A newcomer waits this long for the seats of those who leave for it, then takes them."""
    handler_exit: float = attrs.field(default=0.5, validator=_seconds())
    """A handler has this long after its cancellation; then it is set aside as stuck."""
    close: float = attrs.field(default=0.5, validator=_seconds())
    """From the first reason to the socket's end, handler and goodbye together."""
    wait: float = attrs.field(default=5.0, validator=_seconds(zero=True))
    """A newcomer under `Overflow.WAIT` waits this long for a claim."""
    ping_interval: float = attrs.field(default=20.0, validator=_seconds())
    """A peer that has been silent for this long is sent a ping."""
    pong: float = attrs.field(default=20.0, validator=_seconds())
    """A peer that stays silent for this long after a ping is unresponsive (4002)."""
    write_progress: float = attrs.field(default=10.0, validator=_seconds())
    """A peer that takes no byte of what is written for this long is too slow (4003)."""
    suspect: float = attrs.field(default=1.0, validator=_seconds())
    """A peer with a ping or a write outstanding for this long may be shed before others."""
    linger: float = attrs.field(default=0.0, validator=_seconds(zero=True))
    """A user's nursery stays open for this long after their last connection."""
    drain: float = attrs.field(default=30.0, validator=_seconds(zero=True))
    """The server's whole drain; whoever is still there then is closed at once."""
    exit: float = attrs.field(default=5.0, validator=_seconds(zero=True))
    """After draining, the server process waits this long for stuck handlers, then reports them and exits non-zero."""


def _fraction(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{attribute.name} must be more than 0 and at most 1, is {value!r}")


@attrs.frozen(kw_only=True)
class Policies:
    """What happens at a limit, and what counts as activity."""

    overflow_user: Overflow = attrs.field(default=Overflow.EVICT_OLDEST, converter=Overflow)
    """When a user's limit is full."""
    overflow_total: Overflow = attrs.field(default=Overflow.REJECT, converter=Overflow)
    """When the total limit is full."""
    slow_consumer: SlowConsumer = attrs.field(default=SlowConsumer.CLOSE, converter=SlowConsumer)
    """When an outbox is full."""
    shed_at: float = attrs.field(default=0.8, validator=_fraction)
    """Emergency cleanup starts when an admission fills a limit to this fraction, rounded up."""
    shed_to: float = attrs.field(default=0.7, validator=_fraction)
    """Emergency cleanup stops at this fraction, rounded down, or when nothing is reclaimable."""
    shed_idle_after: float | None = attrs.field(default=None)
    """Emergency cleanup takes connections without activity for this many seconds. None means half of ``idle_ttl``."""
    received_is_activity: bool = True
    """A complete message received refreshes the idle TTL."""
    sent_is_activity: bool = True
    """A message sent by the connection's own handler refreshes the idle TTL. Publishing never does."""

    @overflow_user.validator
    def _total_only(self, _: object, value: Overflow) -> None:
        if value is Overflow.EVICT_GREEDIEST:
            raise ValueError("evict-greediest compares users, so it is for overflow_total only")

    @shed_to.validator
    def _below(self, _: object, value: float) -> None:
        if value > self.shed_at:
            raise ValueError(f"shed_to must not exceed shed_at ({self.shed_at!r}), is {value!r}")

    @shed_idle_after.validator
    def _positive(self, _: object, value: float | None) -> None:
        if value is not None and not value > 0:
            raise ValueError(f"shed_idle_after must be more than 0 s, is {value!r}")
