"""A connection, as its handler and everybody else sees it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._decisions.dues import expiry
from .._decisions.ledger import Ledger
from .._decisions.memberships import Group
from .._decisions.outbox import Outbox, Put
from .._decisions.stay import Stage, Stay
from .._words.closing import CloseReason
from .._words.errors import ConnectionClosed, IdentityMismatch, NotFound
from .._words.events import Failed
from .._words.frames import Frame
from .._words.wire import WireClosed

if TYPE_CHECKING:
    from .supervisor import Supervisor

Message = str | bytes
#: Seconds for which somebody whose socket takes everything may send without giving way.
_MOMENT = 0.001
_STILL_READABLE = (CloseReason.PEER_CLOSED, CloseReason.PEER_LOST)


@attrs.define(eq=False)
class Connection(Stay):
    """One connection of one user, running in its own task, a child of its user's nursery.

    A handler iterates over it to receive messages, and sends with `send`. Everybody else may call `send_nowait` and
    `close` at any time. It is over when the handler returns, when the peer leaves, or when a limit says so; the
    handler is then cancelled, or its iteration ends if it is the peer who left.
    """

    supervisor: Supervisor = attrs.field(repr=False)
    _ledger: Ledger = attrs.field(repr=False)
    #: Set when nothing is queued any more; there as long as the outbox is.
    _drained: trio.Event | None = attrs.field(default=None, init=False, repr=False)
    #: Cleanup hooks, see `on_close`.
    hooks: list[tuple[Callable[..., Awaitable[None]], tuple[Any, ...]]] | None = attrs.field(
        default=None, init=False, repr=False
    )
    #: How many writes wait for the peer.
    _writing: int = attrs.field(default=0, init=False, repr=False)
    _gave_way_at: float = attrs.field(default=-math.inf, init=False, repr=False)

    @property
    def user(self) -> str:
        """Whose connection this is."""
        return self.identity.user

    @property
    def peer(self) -> str:
        """The other side's address."""
        return self.wire.peer

    @property
    def rooms(self) -> tuple[Any, ...]:
        """The rooms it has joined, in that order."""
        return tuple(group.name for group in self.groups if isinstance(group, Group) and group.kind == "room")

    @property
    def expires(self) -> tuple[float, CloseReason]:
        """When its time is over, unless something happens, on Trio's clock; and which of its times that is."""
        return expiry(self, self._ledger.limits)

    # -- receiving ---------------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """The next message, text as str and binary as bytes.

        Raises `ConnectionClosed` once the connection is leaving; what had arrived before the peer left is still
        returned first. A complete message counts as activity (see `Policies`).
        """
        try:
            return await self.__anext__()
        except StopAsyncIteration:
            raise self._closed_error() from None

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> Message:
        self.reads = True
        if self.end is not None and self.end.reason not in _STILL_READABLE:
            raise StopAsyncIteration
        try:
            message = await self.wire.receive()
        except WireClosed:
            self._note_end()
            raise StopAsyncIteration from None
        if self._ledger.policies.received_is_activity:
            self._ledger.touch(self)
        return message

    # -- sending -----------------------------------------------------------------------------------------------

    async def send(self, message: Message | Frame) -> None:
        """Send one message and wait until the socket has taken it: backpressure for the handler that calls it.

        Messages keep their order, also with those of `send_nowait`. Raises `ConnectionClosed` once the connection is
        leaving. A send that is cancelled in mid-frame cannot be taken back: the connection is then cut.
        """
        frame = message if isinstance(message, Frame) else Frame(message)
        if self.end is not None:
            raise self._closed_error()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._drained is not None:
                await self.drained()
                if self.end is not None:  # the goodbye has waited for the same, and may have been said
                    raise WireClosed
            await self._write(frame)
        except WireClosed:
            raise self._closed_error() from None
        if self._ledger.policies.sent_is_activity:
            self._ledger.touch(self)

    async def _write(self, frame: Frame) -> None:
        """Write `frame`; while it waits for the peer, the peer is suspect.

        Who writes to a socket that takes everything gives way only now and then: every message would be a turn of the
        scheduler otherwise, which costs more than the writing.
        """
        rest = self.wire.write(frame)
        if rest is not None:
            self._writing += 1
            self._ledger.suspect(self)
            try:
                await rest
            finally:
                self._writing -= 1
                if not self._writing:
                    self._ledger.unsuspect(self)
        elif (now := trio.current_time()) - self._gave_way_at > _MOMENT:
            self._gave_way_at = now
            await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, message: Message | Frame) -> bool:
        """Send one message without waiting: written now if the socket takes it, else queued in the outbox.

        Returns False if the connection is leaving, or if the message was dropped. At ``limits.outbox_messages`` or
        ``limits.outbox_bytes``, ``policies.slow_consumer`` decides; a frame being written does not count, and an empty
        outbox takes any one frame. Never activity.
        """
        frame = message if isinstance(message, Frame) else Frame(message)
        if self.end is not None or not self.begun:
            return False
        if self.outbox is None:
            if self._offer(frame):
                return True
            if not self.serving or self.nursery is None:  # the attempt has found the peer gone
                return False
            self.outbox, self._drained = Outbox(self.host.queued), trio.Event()
            self.nursery.start_soon(self._write_out, self.outbox, self._drained, name=f"writer of {self.id}")
        ledger = self._ledger
        put = self.outbox.put(frame, ledger.limits, ledger.policies.slow_consumer)
        if put is Put.OVERFLOW:
            ledger.leave(self, CloseReason.TOO_SLOW, "too slow: the outbox is full")
        return put is Put.QUEUED

    def _offer(self, frame: Frame) -> bool:
        try:
            return self.wire.offer(frame)
        except Exception as exception:  # noqa: BLE001 - reported as a Failed event, and it ends this connection
            self.report("wire", exception)
            self._ledger.leave(self, CloseReason.FAILED)
            return False

    async def _write_out(self, outbox: Outbox, drained: trio.Event) -> None:
        """The writer: there only while something is queued."""
        try:
            while outbox.frames:
                await self._write(outbox.get())
        except WireClosed:
            pass
        except Exception as exception:  # noqa: BLE001 - reported as a Failed event, and it ends this connection
            self.report("wire", exception)
            self._ledger.leave(self, CloseReason.FAILED)
        finally:
            outbox.clear()
            self.outbox = self._drained = None
            drained.set()

    async def drained(self) -> None:
        """Wait until nothing is queued any more. No checkpoint if nothing is."""
        while self._drained is not None:
            await self._drained.wait()

    def drop_queued(self) -> None:
        """Forget what is queued."""
        if self.outbox is not None:
            self.outbox.clear()

    # -- belonging ---------------------------------------------------------------------------------------------

    def join(self, room: Any, metadata: Any = None) -> Membership:
        """Join `room` (any hashable name) for the rest of the connection's life, or for a ``with`` block.

        Joining again replaces the metadata. Raises `ConnectionClosed` once the connection is leaving, and
        `RoomLimitReached` beyond ``limits.rooms`` of its own or ``limits.rooms_total`` of everybody's.
        """
        return self._belong(Group("room", room), metadata)

    def leave(self, room: Any) -> bool:
        """Leave `room`; False if it was not a member."""
        return self._ledger.part(self, Group("room", room))

    def follow(self, run: Any) -> Membership:
        """Receive what the run called `run` publishes; otherwise like `join`."""
        return self._belong(Group("run", run), None)

    def _belong(self, group: Group, metadata: Any) -> Membership:
        if not self._ledger.join(self, group, metadata):
            raise self._closed_error()
        return Membership(self, group)

    # -- ending ------------------------------------------------------------------------------------------------

    def close(self, code: int = 1000, text: str = "") -> bool:
        """Begin to leave: the handler is cancelled, the peer gets `code` and `text`. Returns at once.

        `code` is 1000, or 3000 to 4999. False if the connection was leaving already: the first reason is kept.
        """
        if code != 1000 and not 3000 <= code <= 4999:
            raise ValueError(f"a close code is 1000 or 3000 to 4999, not {code!r}")
        return self._ledger.leave(self, CloseReason.CLOSED, text, code=code)

    async def refresh(self, token: str) -> float | None:
        """Renew the credential before it expires; returns when the new one does, in POSIX seconds.

        Raises `Unauthorized` if `token` cannot be believed, and `IdentityMismatch` if it is somebody else's or of
        another session: the old credential is then in force still. `NotFound` if nobody here can judge tokens.
        """
        authority = self.supervisor.authority
        if authority is None:
            raise NotFound("there is nobody who can judge tokens")
        identity = await authority.identify(token, self.peer)
        if identity.user != self.user or identity.session not in (None, self.identity.session):
            raise IdentityMismatch("the new token is not of the same user and session")
        self._ledger.renew(self, identity.expires_at)
        return identity.expires_at

    def on_close(self, hook: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Have ``await hook(*args)`` called when the handler is out, whatever ended it.

        Hooks run concurrently, within what is left of ``timeouts.close``; then they are cancelled. What one raises
        is reported as its own failure.
        """
        if self.hooks is None:
            self.hooks = []
        self.hooks.append((hook, args))

    async def wait_gone(self) -> None:
        """Wait until everything of it is given back; at most ``timeouts.close`` after it began to leave."""
        if self.closed is None:
            if self.gone is None:
                self.gone = trio.Event()
            await self.gone.wait()

    def report(self, what: str, exception: BaseException) -> None:
        """Tell everybody that something of this connection has failed."""
        self._ledger.post(
            Failed(
                at=trio.current_time(),
                what=what,
                exception=exception,
                connection=self.id,
                identity=self.identity,
            )
        )

    def ended_by_wire(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None:
        """The wire has come to its end. A handler that reads gets half its time to notice by itself."""
        if cause is not None:
            self.report("reader", cause)
        grace = self._ledger.timeouts.handler_exit / 2 if self.reads else 0.0
        self._ledger.leave(self, reason, text, grace=grace)

    def _note_end(self) -> None:
        """The wire is closed, whether or not it has said so."""
        if self.end is None:
            self._ledger.leave(self, CloseReason.PEER_LOST, grace=self._ledger.timeouts.handler_exit / 2)

    def _closed_error(self) -> ConnectionClosed:
        self._note_end()
        assert self.end is not None
        return ConnectionClosed(self.end.reason, self.end.text)

    @property
    def serving(self) -> bool:
        """Admitted and not leaving."""
        return self.stage is Stage.CLAIM


@attrs.frozen
class Membership:
    """A connection's place in a room or among a run's followers; leaving the ``with`` block gives it back."""

    connection: Connection
    group: Group

    def leave(self) -> bool:
        """End it now; False if it has ended."""
        return self.connection._ledger.part(self.connection, self.group)

    def __enter__(self) -> Membership:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    async def __aenter__(self) -> Membership:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()
