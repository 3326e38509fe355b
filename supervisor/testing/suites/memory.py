"""Memory does not grow with the connections that have been."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter

import trio

from ..._words.limits import Limits
from ..checks import MEMORY, OURS, Budget, check
from ..holders import who_holds
from ..labs import Supervised
from ..lines import lines_alive
from ..memory import MB, MemoryProfiler
from ..subject import Lab, NotHere, Settings, Subject, expect
from ._crowd import all_at_once, everybody_leaves, inside, settle_at, wait_for_nobody

_ROUNDS = 12


@check("R21", "R23", doors=OURS)
async def memory_does_not_grow_with_those_who_have_been(lab: Lab, budget: Budget) -> None:
    octets = int(budget.growth_mb * MB / 5 / budget.cycles)  # whoever keeps them is over it after five rounds
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        profiler = MemoryProfiler()
        profiler.start()
        for turn in range(_ROUNDS):
            clients = await all_at_once(subject, [f"user-{turn}-{number % 10}" for number in range(budget.cycles)])
            for client in inside(clients):
                await client.say(bytes(octets))
            await trio.sleep(0.05)
            await everybody_leaves(inside(clients))
            del clients
            await wait_for_nobody(subject)
            profiler.sample()
        growth = profiler.detect(budget.growth_mb)
        expect(not growth.leaking, "; ".join(growth.because))


@check("R21", "R23", doors=MEMORY)
async def no_line_keeps_something_of_every_connection(lab: Lab, budget: Budget) -> None:
    """A record for each connection in some list is too small for the resident set, but not for tracemalloc."""
    rounds, each = 4, 50
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        tracemalloc.start(1)
        try:
            await _come_and_go(subject, -1, each)  # what is made once is made now
            before = lines_alive()
            for turn in range(rounds):
                await _come_and_go(subject, turn, each)
            grown = lines_alive() - before
        finally:
            tracemalloc.stop()
        kept = [f"{line} keeps {count}" for line, count in grown.most_common(5) if count >= 0.9 * rounds * each]
        expect(not kept, f"of {rounds * each} connections that are gone, {'; '.join(kept)}")


async def _come_and_go(subject: Subject, turn: int, count: int) -> None:
    clients = await all_at_once(subject, [f"user-{turn}-{number % 10}" for number in range(count)])
    for client in inside(clients):
        await client.say('{"op":"ping"}')
    await trio.sleep(0.05)
    await everybody_leaves(inside(clients))
    await wait_for_nobody(subject)


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
