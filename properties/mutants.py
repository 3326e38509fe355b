"""The core, broken on purpose: one place each, as somebody tired might break it. The properties must convict every one.

Run one with ``python -m properties.mutants NAME``: it exits with `CONVICTED`, or with 0 if nobody has noticed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import logging
import os
import signal
import sys
from types import ModuleType

import attrs
import trio
from hypothesis import settings

CONVICTED = 3
WORLDS = 150
EXAMPLES = 150
#: Task steps after which a broken world is taken for endless; sound ones take 300 on average. And seconds, for loops
#: that never get to a step.
ENDLESS_STEPS = 20_000
ENDLESS_SECONDS = 10


@attrs.frozen
class Mutant:
    """In `module`, `before` is replaced by `after`."""

    module: str
    before: str
    after: str


BOOKS, LEDGER, LIFECYCLE = "_decisions.books", "_decisions.ledger", "_mechanisms.lifecycle"
MUTANTS: dict[str, Mutant] = {
    # limits
    "the limit is off by one": Mutant("_decisions.roster", "len(self.claims) >= self", "len(self.claims) > self"),
    "a full limit admits instead of rejecting": Mutant(
        "_decisions.admission", "return Refuse(LimitReached(name, limit", "return Admit() or (LimitReached(name, limit"
    ),
    "the youngest is evicted": Mutant(
        "_decisions.admission",
        "case Overflow.EVICT_OLDEST:\n            return next(iter(roster.claims))",
        "case Overflow.EVICT_OLDEST:\n            return next(reversed(roster.claims))",
    ),
    "the busiest is evicted for the idlest": Mutant(
        "_decisions.admission", "next(iter(roster.by_activity))", "next(reversed(roster.by_activity))"
    ),
    "the most modest is evicted for the greediest": Mutant(
        "_decisions.ranking", "self._holding[self._most]", "self._holding[min(self._holding)]"
    ),
    "the evicted keep their claim": Mutant(
        LEDGER, "self._leave(verdict.evict, CloseReason.EVICTED, verdict.sentence, policy=verdict.policy)", "pass"
    ),
    "the evicted are not cancelled": Mutant(
        BOOKS, "            stay.scope.cancel(stay.end.text)\n        stay.host", "            pass\n        stay.host"
    ),
    "newcomers who wait count as stuck": Mutant("_decisions.stay", "self.begun and self.stage", "self.stage"),
    "draining, and still admitting": Mutant(
        LEDGER, "if not self.open:\n            raise", "if False:\n            raise"
    ),
    # emergency cleanup
    "emergency starts one too late": Mutant("_decisions.shedding", "if claims < math.ceil", "if claims <= math.ceil"),
    "emergency sheds one too many": Mutant(
        "_decisions.shedding", "return claims - math.floor", "return 1 + claims - math.floor"
    ),
    "emergency takes the healthy": Mutant("_decisions.shedding", "limits.idle_ttl / 2", "limits.idle_ttl / 100"),
    "emergency never takes the unresponsive": Mutant(
        "_decisions.stay", "return pinged or (stalled", "return False and (stalled"
    ),
    # seats
    "a token is not given back": Mutant(
        LEDGER, "stay.scope = stay.handler = None\n        self._give_back(stay)", "stay.scope = stay.handler = None"
    ),
    "an heir is forgotten": Mutant("_decisions.seats", "        return self.heir\n", "        return None\n"),
    "the slow keep their seats": Mutant(LEDGER, "                self._give_back(slow)", "                pass"),
    "who waits is not promoted": Mutant(
        BOOKS,
        "if self.limits.enforce and self.total.full:\n                return",
        "if True:\n                return",
    ),
    "last come, first served": Mutant(
        BOOKS,
        "for stay in list(self.total.files[Stage.QUEUED]):\n            if self.limits",
        "for stay in reversed(list(self.total.files[Stage.QUEUED])):\n            if self.limits",
    ),
    # other limits
    "lowering lets one too many stay": Mutant(
        LEDGER, "while len(roster.claims) > roster.maximum:", "while len(roster.claims) > roster.maximum + 1:"
    ),
    "lowering takes the wrong end": Mutant(
        "_decisions.admission", "    return next(reversed(roster.claims))", "    return next(iter(roster.claims))"
    ),
    "raising seats nobody": Mutant(LEDGER, "for heir in list(roster.seats.heirs):", "for heir in ():"),
    "other times are not counted": Mutant(
        LEDGER, "            self._retime(stay)\n        return", "            pass\n        return"
    ),
    "a limiter keeps the tokens it had": Mutant(
        "_decisions.seats", "        self.maximum = maximum\n        self._fit()\n", "        self.maximum = maximum\n"
    ),
    "who is only watched is refused": Mutant(
        LEDGER, "            verdict = self._spare_all(stay, verdict)\n", "            pass\n"
    ),
    "who is only watched is shed": Mutant(LEDGER, "if surplus and self.limits.enforce:", "if surplus:"),
    "who is only watched expires": Mutant(
        LEDGER, " and not self.limits.enforce:\n            self._excuse", " and False:\n            self._excuse"
    ),
    # runs
    "one run too many": Mutant("_decisions.runs", "if here >= limits.runs:", "if here > limits.runs:"),
    "a run that is over still counts": Mutant("_decisions.runs", "        self.shares[errand.user] -= 1\n", ""),
    "a run that is over is still there": Mutant("_decisions.runs", "        del self.active[errand.id]\n", ""),
    "runs outlive their user": Mutant(
        "_mechanisms.keeper", "            user.nursery.cancel_scope.cancel()\n            if", "            if"
    ),
    # histories
    "a history begins anew with one": Mutant(
        "_decisions.histories", "            history.backlog.last = self._forgotten\n", ""
    ),
    "what is too old is told": Mutant(
        "_decisions.histories", "            self.backlog.drop_oldest()\n", "            pass\n"
    ),
    "histories are not bounded together": Mutant(
        "_decisions.histories", "while self.bytes > limits.history_bytes_total and", "while False and"
    ),
    "one message too few is told": Mutant(
        "_decisions.backlog", "[number - self.first + 1 :]", "[number - self.first + 2 :]"
    ),
    "a gap is not noticed": Mutant(
        "_decisions.backlog", "if not self.first - 1 <= number <= self.last:", "if not number <= self.last:"
    ),
    # indexes
    "rooms are not left": Mutant(BOOKS, "            self._part(stay, group)\n", "            pass\n"),
    "a membership is forgotten on one side": Mutant(
        "_decisions.memberships", "        del members[stay]\n", "        members.get(stay)\n"
    ),
    "an empty room goes on": Mutant("_decisions.memberships", "        if not members:\n", "        if False:\n"),
    "another key for cleaning up": Mutant(
        BOOKS, "del self.connections[stay.id]", "self.connections.pop(stay.host.name, None)"
    ),
    "users are never closed": Mutant(
        LEDGER, "        del self.users[user.name]\n        return True", "        return False"
    ),
    "a user is closed under another key": Mutant(
        LEDGER, "del self.users[user.name]", "self.users.pop(user.name.upper(), None)"
    ),
    "nobody is forgotten": Mutant(LEDGER, "        self._refile(stay, Stage.GONE)\n", ""),
    # ends
    "closed twice": Mutant(
        BOOKS,
        "            self.bulletin.post(stay.closed)\n",
        "            self.bulletin.post(stay.closed)\n            self.bulletin.post(stay.closed)\n",
    ),
    "the last reason wins": Mutant(
        BOOKS, "        if stay.end is not None:\n            return False\n        now", "        now"
    ),
    "closing has no bound of its own": Mutant(LIFECYCLE, "deadline=since + ledger.timeouts.close", "deadline=math.inf"),
    "nobody is set aside": Mutant(LEDGER, "            self._set_aside(stay)\n", "            pass\n"),
    "the set aside keep their seat": Mutant(
        BOOKS,
        "        self._give_back(stay)\n        self._refile(stay, Stage.STUCK)",
        "        self._refile(stay, Stage.STUCK)",
    ),
    "a handler's failure fails everything": Mutant(
        LIFECYCLE, "return interrupts(exception) or trio", "return True or trio"
    ),
    "a stray cancellation is let out": Mutant(
        LIFECYCLE,
        "return interrupts(exception) or trio",
        "return interrupts(exception) or 'Cancelled' in repr(exception) or trio",
    ),
    "the close frame is sent twice": Mutant(
        LIFECYCLE,
        "            await wire.close(conn.end.code, conn.end.text)\n",
        "            await wire.close(conn.end.code, conn.end.text)\n" * 2,
    ),
    # time
    "the keeper sleeps on": Mutant("_decisions.stay", "            self.alarm.deadline = when\n", "            pass\n"),
    "idle is twice as long": Mutant(
        "_decisions.dues", "stay.spared_at) + limits.idle_ttl", "stay.spared_at) + 2 * limits.idle_ttl"
    ),
    "nobody's lifetime ends": Mutant("_decisions.dues", "ends_at = now + limits.lifetime", "ends_at = math.inf"),
    "a ping is activity": Mutant(
        LEDGER,
        "            stay.pinged_at = trio.current_time()\n",
        "            stay.pinged_at = trio.current_time()\n            self.touch(stay)\n",
    ),
    "publishing is activity": Mutant(
        "_mechanisms.connection",
        "            if self._offer(frame):\n",
        "            if self._offer(frame):\n                self._ledger.touch(self)\n",
    ),
    "activity does not count": Mutant(
        LEDGER,
        "        stay.last_active = trio.current_time()\n        if stay.end is None",
        "        if stay.end is None",
    ),
    "activity is not kept in order": Mutant(LEDGER, "            self.total.by_activity.move_to_end(stay)\n", ""),
    "nobody is pinged": Mutant(LEDGER, "            self._of_wire(stay, stay.wire.ping)\n", ""),
    "the mute are never found": Mutant("_decisions.dues", "if silent_since < stay.pinged_at:", "if False:"),
    "handlers have no deadline of their own": Mutant(BOOKS, "if stay.begun and stay.scope is not None:", "if False:"),
    # by hand
    "disconnecting one user ends everybody": Mutant(
        "_mechanisms.supervisor",
        'has no connections")\n        return await self._end(chosen, reason)',
        'has no connections")\n        return await self._end(self.connections(), reason)',
    ),
    "expiring the idle ends everybody": Mutant(
        "_mechanisms.supervisor", "if now - conn.last_active >= older_than]", "if True]"
    ),
    "the oldest is who has been quiet longest": Mutant(
        LEDGER,
        "            self.total.by_activity.move_to_end(stay)\n",
        "            self.total.by_activity.move_to_end(stay)\n"
        "            for roster in (stay.host.roster, self.total):\n"
        "                if stay in roster.claims:\n"
        "                    roster.claims[stay] = roster.claims.pop(stay)\n",
    ),
    # events and outboxes
    "a subscriber's failure is let out": Mutant(
        "_decisions.bulletin", "if isinstance(event, Failed) and", "raise\n            if isinstance(event, Failed) and"
    ),
    "subscribers are told in the middle of a step": Mutant(
        "_decisions.bulletin",
        "        self.pending.append(event)\n",
        "        self.pending.append(event)\n        self.deliver()\n",
    ),
    "the outbox has no bound": Mutant("_decisions.outbox", "return bool(self.frames) and (", "return False and ("),
    "a user's budget is not looked at": Mutant("_decisions.outbox", "self.total.bytes + len(frame) >", "0 >"),
    "what was queued is never given back": Mutant(
        "_decisions.outbox", "        self._count(-self.bytes)\n", "        self.bytes = 0\n"
    ),
    "the outbox is a stack": Mutant("_decisions.outbox", "self.frames.popleft()", "self.frames.pop()"),
    "a dropped message is still counted": Mutant("_decisions.outbox", "        self._count(-len(frame))\n", ""),
}


@attrs.define
class Patcher(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module with one place of its source replaced."""

    mutant: Mutant

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != f"supervisor.{self.mutant.module}":
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)  # type: ignore[arg-type]
        assert found is not None
        return importlib.machinery.ModuleSpec(fullname, self, origin=found.origin)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        assert module.__spec__.origin is not None
        with open(module.__spec__.origin) as file:
            source = file.read()
        exec(compile(self.patched(source), module.__spec__.origin, "exec"), module.__dict__)

    def patched(self, source: str) -> str:
        assert source.count(self.mutant.before) == 1, f"found {source.count(self.mutant.before)} times"
        return source.replace(self.mutant.before, self.mutant.after)


class Patience(trio.abc.Instrument):
    """Ends the process when a run does not come to its end."""

    steps = 0

    def before_run(self) -> None:
        self.steps = 0
        signal.alarm(ENDLESS_SECONDS)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps > ENDLESS_STEPS:
            os._exit(CONVICTED)


def convict() -> None:
    """Raises as soon as anything is noticed."""
    settings.register_profile("convict", derandomize=True)  # a verdict must not depend on luck
    settings.load_profile("convict")
    from properties import decisions  # not before the patch is in place
    from supervisor.testing.machine import SupervisorMachine
    from supervisor.testing.world import play

    decisions.run_all(EXAMPLES)
    patience = Patience()
    for seed in range(WORLDS):
        world = play(seed, patience)
        assert not world.problems, world.problems[0]
    signal.alarm(6 * ENDLESS_SECONDS)
    decisions.run_machine(SupervisorMachine, EXAMPLES)


def main(name: str) -> int:
    logging.getLogger("supervisor").setLevel(logging.CRITICAL + 1)
    if name != "none":
        sys.meta_path.insert(0, Patcher(MUTANTS[name]))
    importlib.import_module("supervisor")  # so that a patch that fits no more is an error, and no conviction
    try:
        convict()
    except BaseException as exception:  # noqa: BLE001 - what is broken may break in any way
        sys.stderr.write(f"{type(exception).__name__}: {exception}\n")
        return CONVICTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
