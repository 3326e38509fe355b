"""A wire without a socket, whose peer behaves as badly as it is told to: for virtual time."""

from __future__ import annotations

import enum
import math
from collections import Counter, deque
from collections.abc import Iterable

import attrs
import trio

from .._words.closing import CloseReason
from .._words.frames import Frame
from .._words.wire import Ended, WireClosed


class Peer(enum.Enum):
    """What the other side is like."""

    HEALTHY = "healthy"
    """Reads, and answers pings and closes at once."""
    SLOW = "slow"
    """Takes 0.2 s to take a message, and to answer a close."""
    DRIBBLES = "dribbles"
    """Takes a message in ten parts, 0.05 s apart: it moves, so it is not stalled."""
    MUTE = "mute"
    """Reads, and answers neither pings nor closes."""
    NEVER_READS = "never-reads"
    """Takes nothing and says nothing."""
    VANISHES = "vanishes"
    """Gone without a word: what the kernel has room for is taken, then nothing."""
    HALF_OPEN = "half-open"
    """Has said that it leaves, and takes nothing any more."""
    RESETS = "resets"
    """Resets the connection as soon as it is sent something."""
    LEAVES = "leaves"
    """Leaves in the very moment in which it has been let in."""
    REFUSES = "refuses"
    """Is gone before the upgrade is complete."""


_DEAF = (Peer.NEVER_READS, Peer.HALF_OPEN)
_DUMB = (Peer.MUTE, Peer.NEVER_READS, Peer.VANISHES, Peer.HALF_OPEN)
#: Messages that a vanished peer's kernel, and ours, still have room for.
_ROOM = 8


class Mishap(enum.Enum):
    """What goes wrong in one call of a wire."""

    RAISE = "raise"
    """It raises OSError, as if by a bug of its own."""
    HANG = "hang"
    """It does not come back until it is cancelled, or the wire is cut."""
    SHIELD = "shield"
    """It does not come back for 3 s, cancelled or not."""


@attrs.frozen
class Fault:
    """In the `nth` call of the method `call` (counted from 1; with `every`, in each `nth` one), `mishap` happens."""

    call: str = attrs.field(
        validator=attrs.validators.in_(("open", "receive", "send", "offer", "ping", "close", "cut"))
    )
    mishap: Mishap = attrs.field(converter=Mishap)
    nth: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    every: bool = False

    def __attrs_post_init__(self) -> None:
        if self.call in ("offer", "ping", "cut") and self.mishap is not Mishap.RAISE:
            raise ValueError(f"{self.call} never waits, so it can only raise")

    def strikes(self, call: str, number: int) -> bool:
        """Whether it happens now."""
        return call == self.call and (number % self.nth == 0 if self.every else number == self.nth)


@attrs.define(eq=False)
class FaultWire:
    """A `Wire` in memory. Its own side is called by the supervisor, its peer's side by a test.

    It also watches the supervisor: what it may not do with a wire is written down in `breaches`.
    """

    kind: Peer = attrs.field(default=Peer.HEALTHY, converter=Peer)
    faults: Iterable[Fault] = ()
    #: None: as the kind of peer does.
    answers_pings: bool | None = None
    #: Seconds after which a peer that takes nothing is too slow.
    write_progress: float = 10.0
    peer: str = "memory"
    #: What the peer has been sent.
    sent: list[str | bytes] = attrs.field(factory=list)
    inbox: deque[str | bytes] = attrs.field(factory=deque)
    #: When pings were sent that have not been answered.
    unanswered: list[float] = attrs.field(factory=list)
    pings: int = 0
    #: What the close frame said, once there was one.
    farewell: tuple[int, str] | None = None
    cut_at: float | None = None
    #: Why it ended from the peer's side, once it has.
    ended_for: CloseReason | None = None
    breaches: list[str] = attrs.field(factory=list)
    silent_since: float | None = None
    stalled_since: float | None = None
    traffic: tuple[int, int] | None = None
    #: When the supervisor last took a message from here.
    received_at: float = -math.inf
    #: How often each method has been called.
    calls: Counter[str] = attrs.field(factory=Counter)
    _ended: Ended | None = None
    _changed: trio.Event = attrs.field(factory=trio.Event)

    # -- the supervisor's side ---------------------------------------------------------------------------------

    async def open(self, nursery: trio.Nursery, ended: Ended) -> None:
        """See `Wire.open`."""
        self._ended = ended
        await self._call("open")
        if self.kind is Peer.REFUSES:
            raise WireClosed
        self.silent_since = trio.current_time()
        if self.ended_for is not None:  # it could not wait
            ended(self.ended_for)
        elif self.kind in (Peer.LEAVES, Peer.HALF_OPEN):
            self.hang_up()

    async def receive(self) -> str | bytes:
        """See `Wire.receive`."""
        await self._call("receive")
        while not self.inbox:
            if self.ended_for is not None or self.cut_at is not None:
                raise WireClosed
            await self._changed.wait()
        self.received_at = trio.current_time()
        return self.inbox.popleft()

    async def write(self, frame: Frame) -> None:
        """See `Wire.write`."""
        self.stalled_since = trio.current_time()
        try:
            with trio.move_on_after(self.write_progress) as patience:
                await self._call("send")
                await self._take(frame)
            if patience.cancelled_caught:
                self._end(CloseReason.TOO_SLOW)
                raise WireClosed
        except trio.Cancelled:  # in mid-frame, as far as anybody can know
            self._end(CloseReason.SEND_CANCELLED)
            raise
        finally:
            self.stalled_since = None

    def offer(self, frame: Frame) -> bool:
        """See `Wire.offer`."""
        self._count("offer")
        if self._closed or self.stalled_since is not None or self.kind not in (Peer.HEALTHY, Peer.MUTE):
            return False
        self.sent.append(frame.message)
        return True

    def ping(self) -> None:
        """See `Wire.ping`."""
        self.pings += 1
        self.unanswered.append(trio.current_time())
        self._count("ping")
        answers = self.kind not in _DUMB if self.answers_pings is None else self.answers_pings
        if answers and self.ended_for is None:
            self._answer_pings()

    async def close(self, code: int, text: str) -> None:
        """See `Wire.close`."""
        if self.silent_since is None:  # never opened: there is nobody to say goodbye to
            return
        self.farewell = code, text
        await self._call("close")
        if self.kind in (Peer.SLOW, Peer.DRIBBLES):
            await trio.sleep(0.2)
        while self.kind in _DUMB and not self._closed:
            await self._changed.wait()
        if self._closed:
            raise WireClosed

    def cut(self, code: int, text: str) -> None:
        """See `Wire.cut`."""
        if self.cut_at is None:
            self.cut_at = trio.current_time()
            self._wake()
        self._ended = None
        self._count("cut")

    async def _call(self, call: str) -> None:
        """One call of a method that waits: a checkpoint, or whatever else goes wrong."""
        mishap = self._count(call)
        if call in ("open", "close") and self.calls[call] > 1:
            self.breaches.append(f"{call} was called again")
        if mishap is Mishap.HANG:
            while self.cut_at is None:
                await self._changed.wait()
            raise WireClosed
        if mishap is Mishap.SHIELD:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
        await trio.lowlevel.checkpoint()

    def _count(self, call: str) -> Mishap | None:
        self.calls[call] += 1
        mishap = next((fault.mishap for fault in self.faults if fault.strikes(call, self.calls[call])), None)
        if mishap is Mishap.RAISE:
            raise OSError(f"{call} raises")
        return mishap

    async def _take(self, frame: Frame) -> None:
        """Wait until the peer has taken `frame`, if it ever does."""
        if self.kind is Peer.RESETS:
            self._end(CloseReason.PEER_LOST)
        if self.kind in (Peer.SLOW, Peer.DRIBBLES):
            parts = 10 if self.kind is Peer.DRIBBLES else 1
            for _ in range(parts):
                self.stalled_since = trio.current_time()
                await trio.sleep(0.5 / parts if self.kind is Peer.DRIBBLES else 0.2)
        while self._deaf:
            if self._closed:
                raise WireClosed
            await self._changed.wait()
        if self._closed:
            raise WireClosed
        self.sent.append(frame.message)

    @property
    def _deaf(self) -> bool:
        return self.kind in _DEAF or (self.kind is Peer.VANISHES and len(self.sent) >= _ROOM)

    @property
    def _closed(self) -> bool:
        return self.cut_at is not None or self.ended_for not in (None, CloseReason.PEER_CLOSED)

    # -- the peer's side ---------------------------------------------------------------------------------------

    def deliver(self, message: str | bytes) -> None:
        """Let the peer send a message. Nothing happens if it is gone."""
        if self.ended_for is None and self.cut_at is None:
            self.inbox.append(message)
            self._answer_pings()
            self._wake()

    def hang_up(self, reason: CloseReason = CloseReason.PEER_CLOSED) -> None:
        """Let the peer leave: with a close frame, or without (`CloseReason.PEER_LOST`)."""
        self._end(reason)

    def become(self, kind: Peer | str) -> None:
        """Make another peer of it; one that recovers answers what it has not answered."""
        self.kind = Peer(kind)
        if self.kind not in _DUMB and self.unanswered and self.answers_pings is not False:
            self._answer_pings()
        self._wake()

    def _answer_pings(self) -> None:
        self.unanswered.clear()
        self.silent_since = trio.current_time()

    def _end(self, reason: CloseReason) -> None:
        if self.ended_for is None:
            self.ended_for = reason
            self._wake()
            if self._ended is not None:
                self._ended(reason)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
