"""The supervisor: the one object that a program opens, asks and tells."""

from __future__ import annotations

import contextlib
import math
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable
from functools import partial
from typing import Any, Concatenate, ParamSpec, cast

import attrs
import trio
from trio.lowlevel import enable_ki_protection
from trio_websocket import WebSocketRequest

from .._decisions.backlog import Backlog
from .._decisions.bulletin import Subscriber
from .._decisions.ledger import ENDING, Ledger
from .._decisions.memberships import Group
from .._decisions.presence import Diff
from .._decisions.roster import Roster
from .._decisions.stay import Stage, Stay
from .._engines.borrowed import Borrowed, refuse
from .._words.closing import CloseReason
from .._words.errors import BadRequest, NotFound, Refused
from .._words.events import Closed, DrainFinished, DrainStarted, Event, Failed
from .._words.identity import Identity
from .._words.limits import Limits, Policies, Timeouts
from .._words.profiles import Profile, choose_profile
from .._words.wire import Wire
from .audience import Audience
from .audit import AuditHealth, audit, audit_periodically
from .authority import Authority
from .connection import Connection
from .journal import Journal
from .keeper import start_keeper
from .lifecycle import start
from .nodes import Nodes, Remote
from .run import Run, live
from .tally import Statistics, Tally, take_statistics

P = ParamSpec("P")
Handler = Callable[[Connection], Awaitable[None]]
#: Members of a room, with their metadata there; among other nodes, also theirs.
RoomShare = dict[Connection | Remote, Any]
RoomWatcher = Callable[[Audience, RoomShare, RoomShare], None]
#: A drain that has a rate closes so many times per second.
_WAVES_PER_SECOND = 10


@attrs.define(eq=False)
class Supervisor:
    """Owns WebSocket connections: every user a nursery, every connection a child task. See `open_supervisor`."""

    profile: Profile
    audit_health: AuditHealth
    _ledger: Ledger = attrs.field(repr=False)
    _tally: Tally = attrs.field(repr=False)
    #: Judges tokens while connections are open; whoever serves them sets it.
    authority: Authority | None = attrs.field(default=None, repr=False)
    #: The other nodes; whoever opens a cluster sets it.
    nodes: Nodes | None = attrs.field(default=None, repr=False)
    #: Tells a restarted supervisor, or cluster, from the one before: numbers of messages are of one epoch.
    epoch: str = attrs.field(factory=partial(secrets.token_hex, 4))
    _epoch_watchers: dict[Callable[[Supervisor], None], None] = attrs.field(factory=dict, init=False, repr=False)

    # -- connections -------------------------------------------------------------------------------------------

    async def start(self, wire: Wire, identity: Identity, handler: Handler) -> Connection:
        """Admit a connection and run ``handler(connection)`` in a task of its own; returns once that is started.

        Raises `Refused` (`LimitReached`, `HardLimitReached`, `Superseded`, `Draining`) if it may not come in; the
        wire is then the caller's still, and untouched. Takes at most ``timeouts.evict``, plus ``timeouts.wait`` under
        `Overflow.WAIT`.
        """
        ledger = self._ledger
        conn = Connection(wire=wire, supervisor=self, ledger=ledger, **ledger.credentials(identity, handler))
        await start(ledger, conn, self.nodes)
        return conn

    async def supervise(self, wire: Wire, identity: Identity, handler: Handler) -> CloseReason:
        """`start`, then wait until it has ended; returns why it did.

        A handler that ignores its cancellation does not keep this from returning. If this call is cancelled, the
        connection leaves, which is waited for: at most ``timeouts.close``.
        """
        conn = await self.start(wire, identity, handler)
        try:
            await conn.wait_gone()
        except trio.Cancelled:
            self._ledger.leave(conn, CloseReason.GOING_AWAY)
            with trio.CancelScope(shield=True):
                await conn.wait_gone()
            raise
        assert conn.end is not None
        return conn.end.reason

    def handler(
        self, handler: Handler, *, identify: Callable[[WebSocketRequest], Identity | Awaitable[Identity]]
    ) -> Callable[[WebSocketRequest], Awaitable[None]]:
        """A handler for `trio_websocket.serve_websocket`, whose connections are then supervised.

        ``identify(request)`` says whose a connection is; it may be async, and may raise `Refused`, which is answered
        with its HTTP status, as is a ValueError (400). What an existing server cannot be protected from is said in
        ``docs/serve-websocket.md``.
        """

        async def serve(request: WebSocketRequest) -> None:
            try:
                identity = identify(request)
                if not isinstance(identity, Identity):
                    identity = await identity
                await self.supervise(Borrowed(request), identity, handler)
            except (Refused, ValueError) as refusal:
                status = refusal.status if isinstance(refusal, Refused) else BadRequest.status
                await refuse(request, status, str(refusal))

        return serve

    def connections(self, *, user: str | None = None, session: str | None = None) -> tuple[Connection, ...]:
        """The admitted connections that are not leaving, oldest first; of one user, of one of their sessions."""
        if user is None:
            chosen: Iterable[Stay] = self._ledger.total.claims
        else:
            record = self._ledger.users.get(user)
            chosen = () if record is None else record.roster.claims
        matching = (stay for stay in chosen if session is None or stay.identity.session == session)
        return cast("tuple[Connection, ...]", tuple(matching))

    def connection(self, connection: str) -> Connection:
        """The connection with this id; `NotFound` if there is none, or it is gone."""
        try:
            return cast("Connection", self._ledger.connections[connection])
        except KeyError:
            raise NotFound(f"no connection {connection!r}") from None

    def stuck(self) -> tuple[Connection, ...]:
        """The connections that were set aside, and whose handlers are still there; `closed` says where they hang."""
        return cast("tuple[Connection, ...]", tuple(self._ledger.total.files[Stage.STUCK]))

    def user(self, user: str) -> Audience:
        """All connections of one user, as an audience."""
        return Audience(self._ledger, Group("user", user), self.nodes)

    def room(self, room: Hashable) -> Audience:
        """The members of one room."""
        return Audience(self._ledger, Group("room", room), self.nodes)

    def run(self, run: Hashable) -> Audience:
        """Those who follow something of the application's own by this name, see `Connection.follow`.

        Not the followers of a `Run`: it knows those itself, so that no name that a client may choose leads to them.
        """
        return Audience(self._ledger, Group("run", run))

    @enable_ki_protection
    def start_run(
        self,
        user: str,
        async_fn: Callable[Concatenate[Run, P], Awaitable[Any]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Run:
        """Run ``async_fn(run, *args, **kwargs)`` as a task of `user`'s own; returns at once.

        It outlives the connection that wanted it, and ends with its user: when they have had no connection for
        ``timeouts.linger``, it is cancelled. What it raises is logged, told to its followers (the exception's type
        only) and to whoever awaits `Run.wait`, and hurts nobody. `NotFound` if the user is not here, `RunLimitReached`
        beyond ``limits.runs``.
        """
        ledger = self._ledger
        host = ledger.users.get(user)
        if host is None or host.nursery is None:
            raise NotFound(f"user {user!r} is not here")
        backlog = Backlog(ledger.limits.run_messages, ledger.limits.run_bytes)
        name = getattr(async_fn, "__name__", type(async_fn).__name__)
        run = Run(
            ledger.prefix + ledger.runs.number(),
            name,
            user,
            host,
            trio.current_time(),
            backlog,
            ledger=ledger,
            nodes=self.nodes,
        )
        ledger.runs.begin(run, ledger.limits)
        if self.nodes is not None:
            self.nodes.know(run)
        start: Callable[[], Awaitable[None]] = partial(live, ledger, run, async_fn, *args, **kwargs)
        host.nursery.start_soon(start, name=f"run {run.id}")
        return run

    def runs(self, user: str | None = None) -> tuple[Run, ...]:
        """The runs that have not ended, oldest first; of one user, the last that have too."""
        if user is None:
            return cast("tuple[Run, ...]", tuple(self._ledger.runs.active.values()))
        host = self._ledger.users.get(user)
        return () if host is None else cast("tuple[Run, ...]", tuple(host.runs.values()))

    def rooms(self) -> tuple[Any, ...]:
        """The names of all rooms; a room without members does not exist."""
        return tuple(group.name for group, _ in self._ledger.memberships.of_kind("room"))

    # -- seen from outside -------------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._ledger.limits

    @property
    def timeouts(self) -> Timeouts:
        """The time-outs in force."""
        return self._ledger.timeouts

    @property
    def policies(self) -> Policies:
        """The policies in force."""
        return self._ledger.policies

    @property
    def draining(self) -> bool:
        """Whether nobody is admitted any more."""
        return not self._ledger.open

    def statistics(self) -> Statistics:
        """How things stand now, as a frozen snapshot."""
        return take_statistics(self._ledger, self._tally)

    def audit(self) -> tuple[str, ...]:
        """Recompute everything now, from Trio's task tree up; returns each inconsistency, so normally ``()``."""
        return audit(self._ledger)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Have ``subscriber(event)`` called after each event; returns what ends the subscription.

        It is called synchronously, when the state has settled, and may ask and tell the supervisor anything. What it
        raises is reported to the other subscribers and hurts nobody.
        """
        subscribers = self._ledger.bulletin.subscribers
        subscribers.append(subscriber)

        def unsubscribe() -> None:
            if subscriber in subscribers:
                subscribers.remove(subscriber)

        return unsubscribe

    def watch_rooms(self, watcher: RoomWatcher) -> None:
        """Have ``watcher(room, joined, left)`` called whenever connections have come to a room, or left it.

        `joined` and `left` map connections to their metadata there; who changes it has joined, too. Called like a
        subscriber, of each room once for all that a step has changed: a take-over is one call, with both. The same
        watcher is registered once, however often it asks.
        """

        def tell(diff: Diff) -> None:
            joined, left = cast("RoomShare", diff.joined), cast("RoomShare", diff.left)
            watcher(self.room(diff.room), joined, left)

        self._ledger.bulletin.watchers.setdefault(watcher, tell)

    def tell_watchers(self, room: Audience, joined: RoomShare, left: RoomShare) -> None:
        """Connections at other nodes have come to a room, or left it: those who watch rooms here are told."""
        for watcher in tuple(self._ledger.bulletin.watchers):
            if watcher is not self.nodes:
                try:
                    cast("RoomWatcher", watcher)(room, joined, left)
                except Exception as exception:  # noqa: BLE001 - reported as a Failed event; it is the watcher's own
                    self.report("watcher", exception)

    def change_epoch(self) -> None:
        """Numbers of messages begin anew, because whoever gives them has forgotten all: those who know any are told."""
        for watcher in tuple(self._epoch_watchers):
            watcher(self)

    def watch_epoch(self, watcher: Callable[[Supervisor], None]) -> None:
        """Have ``watcher(supervisor)`` called when `epoch` has changed; once, however often it is registered."""
        self._epoch_watchers[watcher] = None

    async def empty(self) -> None:
        """Admit nobody any more, and have everybody leave (1001), as at the end of `open_supervisor`."""
        self._ledger.shut()
        self._ledger.leave_all(self._ledger.total.claims, CloseReason.GOING_AWAY)
        with trio.move_on_after(self.timeouts.close):
            await _gone([stay for stage in ENDING for stay in self._ledger.total.files[stage]])

    def post(self, event: Event) -> None:
        """Tell all subscribers of something that is no connection's: what a server sees, say."""
        self._ledger.post(event)

    def report(self, what: str, exception: BaseException) -> None:
        """Tell all subscribers that something has failed which belongs to no connection; see `events.Failed`."""
        self._ledger.post(Failed(at=trio.current_time(), what=what, exception=exception))

    # -- cleaning up by hand -----------------------------------------------------------------------------------

    async def disconnect(self, connection: str, reason: CloseReason = CloseReason.KICKED) -> Closed:
        """End one connection; returns how it closed. `NotFound` if there is none with this id."""
        conn = self.connection(connection)
        await self._end([conn], reason)
        assert conn.closed is not None
        return conn.closed

    async def disconnect_user(
        self, user: str, *, session: str | None = None, reason: CloseReason = CloseReason.KICKED
    ) -> tuple[Closed, ...]:
        """End every connection of one user, or of one of their sessions. `NotFound` if there is none."""
        chosen = self.connections(user=user, session=session)
        if not chosen:
            what = f"user {user!r}" if session is None else f"session {session!r} of user {user!r}"
            raise NotFound(f"{what} has no connections")
        return await self._end(chosen, reason)

    async def disconnect_all(self, reason: CloseReason = CloseReason.KICKED) -> tuple[Closed, ...]:
        """End every connection there is. Newcomers are still admitted; see `drain`."""
        return await self._end(self.connections(), reason)

    async def revoke(self, user: str) -> tuple[Closed, ...]:
        """End every connection of one user (4506), those that still wait for a place too; returns how they closed.

        With an `Authority`, no credential of theirs is believed any more that was issued until now.
        """
        if self.authority is not None:
            self.authority.revoke(user)
        record = self._ledger.users.get(user)
        theirs = () if record is None else (*record.roster.files[Stage.QUEUED], *record.roster.claims)
        return await self._end(theirs, CloseReason.REVOKED)

    async def expire_idle(self, older_than: float) -> tuple[Closed, ...]:
        """End every connection that has been without activity for `older_than` seconds or longer (4001)."""
        if not older_than >= 0:
            raise ValueError(f"older_than must be at least 0 s, is {older_than!r}")
        now = trio.current_time()
        chosen = [conn for conn in self.connections() if now - conn.last_active >= older_than]
        return await self._end(chosen, CloseReason.IDLE)

    async def shed(self) -> tuple[Closed, ...]:
        """Emergency cleanup by hand: end all that are unresponsive or long idle, whatever the fill (4006)."""
        return await _gone(self._ledger.shed())

    async def drain(self, rate: float = math.inf, deadline: float | None = None) -> tuple[Closed, ...]:
        """Admit nobody any more, and end all connections (1012), `rate` of them per second.

        Whoever is left after `deadline` seconds (default ``timeouts.drain``) is told at once. Takes at most that and
        ``timeouts.close``. Returns how each closed.
        """
        if not rate > 0:
            raise ValueError(f"rate must be more than 0 connections per second, is {rate!r}")
        seconds = self.timeouts.drain if deadline is None else deadline
        if not seconds >= 0:
            raise ValueError(f"deadline must be at least 0 s, is {deadline!r}")
        ledger = self._ledger
        ledger.shut()
        everybody = [stay for stage in ENDING for stay in ledger.total.files[stage]]
        connections = sum(stay.begun for stay in everybody)
        ledger.post(DrainStarted(at=trio.current_time(), connections=connections))
        with trio.move_on_after(seconds):
            await self._leave_in_waves(everybody, rate)
        ledger.leave_all(everybody, CloseReason.RESTART)
        closed = await _gone(everybody)
        stuck = sum(record.stuck_at is not None for record in closed)
        ledger.post(DrainFinished(at=trio.current_time(), closed=len(closed), stuck=stuck))
        return closed

    async def set_limits(self, **changes: Any) -> tuple[Closed, ...]:
        """Change some of the `limits` while everything runs: ``await supervisor.set_limits(per_user=3)``.

        Who waits for room that there is now comes in at once. Who is beyond a limit now leaves (4505), by its policy;
        under a policy that refuses, the newest do. Returns how they closed. Sizes and rates of messages stay, for each
        connection, what they were when it came. An unknown name is a TypeError, a bad value a ValueError, and neither
        changes anything.
        """
        return await _gone(self._ledger.set_limits(attrs.evolve(self.limits, **changes)))

    async def cut(self) -> tuple[Closed, ...]:
        """Admit nobody any more, and end all connections now, without waiting for their goodbyes."""
        self._ledger.shut()
        return await _gone(self._ledger.cut())

    async def _leave_in_waves(self, everybody: list[Stay], rate: float) -> None:
        size = max(1, math.ceil(rate / _WAVES_PER_SECOND)) if rate < math.inf else len(everybody)
        for first in range(0, len(everybody), max(1, size)):
            if first:
                await trio.sleep(size / rate)
            self._ledger.leave_all(everybody[first : first + size], CloseReason.RESTART)

    async def _end(self, chosen: Iterable[Stay], reason: CloseReason) -> tuple[Closed, ...]:
        leaving = tuple(chosen)
        self._ledger.leave_all(leaving, reason)
        return await _gone(leaving)


async def _gone(stays: Iterable[Stay]) -> tuple[Closed, ...]:
    """Wait until everything of `stays` is given back; returns the records of those that had begun, in the same order.

    Who was still waiting for a seat was never admitted, and is refused.
    """
    leaving = tuple(stays)
    for stay in leaving:
        await cast("Connection", stay).wait_gone()
    return tuple(stay.closed for stay in leaving if stay.begun and stay.closed is not None)


@contextlib.asynccontextmanager
async def open_supervisor(
    *,
    limits: Limits = Limits(),
    timeouts: Timeouts = Timeouts(),
    policies: Policies = Policies(),
    profile: Profile | None = None,
) -> AsyncGenerator[Supervisor, None]:
    """A supervisor, for the length of an ``async with`` block.

    When the block is left, however it is left, all connections leave (1001), and the exit waits for them: at most
    ``timeouts.close``, and longer only for stuck handlers, each of which has been reported with the line at which it
    hangs. `profile` is chosen by the environment unless given; see `choose_profile`.
    """
    chosen = choose_profile() if profile is None else profile
    async with _open_quiet_nursery() as nursery:
        ledger = Ledger(
            limits, timeouts, policies, lambda user: start_keeper(nursery, ledger, user), Roster.of(limits.total)
        )
        supervisor = Supervisor(chosen, AuditHealth(chosen.audit_interval), ledger, Tally())
        supervisor.subscribe(supervisor._tally)
        supervisor.subscribe(Journal())
        await nursery.start(audit_periodically, ledger, supervisor.audit_health)
        try:
            yield supervisor
        finally:
            ledger.shut()
            ledger.leave_all(ledger.total.claims, CloseReason.GOING_AWAY)
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _open_quiet_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery that is nobody's business: what its body raises comes out as it is, in no group."""
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exception:  # noqa: ASYNC103, BLE001 - raised again below
                failure = exception
    except trio.Cancelled:  # noqa: ASYNC103 - swallowed only when something else is raised instead
        if failure is None:  # else it is what the body has raised that must be known
            raise
    if failure is not None:
        try:
            raise failure
        finally:
            del failure
