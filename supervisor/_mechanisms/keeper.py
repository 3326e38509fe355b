"""A user's keeper: the task that hosts their nursery and keeps time for all their connections."""

from __future__ import annotations

import contextvars
from functools import partial

import trio

from .._decisions.ledger import Ledger
from .._decisions.stay import User

#: A keeper that has been woken gives everybody there so many turns before it judges them by the clock: as many as it
#: takes to leave. They take microseconds, unless the loop is busy, and then it is not the handlers who are late.
TURNS = 4


def start_keeper(nursery: trio.Nursery, ledger: Ledger, user: User) -> None:
    """Start the keeper of a new user, in a fresh context: it must not pin what the first arrival carried."""
    name = f"user {user.name!r}"
    contextvars.Context().run(partial(nursery.start_soon, keep, ledger, user, name=name))


async def _see_runs_end(ledger: Ledger, user: User) -> None:
    """They have as long as a handler has; then they are named, and waited for all the same: Trio cannot kill a task."""
    with trio.CancelScope(shield=True, relative_deadline=ledger.timeouts.handler_exit):
        for run in list(user.runs.values()):
            await run.over.wait()
    if any(run.outcome is None for run in user.runs.values()):
        ledger.runs.set_aside(user)


async def keep(ledger: Ledger, user: User) -> None:
    """Open the user's nursery, sleep until something is due, do it; close when the last one has left.

    It is shielded: connections end through the ledger, never by a cancellation from outside.
    """
    try:
        async with trio.open_nursery() as user.nursery:
            user.nursery.cancel_scope.shield = True
            user.opened.set()
            while not ledger.close_user(user):
                with trio.CancelScope(deadline=ledger.next_look(user)) as user.alarm:
                    await trio.sleep_forever()
                rang_at = trio.current_time()
                for _ in range(TURNS if user.vacant_since is None else 0):
                    await trio.lowlevel.checkpoint()
                ledger.look(user, user.alarm.deadline, rang_at)
            user.nursery.cancel_scope.cancel()
            if user.nursery.child_tasks:
                await _see_runs_end(ledger, user)
    finally:
        user.nursery = user.alarm = None
        user.runs.clear()  # which know their user, as long as they are not over
