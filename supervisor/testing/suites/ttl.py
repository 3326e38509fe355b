"""Time limits are deadlines: what is due ends then, and not at the next sweep."""

from __future__ import annotations

import trio

from ..._words.limits import Limits, Policies
from ..checks import MEMORY, OURS, Budget, Level, check
from ..labs import InMemory, MemoryClient
from ..subject import Client, Lab, NotHere, Settings, expect
from ..wire import Peer
from ._crowd import BOUND, DELAY, ends_by_itself

#: Whatever the handler sends by itself is not what these checks are about.
_QUIET = Policies(sent_is_activity=False)


async def _ends_after(client: Client, since: float, seconds: float, code: int, tolerance: float) -> None:
    with trio.move_on_after(seconds + 60):
        await client.over()
    expect(
        client.code is not None,
        f"still there {trio.current_time() - since:g} s later, expected to end after {seconds:g} s",
    )
    took = trio.current_time() - since
    ends_by_itself([client.code])
    expect(client.code == code, f"ended with {client.code}, expected {code}")
    late = took - seconds  # and a handler may take its time to leave, within the bound
    expect(-1e-3 <= late <= BOUND + tolerance, f"ended after {took:g} s, expected {seconds:g} s")


@check("R06", doors=MEMORY, level=Level.UNIT)
async def an_idle_connection_ends_at_its_deadline(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(idle_ttl=300), policies=_QUIET)) as subject:
        client, since = await subject.connect("ann"), trio.current_time()
        await _ends_after(client, since, 300, 4001, 1e-3)


@check("R06", doors=("sockets",))
async def an_idle_connection_ends_at_its_deadline_on_a_socket(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(idle_ttl=0.5), policies=_QUIET)) as subject:
        since = trio.current_time()  # the other side's clock starts before we hear that we are in
        client = await subject.connect("ann")
        await _ends_after(client, since, 0.5, 4001, DELAY)


@check("R07", doors=MEMORY, level=Level.UNIT)
async def talking_keeps_a_connection(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(idle_ttl=300), policies=_QUIET)) as subject:
        client = await subject.connect("ann")
        for _ in range(3):
            await trio.sleep(200)
            ends_by_itself([client.code])
            if isinstance(client, MemoryClient) and client.wire.inbox:
                raise NotHere("the handler does not read")
            expect(client.code is None, f"ended with {client.code} 200 s after it had spoken")
            await client.say('{"op":"ping"}')
        await _ends_after(client, trio.current_time(), 300, 4001, 1e-3)


@check("R07", doors=MEMORY)
async def being_spoken_to_does_not(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(idle_ttl=300), policies=_QUIET)) as subject:
        client, since = await subject.connect("ann"), trio.current_time()
        if not isinstance(subject, InMemory):
            raise NotHere("nobody here can publish")
        for _ in range(2):
            await trio.sleep(100)
            subject.supervisor.user("ann").publish("for everybody")
        await _ends_after(client, since, 300, 4001, 1e-3)  # and pings were answered all the while


@check("R51", doors=MEMORY, level=Level.UNIT)
async def a_peer_that_answers_nothing_is_found(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(policies=_QUIET)) as subject:
        client, since = await subject.connect("ann", peer=Peer.MUTE), trio.current_time()
        await _ends_after(client, since, 40, 4002, 1e-3)


@check("R06", doors=OURS)
async def nobody_is_left_when_their_time_is_over(lab: Lab, budget: Budget) -> None:
    ttl = 300 if lab.door == "memory" else 0.3
    async with lab.open(Settings(limits=Limits(idle_ttl=ttl), policies=_QUIET)) as subject:
        for number in range(25):
            await subject.connect(f"user-{number % 5}", peer=Peer.NEVER_READS)
        await trio.sleep(ttl + 0.6 + (DELAY if lab.door != "memory" else 0))
        for index, count in (await subject.census()).items():
            expect(count == 0, f"{count} orphaned {index} remain after the time-to-live")
