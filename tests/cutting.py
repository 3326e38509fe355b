"""Clients that talk while they are cut off, and what each of them must have heard in the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Any

import attrs
import trio

from supervisor import ClusterOptions, Hub, Limits, Options, Overflow, Policies, Timeouts
from supervisor.client import Client, Gap, Message, OutcomeUnknown, RunEvent, open_client
from tests.proxy import Cut, Proxy, open_proxy
from tests.serving import open_server

NAMES = ("ann", "bob", "cid")


async def counting(run, data) -> int:
    """An agent that says one number after another."""
    for number in range(data):
        run.emit("step", number)
        await trio.sleep(0.005)
    return data


@attrs.define(eq=False)
class Talker:
    """One client, what it has said, and what it has heard."""

    user: str
    client: Client | None = None
    #: What it has said in the room, with the number it was told, or None if nobody knows.
    said: list[tuple[str, int | None]] = attrs.field(factory=list)
    heard: list[Message] = attrs.field(factory=list)
    gaps: list[Gap] = attrs.field(factory=list)
    runs: dict[str, list[RunEvent]] = attrs.field(factory=dict)
    begun: list[str | None] = attrs.field(factory=list)
    #: What it waits for: to have come to this number of the room, and to the end of all its runs.
    goal: float = math.inf
    reached: trio.Event = attrs.field(factory=trio.Event)

    async def listen(self) -> None:
        assert self.client is not None
        async for it in self.client:
            match it:
                case Message():
                    self.heard.append(it)
                case Gap():
                    self.gaps.append(it)
                case RunEvent():
                    self.runs.setdefault(it.run, []).append(it)
            self.look()

    def look(self) -> None:
        """Whether it has come to its goal."""
        heard = [message.seq for message in self.heard if message.room]
        told = [gap.until for gap in self.gaps if gap.room and gap.until]
        runs = [self.runs.get(run) for run in self.begun if run is not None]
        over = all(events and events[-1].event == "run_ended" for events in (*self.runs.values(), *runs))
        if over and max(*heard[-1:], *told[-1:], 0, 0) >= self.goal:
            self.reached.set()

    async def talk(self, until: trio.Event) -> None:
        number = 0
        while not until.is_set() or number < 10:
            number += 1
            await self.say(f"{self.user} {number}")
            if number % 20 == 5:
                await self.begin()
            if number % 5 == 0:
                await trio.sleep(0.002)

    async def say(self, text: str) -> None:
        try:
            self.said.append((text, await self.client.publish("room", text)))
        except OutcomeUnknown:
            self.said.append((text, None))

    async def begin(self) -> None:
        try:
            self.begun.append(await self.client.run("counting", 20))
        except OutcomeUnknown:
            self.begun.append(None)


#: What a server needs to have three of them cut off at once.
LIMITS: dict[str, Any] = {"per_user": 1, "runs": 100}
hub = Hub({"counting": counting})


async def converse(
    cuts: Iterator[Cut], nodes: Sequence[ClusterOptions | None] = (None,), **limits: Any
) -> tuple[Proxy, list[Talker], list[Message]]:
    """Have three clients talk through a proxy until it has nothing left to cut; who is never cut writes it down.

    Of several nodes, each connection comes to another one.
    """
    settings: dict[str, Any] = {
        "limits": Limits(**LIMITS, **limits),
        "policies": Policies(overflow_user=Overflow.REJECT),  # so that only a take-over gets in
        "timeouts": Timeouts(linger=30),
    }
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(open_server(hub, Options(cluster=node), **settings)) for node in nodes
        ]
        server = servers[0]
        ports = cycle([server.port for server in servers])
        proxy = await stack.enter_async_context(open_proxy(ports, cuts))
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def enter(name: str, port: int) -> Talker:
            url = f"ws://127.0.0.1:{port}/ws?user={name}"
            client = await stack.enter_async_context(open_client(url, longest_pause=0.01, heartbeat=0.2, patience=0.2))
            talker = Talker(name, client)
            nursery.start_soon(talker.listen)
            await client.join("room")
            return talker

        clerk = await enter("clerk", server.port)
        talkers = [await enter(name, proxy.port) for name in NAMES]
        async with trio.open_nursery() as talking:
            for talker in talkers:
                talking.start_soon(talker.talk, proxy.exhausted)
        said = (number for talker in talkers for _, number in talker.said if number is not None)
        goal = max(server.supervisor.room("room").last, *said)
        for talker in (clerk, *talkers):
            talker.goal = goal
            talker.look()
            await talker.reached.wait()
        assert all(server.supervisor.audit() == () for server in servers)
        assert not clerk.gaps
        nursery.cancel_scope.cancel()
    return proxy, talkers, clerk.heard


def judge(talkers: list[Talker], record: list[Message]) -> None:
    """Everybody has heard what was said, once, in order, and been told of what they have not."""
    numbers = [message.seq for message in record]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    texts = [f"{message.sender}: {message.data}" for message in record]
    assert len(set(texts)) == len(texts), "said twice"
    by_number = {message.seq: message for message in record}
    for talker in talkers:
        room = [message for message in talker.heard if message.room == "room"]
        heard = [message.seq for message in room]
        assert heard == sorted(set(heard)), "twice, or in another order"
        missing = set(range(heard[0], heard[-1] + 1)) - set(heard)
        excused = {number for gap in talker.gaps if gap.room for number in range(gap.after + 1, (gap.until or 0) + 1)}
        assert missing <= excused, f"missing without a word: {sorted(missing - excused)}"
        assert not excused & set(heard), "called missing, and heard"
        for message in room:
            assert message == by_number[message.seq]
        for text, number in talker.said:
            if number is not None:
                assert (by_number[number].data, by_number[number].sender) == (text, talker.user)
        mine = [message.data for message in record if message.sender == talker.user]
        certain = [text for text, number in talker.said if number is not None]
        assert [text for text in mine if text in certain] == certain, "its own order"
        for run, events in talker.runs.items():
            steps = [event.seq for event in events if event.data != {"outcome": None}]
            lost = [gap for gap in talker.gaps if gap.run == run]
            assert steps == sorted(set(steps))
            assert lost or steps == list(range(1, 22)), f"{run}: {steps}"
        assert set(filter(None, talker.begun)) <= talker.runs.keys()
