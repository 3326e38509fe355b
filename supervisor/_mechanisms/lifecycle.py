"""One connection's task, from its seats to the moment when nothing of it is left."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from .._decisions.dues import expiry
from .._decisions.ledger import Ledger
from .._decisions.stay import Stage
from .._words.closing import CloseReason
from .._words.errors import ConnectionClosed
from .._words.wire import Wire, WireClosed
from .connection import Connection
from .nodes import Nodes


async def start(ledger: Ledger, conn: Connection, nodes: Nodes | None = None) -> None:
    """Admit `conn`, here and among all nodes, and start its task. Raises `Refused`, and nothing of it is left then.

    Until its task has started, the caller owns whatever it holds.
    """
    ledger.admit(conn)
    try:
        await _wait_for_claim(ledger, conn)
        if nodes is not None and conn.end is None:
            await nodes.claim(conn)
        await _wait_for_seats(ledger, conn)
        if conn.host.nursery is None:
            await conn.host.opened.wait()
        if conn.end is not None:
            raise ledger.give_up_waiting(conn)
        assert conn.host.nursery is not None
        conn.host.nursery.start_soon(live, ledger, conn, name=f"connection {conn.id}")
    except BaseException:
        ledger.withdraw(conn)
        raise


async def _wait_for_claim(ledger: Ledger, conn: Connection) -> None:
    if conn.stage is Stage.QUEUED:
        await _sleep_until_cancelled(conn, ledger.timeouts.wait)
        if not conn.serving:
            raise ledger.give_up_waiting(conn)


async def _wait_for_seats(ledger: Ledger, conn: Connection) -> None:
    if conn.end is None and len(conn.seats) < 2:
        await _sleep_until_cancelled(conn, ledger.timeouts.evict)
        if conn.end is None and len(conn.seats) < 2:
            await trio.lowlevel.checkpoint()  # in a storm a pass takes long: those who leave have their turn first
        if conn.end is None:
            ledger.take_from_the_slow(conn)


async def _sleep_until_cancelled(conn: Connection, at_most: float) -> None:
    """Woken by the ledger or by the time; what has happened is read from the state, never from the waking."""
    with trio.CancelScope(relative_deadline=at_most) as conn.scope:
        await trio.sleep_forever()
    conn.scope = None


async def live(ledger: Ledger, conn: Connection) -> None:
    """The connection's own task: handler, goodbye, and then nothing of it is left."""
    wire = conn.wire
    try:
        async with trio.open_nursery() as nursery:
            await _serve(ledger, conn, wire, nursery)
            assert conn.end is not None
            await _wind_up(ledger, conn, wire, patience=ledger.vacate(conn))
            _cut(conn, wire)
            if nursery.child_tasks:
                _end_tasks(nursery, wire, conn.end.at + ledger.timeouts.close)
    except BaseException as exception:  # noqa: ASYNC103 - what must get out is decided in the next line
        if ends_everything(exception):
            raise
        conn.report("wire", exception)  # in a task of the wire's own: it has brought down the handler
        ledger.leave(conn, CloseReason.FAILED)
    finally:
        ledger.leave(conn, CloseReason.GOING_AWAY)
        ledger.vacate(conn)
        _cut(conn, wire)
        conn.hooks = None
        ledger.forget(conn)


async def _serve(ledger: Ledger, conn: Connection, wire: Wire, nursery: trio.Nursery) -> None:
    """Run the handler inside its deadline. Whatever it raises ends its own connection and nothing else."""
    try:
        with trio.CancelScope() as scope:
            ledger.begin(conn, trio.lowlevel.current_task(), scope, nursery)
            await _open(ledger, conn, wire, nursery)
            if conn.end is None and conn.handler is not None:
                await conn.handler(conn)
    except BaseException as exception:  # noqa: ASYNC103 - what must get out is decided in the next line
        if ends_everything(exception):
            raise
        if not (conn.end is not None and _only_closed(exception)):
            conn.report("handler", exception)
        ledger.leave(conn, CloseReason.FAILED)
    else:
        overdue = scope.cancelled_caught and conn.end is None
        ledger.leave(conn, expiry(conn, ledger.limits)[1] if overdue else CloseReason.RETURNED)


async def _open(ledger: Ledger, conn: Connection, wire: Wire, nursery: trio.Nursery) -> None:
    """Complete the upgrade; a peer that does not let us has left.

    Also when the connection is leaving already: only then can a close frame tell the peer why. It is the keeper's cut
    that bounds this.
    """
    with trio.CancelScope(shield=True, relative_deadline=ledger.timeouts.handshake):
        try:
            await wire.open(nursery, conn.ended_by_wire)
            return
        except WireClosed:
            pass
    ledger.leave(conn, CloseReason.PEER_LOST, "connection lost during the upgrade")
    await trio.lowlevel.checkpoint()


async def _wind_up(ledger: Ledger, conn: Connection, wire: Wire, *, patience: float) -> None:
    """Close politely and run the hooks, in what is left of the time since the first reason.

    The hooks of a stuck handler, whose time had been over long ago, have as much time again.
    """
    if conn.hooks is None:
        await _close(conn, wire, patience)
        return
    assert conn.end is not None
    since = conn.end.at if conn.closed is None else trio.current_time()
    with trio.CancelScope(shield=True, deadline=since + ledger.timeouts.close):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_close, conn, wire, patience)
            for hook, args in conn.hooks:
                nursery.start_soon(_run_hook, conn, hook, args)


async def _close(conn: Connection, wire: Wire, patience: float) -> None:
    """Say goodbye, for no longer than `patience` since the first reason."""
    assert conn.end is not None
    if not patience:
        conn.forced = True
        return
    with trio.CancelScope(shield=True, deadline=conn.end.at + patience) as scope:
        await _say_goodbye(conn, wire)
    conn.forced = scope.cancelled_caught


async def _say_goodbye(conn: Connection, wire: Wire) -> None:
    assert conn.end is not None
    try:
        if conn.end.reason is CloseReason.TOO_SLOW:
            conn.drop_queued()
        else:
            await conn.drained()
        if conn.end.reason.on_wire:
            await wire.close(conn.end.code, conn.end.text)
    except WireClosed:
        pass
    except Exception as exception:  # noqa: BLE001 - reported as a Failed event; the wire is cut next, whatever it was
        conn.report("close", exception)


async def _run_hook(conn: Connection, hook: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
    try:
        await hook(*args)
    except BaseException as exception:  # noqa: ASYNC103 - what must get out is decided in the next line
        if ends_everything(exception):
            raise
        conn.report("hook", exception)


def _cut(conn: Connection, wire: Wire) -> None:
    assert conn.end is not None
    try:
        wire.cut(conn.end.code, conn.end.text)
    except Exception as exception:  # noqa: BLE001 - a wire that breaks its word must not keep the rest from being cleaned
        conn.report("wire", exception)


def _end_tasks(nursery: trio.Nursery, wire: Wire, deadline: float) -> None:
    """Those of a cut wire. Who waits for the peer has been woken by the cut, which costs half of a cancellation."""
    if wire.silent_since is None:
        nursery.cancel_scope.cancel()
    else:
        nursery.cancel_scope.deadline = deadline


def ends_everything(exception: BaseException) -> bool:
    """What interrupts; and a cancellation that comes from outside this connection."""
    return interrupts(exception) or trio.current_effective_deadline() == -math.inf


def interrupts(exception: BaseException) -> bool:
    """Ctrl-C and SystemExit, also inside a group."""
    if isinstance(exception, BaseExceptionGroup):
        return exception.subgroup((KeyboardInterrupt, SystemExit)) is not None
    return isinstance(exception, KeyboardInterrupt | SystemExit)


def _only_closed(exception: BaseException) -> bool:
    """Whether it only says that the connection is over, which a leaving connection's handler may."""
    if isinstance(exception, BaseExceptionGroup):
        return exception.split((ConnectionClosed, WireClosed, trio.Cancelled))[1] is None
    return isinstance(exception, ConnectionClosed | WireClosed)
