"""Load on a server somewhere, over real sockets: many clients that do one thing, and how long each of them waited."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager

import attrs
import trio

from .client import WebSocketClient, connect

#: Seconds that one answer may take; what takes longer has failed.
PATIENCE = 10.0
#: A window that fills at once, for those who do not read.
_SMALL = 4096
_ROOM = "load"


@attrs.define
class Outcome:
    """What has been seen so far."""

    kind: str
    #: Seconds that each step took: an opening, an answer, a delivery.
    waits: list[float] = attrs.field(factory=list)
    #: Those who were not let in, by HTTP status; and those who were closed, by code.
    refused: Counter[int] = attrs.field(factory=Counter)
    closed: Counter[int] = attrs.field(factory=Counter)
    #: What must not happen: nobody listened, or an answer did not come.
    failures: Counter[str] = attrs.field(factory=Counter)
    opened: int = 0
    seconds: float = 0.0

    def percentile(self, percent: float) -> float:
        """How long `percent` of the steps took at most, in seconds; nan before the first."""
        if not self.waits:
            return math.nan
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]

    def lines(self) -> Iterator[str]:
        """For people."""
        rate = len(self.waits) / self.seconds if self.seconds else 0.0
        yield f"{self.kind}: {len(self.waits)} in {self.seconds:.1f} s, {rate:.0f}/s; {self.opened} connections opened"
        if self.waits:
            figures = ((f"p{percent}", self.percentile(percent)) for percent in (50, 90, 99))
            told = "  ".join(f"{name} {seconds * 1000:.1f} ms" for name, seconds in figures)
            yield f"  {told}  max {max(self.waits) * 1000:.1f} ms  mean {statistics.fmean(self.waits) * 1000:.1f} ms"
        for what, counts in (("refused", self.refused), ("closed", self.closed), ("failed", self.failures)):
            if counts:
                yield f"  {what}: " + ", ".join(f"{count} × {key}" for key, count in counts.most_common())


@attrs.frozen(kw_only=True)
class Load:
    """Who comes, from where, and for how long."""

    url: str = "ws://127.0.0.1:8765/ws"
    token: str | None = None
    connections: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    #: Over so many users, in turns; they are called ``load-1`` and so on, unless a token says who they are.
    users: int = attrs.field(default=100, validator=attrs.validators.ge(1))
    seconds: float = attrs.field(default=10.0, validator=attrs.validators.gt(0))
    #: Of a message, in bytes.
    size: int = attrs.field(default=64, validator=attrs.validators.ge(1))

    def _headers(self) -> Mapping[str, str]:
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def _url(self, number: int) -> str:
        glue = "&" if "?" in self.url else "?"
        return self.url if self.token is not None else f"{self.url}{glue}user=load-{number % self.users + 1}"

    @asynccontextmanager
    async def client(self, number: int, outcome: Outcome) -> AsyncGenerator[WebSocketClient | None, None]:
        """One connection, gone at the end of the block at the latest; None if that was not possible."""
        client = await self.enter(number, outcome)
        try:
            yield client
        finally:
            if client is not None:
                client.vanish()

    async def enter(self, number: int, outcome: Outcome, receive_buffer: int | None = None) -> WebSocketClient | None:
        """Open one connection, which is then the caller's to end; None, and noted, if that was not possible."""
        try:
            with trio.fail_after(PATIENCE):
                client = await connect(self._url(number), headers=self._headers(), receive_buffer=receive_buffer)
        except (OSError, trio.TooSlowError) as error:
            outcome.failures[type(error).__name__] += 1
            return None
        if client.refused:
            outcome.refused[client.status] += 1
            return None
        outcome.opened += 1
        return client

    @asynccontextmanager
    async def crowd(
        self, outcome: Outcome, count: int, receive_buffer: int | None = None
    ) -> AsyncGenerator[list[WebSocketClient], None]:
        """So many connections, opened a few at a time; they leave at the end."""
        clients: list[WebSocketClient] = []
        turns = trio.CapacityLimiter(50)

        async def join(number: int) -> None:
            async with turns:
                client = await self.enter(number, outcome, receive_buffer)
            if client is not None:
                clients.append(client)

        try:
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(join, number)
            yield clients
        finally:
            for client in clients:
                client.vanish()


@attrs.define
class Answering:
    """A client of which each message is answered with one, and that hears others in between."""

    client: WebSocketClient
    outcome: Outcome

    async def ask(self, message: str) -> bool:
        """Say it, and wait for the answer; False if there will be none."""
        began = trio.current_time()
        with trio.move_on_after(PATIENCE) as patience:
            await self.client.say(message)
            try:
                await self.client.hear()
            except EOFError:
                self.outcome.closed[self.client.code or 0] += 1
                return False
        if patience.cancelled_caught:
            self.outcome.failures["no answer"] += 1
            return False
        self.outcome.waits.append(trio.current_time() - began)
        return True


async def storm(load: Load, outcome: Outcome) -> None:
    """Everybody at once; then they stay until the time is over."""

    async def arrive(number: int) -> None:
        began = trio.current_time()
        async with load.client(number, outcome) as client:
            if client is not None:
                outcome.waits.append(trio.current_time() - began)
                outcome.closed[await client.over()] += 1

    with trio.move_on_after(load.seconds):
        async with trio.open_nursery() as nursery:
            for number in range(load.connections):
                nursery.start_soon(arrive, number)


async def churn(load: Load, outcome: Outcome) -> None:
    """Come and leave, come and leave, as many at a time as there are connections."""

    async def come_and_go(number: int) -> None:
        while True:
            began = trio.current_time()
            async with load.client(number, outcome) as client:
                if client is None:
                    await trio.sleep(0.1)
                    continue
                outcome.waits.append(trio.current_time() - began)
                with trio.move_on_after(PATIENCE):
                    await client.leave()

    await _for_a_while(load, come_and_go)


async def echo(load: Load, outcome: Outcome) -> None:
    """Each says something, waits for the answer, and says it again: the hub's ping, or a message of ``--app echo``."""
    filling = "x" * max(0, load.size - len('{"op":"ping","":""}'))
    message = json.dumps({"op": "ping", "": filling}, separators=(",", ":"))
    async with load.crowd(outcome, load.connections) as clients:

        async def talk(number: int) -> None:
            if number < len(clients):
                talker = Answering(clients[number], outcome)
                if await _welcomed(talker.client):
                    while await talker.ask(message):
                        pass

        await _for_a_while(load, talk)


async def broadcast(load: Load, outcome: Outcome, silent: float = 0.0) -> None:
    """One publishes in a room that all are in, and waits until all have it; the hub only."""
    mute = int(load.connections * silent)
    async with load.crowd(outcome, load.connections - mute) as clients, load.crowd(outcome, mute, _SMALL) as others:
        for client in (*clients, *others):
            await client.say(json.dumps({"op": "join", "room": _ROOM}))
        heard: trio.MemorySendChannel[None]
        heard, hearing = trio.open_memory_channel[None](math.inf)

        async def listen(client: WebSocketClient) -> None:
            try:
                while True:
                    if '"type":"message"' in str(await client.hear()):
                        outcome.waits.append(trio.current_time() - began)
                        heard.send_nowait(None)
            except EOFError:
                outcome.closed[client.code or 0] += 1
                heard.send_nowait(None)

        began = trio.current_time()
        text = json.dumps({"op": "publish", "room": _ROOM, "data": "x" * load.size})
        with trio.move_on_after(load.seconds):
            async with trio.open_nursery() as nursery:
                for client in clients[1:]:
                    nursery.start_soon(listen, client)
                nursery.start_soon(_drink, clients[0])
                await trio.sleep(0.2)
                while True:
                    began = trio.current_time()
                    await clients[0].say(text)
                    for _ in clients[1:]:
                        await hearing.receive()


async def slow(load: Load, outcome: Outcome) -> None:
    """The same, and one in ten has stopped reading."""
    await broadcast(load, outcome, silent=0.1)


async def zombies(load: Load, outcome: Outcome) -> None:
    """Everybody has stopped reading and answers nothing; how long do newcomers wait?"""
    async with load.crowd(outcome, load.connections, _SMALL):
        with trio.move_on_after(load.seconds):
            number = 0
            while True:
                number += 1
                began = trio.current_time()
                async with load.client(number, outcome) as client:
                    if client is not None:
                        outcome.waits.append(trio.current_time() - began)
                        await client.leave()
                await trio.sleep(0.05)


async def _drink(client: WebSocketClient) -> None:
    """Read whatever comes."""
    while client.code is None:
        await client.read()
        client.messages.clear()


async def _welcomed(client: WebSocketClient) -> bool:
    """The hub speaks first; an echo does not."""
    with trio.move_on_after(0.3):
        try:
            await client.hear()
        except EOFError:
            return False
    return True


async def _for_a_while(load: Load, async_fn: Callable[[int], Awaitable[None]]) -> None:
    with trio.move_on_after(load.seconds):
        async with trio.open_nursery() as nursery:
            for number in range(load.connections):
                nursery.start_soon(async_fn, number)


KINDS: dict[str, Callable[[Load, Outcome], Awaitable[None]]] = {
    "storm": storm,
    "churn": churn,
    "echo": echo,
    "broadcast": broadcast,
    "zombies": zombies,
    "slow": slow,
}


async def run(kind: str, load: Load, outcome: Outcome) -> Outcome:
    """Put one kind of load on; `outcome` may be looked at meanwhile."""
    began = trio.current_time()
    await KINDS[kind](load, outcome)
    outcome.seconds = trio.current_time() - began
    return outcome
