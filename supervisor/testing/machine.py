"""A Hypothesis machine: random sequences of connecting, failing and leaving; a model must agree after each step.

::

    class MyMachine(SupervisorMachine):
        handler = staticmethod(my_handler)

    TestMyHandler = MyMachine.TestCase
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import attrs
import trio
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from .._mechanisms.connection import Connection
from .._mechanisms.run import Run
from .._mechanisms.supervisor import Handler, Supervisor, open_supervisor
from .._words.closing import CloseReason
from .._words.errors import ConnectionClosed, NotFound, Refused, RunLimitReached
from .._words.identity import Identity
from .._words.limits import Limits, Policies, Timeouts
from . import strategies
from .holders import who_holds
from .model import HAIR, OVERRUN, Guest, Model
from .schedule import Stepper
from .wire import FaultWire, Peer
from .world import STRAY

_logger = logging.getLogger("supervisor")


@attrs.define(eq=False)
class Visit:
    """One attempt to connect: its wire, and the strings of the puppet that handles it."""

    user: str
    wire: FaultWire
    session: str | None = None
    takes_over: bool = False
    strings: tuple[trio.MemorySendChannel[str], trio.MemoryReceiveChannel[str]] = attrs.field(
        factory=lambda: trio.open_memory_channel[str](100)
    )
    guest: Guest | None = None

    async def puppet(self, conn: Connection) -> None:
        """Do as ordered, until something ends it."""
        async for order in self.strings[1]:
            await ORDERS[order](conn)
            if order == "return":
                return


async def _nothing(conn: Connection) -> None:
    await trio.lowlevel.checkpoint()


async def _raise(conn: Connection) -> None:
    await trio.lowlevel.checkpoint()
    raise ValueError("handler raises")


async def _raise_stray(conn: Connection) -> None:
    await trio.lowlevel.checkpoint()
    raise BaseExceptionGroup("stray", [STRAY.with_traceback(None), KeyError(1)])


async def _shield(conn: Connection) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(2)


async def _swallow(conn: Connection) -> None:
    try:
        await trio.sleep(1)
    except trio.Cancelled:  # noqa: ASYNC103 - a handler that nobody should write
        await _shield(conn)  # noqa: ASYNC102 - and that it has no time-out is the point


async def _send(conn: Connection) -> None:
    with trio.move_on_after(0.3):
        await conn.send("from the handler")


async def _receive(conn: Connection) -> None:
    with trio.move_on_after(0.3):
        await conn.receive()


async def _publish(conn: Connection) -> None:
    conn.join("hall", "metadata")
    conn.supervisor.room("hall").publish("to all")
    await trio.lowlevel.checkpoint()


async def _join_while_closing(conn: Connection) -> None:
    conn.join("corridor")
    try:
        await trio.sleep(1)
    finally:
        if conn.end is not None:
            try:
                conn.join("too late")
            except ConnectionClosed:
                pass
            else:
                raise AssertionError("joined while leaving")


async def _close_oldest(conn: Connection) -> None:
    conn.supervisor.connections()[0].close(4321, "by a neighbour")
    await trio.lowlevel.checkpoint()


async def _tell_and_recover(conn: Connection) -> None:
    room = conn.supervisor.room("hall")
    conn.join("hall", "metadata")
    await room.tell({"type": "message"})
    room.recover(conn, max(0, room.last - 2))
    await trio.lowlevel.checkpoint()


async def _start_run(conn: Connection) -> None:
    async def works(run: Run) -> None:
        run.follow(conn)
        for number in range(5):
            run.emit("step", number)
            await trio.sleep(0.3)

    try:
        conn.supervisor.start_run(conn.user, works)
    except RunLimitReached:  # as the audit counts them
        pass
    await trio.lowlevel.checkpoint()


async def _hook(conn: Connection) -> None:
    async def fails() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("hook raises")

    conn.on_close(trio.sleep, 0.2)
    conn.on_close(fails)
    await trio.lowlevel.checkpoint()


ORDERS: dict[str, Callable[[Connection], Any]] = {
    "return": _nothing,
    "raise": _raise,
    "raise a stray Cancelled": _raise_stray,
    "shield": _shield,
    "swallow": _swallow,
    "send": _send,
    "receive": _receive,
    "join and publish": _publish,
    "tell and recover": _tell_and_recover,
    "start a run": _start_run,
    "join while closing": _join_while_closing,
    "close the oldest": _close_oldest,
    "add hooks": _hook,
}


class SupervisorMachine(RuleBasedStateMachine):
    """Steps of any kind, one after another or several at once. `handler` is what connections are given to."""

    #: Your own, as ``staticmethod(my_handler)``; None: a puppet that does whatever the machine orders.
    handler: ClassVar[Handler | None] = None
    visits: Bundle[Visit] = Bundle("visits")

    @initialize(
        seed=strategies.seeds, limits=strategies.limits, timeouts=strategies.timeouts, policies=strategies.policies
    )
    def open(self, seed: int, limits: Limits, timeouts: Timeouts, policies: Policies) -> None:
        """A supervisor of its own, on a schedule of its own."""
        self.stepper = Stepper(seed)
        # What is logged with its traceback is kept by whoever collects the log, and so are the connections in it.
        self._log_level = _logger.level
        _logger.setLevel(logging.CRITICAL + 1)
        gc.collect()
        gc.disable()  # what a cycle holds must be found, not collected
        self.model = Model(limits, timeouts, policies, hears_everything=False)
        self.timeouts = timeouts
        self._opened: list[Supervisor] = []
        self.stepper.call(self._start, limits, timeouts, policies)
        self.supervisor = self._opened[0]

    def _start(self, limits: Limits, timeouts: Timeouts, policies: Policies) -> None:
        assert self.stepper.nursery is not None
        self._leave = trio.Event()
        self._left = trio.Event()
        self.stepper.nursery.start_soon(self._keep_open, limits, timeouts, policies)

    async def _keep_open(self, limits: Limits, timeouts: Timeouts, policies: Policies) -> None:
        async with open_supervisor(limits=limits, timeouts=timeouts, policies=policies) as supervisor:
            supervisor.subscribe(self.model)
            self._opened.append(supervisor)
            await self._leave.wait()
        self._left.set()

    # -- arriving ----------------------------------------------------------------------------------------------

    @rule(target=visits, user=strategies.users, wire=strategies.wires)
    def connect(self, user: str, wire: FaultWire) -> Visit:
        """One more."""
        return self._connect([Visit(user, wire)])[0]

    @rule(target=visits, user=strategies.users, wire=strategies.wires, takes_over=st.booleans())
    def come_back(self, user: str, wire: FaultWire, takes_over: bool) -> Visit:  # noqa: FBT001 - drawn by name
        """One more of a session, which may take over from the one before."""
        return self._connect([Visit(user, wire, "session", takes_over)])[0]

    @rule(target=visits, arrivals=st.lists(st.tuples(strategies.users, strategies.wires), min_size=2, max_size=8))
    def connect_at_once(self, arrivals: list[tuple[str, FaultWire]]) -> Any:
        """Several in one tick, in an order of the schedule's choice."""
        return multiple(*self._connect([Visit(user, wire) for user, wire in arrivals]))

    def _connect(self, visits: list[Visit]) -> list[Visit]:
        def arrive() -> None:
            assert self.stepper.nursery is not None
            for visit in visits:
                self.stepper.nursery.start_soon(self._visit, visit)

        self.stepper.call(arrive)
        return visits

    async def _visit(self, visit: Visit) -> None:
        handler = self.model.watch(type(self).handler or visit.puppet)
        session, takes_over = visit.session, visit.takes_over
        visit.guest = self.model.arriving(visit.user, visit.wire, math.inf, session, takes_over=takes_over)
        try:
            identity = Identity(user=visit.user, session=session, takes_over=takes_over)
            await self.supervisor.supervise(visit.wire, identity, handler)
        except Refused:
            pass

    # -- what peers and handlers do ----------------------------------------------------------------------------

    @rule(visit=visits, message=strategies.messages)
    def peer_sends(self, visit: Visit, message: str | bytes) -> None:
        """A message arrives."""
        self.stepper.call(visit.wire.deliver, message)

    @rule(visit=visits, reason=st.sampled_from([CloseReason.PEER_CLOSED, CloseReason.PEER_LOST]))
    def peer_leaves(self, visit: Visit, reason: CloseReason) -> None:
        """With a close frame, or without."""
        self.stepper.call(visit.wire.hang_up, reason)

    @rule(visit=visits, kind=st.sampled_from([kind for kind in Peer if kind is not Peer.REFUSES]))
    def peer_changes(self, visit: Visit, kind: Peer) -> None:
        """It recovers, or it gets worse."""
        self.stepper.call(visit.wire.become, kind)

    @rule(visit=visits, order=st.sampled_from(list(ORDERS)))
    def handler_is_ordered(self, visit: Visit, order: str) -> None:
        """A puppet does something."""
        self.stepper.call(visit.strings[0].send_nowait, order)

    @rule(seconds=strategies.pauses)
    def time_passes(self, seconds: float) -> None:
        """And whatever is due happens."""
        self.stepper.advance(seconds)

    # -- what operators do -------------------------------------------------------------------------------------

    def _by_hand(
        self, reason: CloseReason, whom: Callable[[Guest], bool], async_fn: Callable[..., Any], *args: Any
    ) -> None:
        async def act() -> None:
            try:
                await async_fn(*args)
            except NotFound:
                pass

        def begin() -> None:
            assert self.stepper.nursery is not None
            self.model.told(reason, whom, for_good=reason is CloseReason.RESTART)
            self.stepper.nursery.start_soon(act)

        self.stepper.call(begin)

    @rule(visit=visits)
    def disconnect(self, visit: Visit) -> None:
        """One connection, by its id."""
        if visit.guest is not None:
            chosen = visit.guest.id
            self._by_hand(CloseReason.KICKED, lambda guest: guest.id == chosen, self.supervisor.disconnect, chosen)

    @rule(user=strategies.users)
    def disconnect_user(self, user: str) -> None:
        """All of one user's."""
        self._by_hand(CloseReason.KICKED, lambda guest: guest.user == user, self.supervisor.disconnect_user, user)

    @rule(older_than=st.sampled_from([0.5, 2.0]))
    def expire_idle(self, older_than: float) -> None:
        """Whoever has been idle for so long."""

        def idle(guest: Guest) -> bool:
            return type(self).handler is not None or guest.idle(trio.current_time()) >= older_than - HAIR

        self._by_hand(CloseReason.IDLE, idle, self.supervisor.expire_idle, older_than)

    @rule()
    def shed(self) -> None:
        """Emergency cleanup by hand."""
        self._by_hand(CloseReason.SHED, lambda guest: False, self.supervisor.shed)

    @rule(rate=st.sampled_from([2.0, 1000.0]))
    def drain(self, rate: float) -> None:
        """The end of the day; nobody is admitted any more."""
        self._by_hand(CloseReason.RESTART, lambda guest: True, self.supervisor.drain, rate, 1.0)

    @rule(limits=strategies.limits, enforce=st.booleans())
    def set_limits(self, limits: Limits, enforce: bool) -> None:  # noqa: FBT001 - drawn by name
        """Other limits, or only watched ones, from now on."""
        changes = attrs.asdict(limits, recurse=False) | {"enforce": enforce}

        def begin() -> None:
            assert self.stepper.nursery is not None
            self.model.limiting(Limits(**changes))
            self.stepper.nursery.start_soon(partial(self.supervisor.set_limits, **changes))

        self.stepper.call(begin)

    @rule()
    def a_subscriber_fails(self) -> None:
        """From now on one raises at everything it is told."""

        def fail(event: object) -> None:
            raise RuntimeError("a subscriber that fails")

        self.stepper.call(self.supervisor.subscribe, fail)

    # -- what must hold ----------------------------------------------------------------------------------------

    @invariant()
    def everything_agrees(self) -> None:
        """The audit finds nothing, and the model has in whom the supervisor has in."""
        if not hasattr(self, "supervisor"):
            return
        orphans = self.stepper.call(self.supervisor.audit)
        assert orphans == (), orphans
        self.stepper.call(self.model.compare, self.supervisor)
        assert self.model.problems == [], self.model.problems
        figures = self.stepper.call(self.supervisor.statistics)
        assert (figures.connections, figures.waiting) == (len(self.model.claims), len(self.model.queue))
        assert figures.admitted == sum(guest.admitted for guest in self.model.guests.values())
        assert sum(figures.closed.values()) == sum(guest.closed is not None for guest in self.model.guests.values())

    def teardown(self) -> None:
        """Once faults stop, everything drains to the exact baseline within the promised time."""
        if not hasattr(self, "stepper"):
            return
        try:
            if hasattr(self, "supervisor"):
                self._drains()
        finally:
            gc.enable()
            _logger.setLevel(self._log_level)
            self.stepper.close()

    def _drains(self) -> None:
        self.stepper.advance(10)  # whoever shields itself comes to an end
        self._close()
        self.stepper.call(self.model.compare_at_the_end, self.supervisor)
        assert self.model.problems == [], self.model.problems
        assert not (living := self.stepper.tasks()), f"tasks that remain: {living}"
        young = gc.get_objects(generation=0)  # nothing has been collected, so it is still among the young
        kept = [thing for thing in young if isinstance(thing, Connection)]
        del young
        assert not kept, f"{len(kept)} connections are gone, and held by {', '.join(who_holds(kept[0]))}"

    def _close(self) -> None:
        def leave() -> None:
            self.model.closing()
            self._leave.set()

        self.stepper.call(leave)
        self.stepper.advance(max(self.timeouts.close + OVERRUN, self.timeouts.handler_exit) + HAIR)
        if not self._left.is_set():
            assert self.supervisor.statistics().stuck, "closed late, though nobody is stuck"
            self.stepper.advance(10)
        assert self._left.is_set(), "does not close"
