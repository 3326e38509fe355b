"""Memory does not grow with the connections that have been."""

from __future__ import annotations

import gc
from collections import Counter

import trio

from ..._words.limits import Limits
from ..checks import OURS, Budget, check
from ..holders import who_holds
from ..labs import Supervised
from ..memory import MemoryProfiler
from ..subject import Lab, NotHere, Settings, expect
from ._crowd import all_at_once, everybody_leaves, inside, settle_at, wait_for_nobody

_ROUNDS = 12
#: What each connection receives; enough that keeping it shows.
_OCTETS = 100_000


@check("R21", "R23", doors=OURS)
async def memory_does_not_grow_with_those_who_have_been(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        profiler = MemoryProfiler()
        profiler.start()
        for turn in range(_ROUNDS):
            clients = await all_at_once(subject, [f"user-{turn}-{number % 10}" for number in range(budget.cycles)])
            for client in inside(clients):
                await client.say(b"x" * _OCTETS)
            await trio.sleep(0.05)
            await everybody_leaves(inside(clients))
            del clients
            await wait_for_nobody(subject)
            profiler.sample()
        growth = profiler.detect(budget.growth_mb)
        expect(not growth.leaking, "; ".join(growth.because))


@check("R10", "R23", doors=OURS)
async def no_connection_is_held_when_it_is_gone(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        if not isinstance(subject, Supervised):
            raise NotHere("only a supervisor's connections can be followed")
        clients = await all_at_once(subject, [f"user-{number % 10}" for number in range(100)])
        for client in inside(clients):
            await client.say('{"op":"join","room":"r"}')
        await trio.sleep(0.05)
        await everybody_leaves(inside(clients))
        await settle_at(subject)
        gc.collect()
        held = subject.held()
        names = Counter(name for conn in held[:20] for name in who_holds(conn))
        expect(not held, f"{len(held)} connections are gone, and held by {', '.join(names) or 'somebody unknown'}")
