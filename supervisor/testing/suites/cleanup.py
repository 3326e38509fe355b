"""However a connection ends, nothing of it is left, within the bound; and cleaning up by hand finds everybody."""

from __future__ import annotations

import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ..._words.limits import Limits
from ..checks import MEMORY, OURS, Budget, Level, check
from ..leaks import garbage
from ..subject import Client, Finding, Lab, Settings, Subject, expect
from ..wire import Peer
from ._crowd import BOUND, all_at_once, closes, disconnected, inside, settle_at

#: As many as had been found in the reports that this project began with.
_ORPHANS = 127


async def _leave(subject: Subject, user: str, client: Client) -> None:
    await client.leave()


async def _vanish(subject: Subject, user: str, client: Client) -> None:
    client.vanish()
    await trio.lowlevel.checkpoint()


async def _is_disconnected(subject: Subject, user: str, client: Client) -> None:
    await subject.disconnect(user)


_WAYS = {"leaving": _leave, "vanishing": _vanish, "being disconnected": _is_disconnected}


@check("R10", "R42", level=Level.UNIT)
async def nothing_is_left_however_it_ends(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        before = dict(await subject.census())
        for way, end in _WAYS.items():
            client = await subject.connect("verify-end", session="one")
            await client.say('{"op":"join","room":"verify"}')
            await end(subject, "verify-end", client)
            try:
                await settle_at(subject, before)
            except Finding as finding:
                raise Finding(f"after {way}: {finding}") from None


@check("R10", "R15", doors=OURS)
async def nothing_is_left_of_a_hundred_and_more_who_vanish(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        clients = await all_at_once(subject, [f"user-{number}" for number in range(_ORPHANS)])
        for client in inside(clients):
            client.vanish()
        await settle_at(subject)


@check("R11", doors=OURS)
async def closing_is_bounded_whatever_the_peer_does(lab: Lab, budget: Budget) -> None:
    kinds = list(Peer) if lab.door == "memory" else [Peer.HEALTHY, Peer.MUTE, Peer.NEVER_READS]
    async with lab.open() as subject:
        for kind in kinds:
            client = await subject.connect("ann", peer=kind)
            before = trio.current_time()
            await subject.disconnect("ann")
            took = trio.current_time() - before
            bound = 0.5 + (1e-6 if lab.door == "memory" else 0.2)
            expect(took <= bound, f"a peer that {kind.value} took {took:.3f} s to be cleaned up, bound 0.5 s")
            if kind is Peer.HEALTHY:
                expect(await closes(client) == 4503, f"it ended with {client.code}, expected 4503")


@check("R18", "R29", doors=OURS)
async def cleaning_up_uses_the_key_of_creation(lab: Lab, budget: Budget) -> None:
    """Half of the connections are made for a database session, half for a socket; both are found."""
    async with lab.open(Settings(limits=Limits(per_user=100, total=200))) as subject:
        names = [f"thread_{'session' if number % 2 else 'websocket_factory'}_{number}" for number in range(100)]
        for name in names:
            await subject.connect("ann", session=name)
        missed = 100 - await disconnected(subject, [("ann", name) for name in names])
        expect(missed == 0, f"{missed} of 100 were not found under their key: {missed} % key mismatch")
        await settle_at(subject)


@check("R15", "R16", doors=MEMORY)
async def one_failure_does_not_stop_the_rest(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        users = ("ann", "bob", "cleo")
        for number in range(30):
            await subject.connect(users[number % 3], peer=list(Peer)[number % 8])
        before = trio.current_time()
        await disconnected(subject, [(user, None) for user in users])
        took = trio.current_time() - before
        expect(took <= 0.5 + 1e-6, f"cleaning up three users at once took {took:.3f} s, bound 0.5 s")
        await settle_at(subject)


@check("R17", "R19", doors=OURS)
async def cleaning_up_needs_no_background_task(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(background=False)) as subject:
        clients = await all_at_once(subject, [f"user-{number}" for number in range(25)], Peer.NEVER_READS)
        ended = await disconnected(subject, [(f"user-{number}", None) for number in range(25)])
        expect(ended == len(inside(clients)), f"{ended} of {len(inside(clients))} could be ended by hand")
        await settle_at(subject)


@check("R10", "R42", doors=MEMORY)
def random_sequences_leave_no_orphan(lab: Lab, budget: Budget) -> None:
    """Random connects, disconnects and failures; who is in is counted by somebody who can only count."""
    operation = st.tuples(
        st.sampled_from(["connect", "connect", "leave", "vanish", "disconnect", "wait"]), st.integers(0, 9)
    )

    @seed(budget.seed)
    @settings(
        max_examples=budget.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(operations=st.lists(operation, min_size=3, max_size=30), schedule=st.integers(0, 2**32 - 1))
    def sequence(operations: list[tuple[str, int]], schedule: int) -> None:
        lab.run(schedule, _play, lab, operations)

    sequence()


async def _play(lab: Lab, operations: list[tuple[str, int]]) -> None:
    async with lab.open(Settings(limits=Limits(per_user=3))) as subject:
        live: dict[str, list[Client]] = {name: [] for name in "abc"}
        for operation, number in operations:
            user = "abc"[number % 3]
            await _operate(subject, operation, user, live)
            for name, clients in live.items():
                with trio.move_on_after(BOUND):  # for those who are leaving just now
                    while await subject.count(name) != _there(clients):  # noqa: ASYNC110 - it can only be asked
                        await trio.sleep(0.01)
                there, count = _there(clients), await subject.count(name)
                expect(count == there, f"Expected {there} connections of {name!r} after {operation}, got {count}")
        for clients in live.values():
            for client in clients:
                if client.code is None:
                    client.vanish()
        await settle_at(subject)


def _there(clients: list[Client]) -> int:
    return sum(client.code is None for client in clients)


async def _operate(subject: Subject, operation: str, user: str, live: dict[str, list[Client]]) -> None:
    theirs = [client for client in live[user] if client.code is None]
    match operation:
        case "connect":
            client = await subject.connect(user)
            live[user] += [] if client.refused else [client]
        case "leave" if theirs:
            await theirs[0].leave()
        case "vanish" if theirs:
            theirs[-1].vanish()
        case "disconnect":
            await subject.disconnect(user)
    await trio.sleep(1.0)
    live[user] = [client for client in live[user] if client.code is None]


@check("R21", "R23", doors=MEMORY, level=Level.UNIT)
async def nothing_is_left_for_the_collector(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        garbage()
        for number in range(10):
            client = await subject.connect(f"user-{number}")
            await client.say('{"op":"join","room":"r"}')
            await client.leave()
            del client
        found = garbage()
        expect(not found, "; ".join(map(str, found)))
