"""Load on a server somewhere, over real sockets: many clients that do one thing, and how long each of them waited."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext

import attrs
import trio

from .client import WebSocketClient, connect

#: Seconds that one answer may take; what takes longer has failed.
PATIENCE = 10.0
#: A window that fills at once, for those who do not read.
_SMALL = 4096
_ROOM = "load"
_JOIN = json.dumps({"op": "join", "room": _ROOM, "ref": "joined"})


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
    #: From the beginning of the first step to the end of the last.
    _first: float = math.inf
    _last: float = -math.inf

    @contextmanager
    def step(self) -> Iterator[None]:
        """Note how long the block takes; if it is cut off by the end, how long it has taken until then."""
        began = trio.current_time()
        try:
            yield
        except trio.Cancelled:
            self.note(began)
            raise
        self.note(began)

    def note(self, began: float) -> None:
        """A step that began then is over now."""
        now = trio.current_time()
        self.waits.append(now - began)
        self._first, self._last = min(self._first, began), max(self._last, now)

    @property
    def seconds(self) -> float:
        """For how long there were steps."""
        return max(0.0, self._last - self._first) if self.waits else 0.0

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
    token: str | None = attrs.field(default=None, repr=False)
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
        """One connection, gone at the end of the block at the latest; None if that was not possible. To open it is a
        step.
        """
        began = trio.current_time()
        try:
            client = await self.enter(number, outcome)
        except trio.Cancelled:
            outcome.note(began)
            raise
        if client is not None:
            outcome.note(began)
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
            outcome.failures[f"{type(error).__name__} {error}".strip()[:100]] += 1
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
        return await self._hear("", message, self.outcome.step())

    async def greet(self) -> bool:
        """Get over what the server says by itself: say something that is known again, and wait for it."""
        mark = f"greeting {id(self):x}"
        return await self._hear(mark, json.dumps({"op": "ping", "ref": mark}), nullcontext())

    async def _hear(self, mark: str, message: str, step: AbstractContextManager[None]) -> bool:
        """Say `message`, and wait for one that has `mark` in it."""
        try:
            with trio.fail_after(PATIENCE), step:
                await self.client.say(message)
                while mark not in str(await self.client.hear()):
                    pass
        except EOFError:
            self.outcome.closed[self.client.code or 0] += 1
            return False
        except trio.TooSlowError:
            self.outcome.failures["no answer"] += 1
            return False
        return True


async def storm(load: Load, outcome: Outcome) -> None:
    """Everybody at once; then they stay until the time is over."""

    async def arrive(number: int) -> None:
        async with load.client(number, outcome) as client:
            if client is not None:
                outcome.closed[await client.over()] += 1

    with trio.move_on_after(load.seconds):
        async with trio.open_nursery() as nursery:
            for number in range(load.connections):
                nursery.start_soon(arrive, number)


async def churn(load: Load, outcome: Outcome) -> None:
    """Come and leave, come and leave, as many at a time as there are connections."""

    async def come_and_go(number: int) -> None:
        while True:
            async with load.client(number, outcome) as client:
                if client is None:
                    await trio.sleep(0.1)
                    continue
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
                if await talker.greet():
                    while await talker.ask(message):
                        pass

        await _for_a_while(load, talk)


async def broadcast(load: Load, outcome: Outcome, silent: float = 0.0) -> None:
    """One publishes in a room that all are in, and waits until all have it; the hub only."""
    mute = int(load.connections * silent)
    async with load.crowd(outcome, load.connections - mute) as clients, load.crowd(outcome, mute, _SMALL) as others:
        for client in others:
            await client.say(_JOIN)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(_join, client, outcome)
        living = [client for client in clients if client.code is None]
        if len(living) < 2:
            outcome.failures["fewer than two could join"] += 1
            return
        with trio.move_on_after(load.seconds):
            await _publish(load, outcome, living[0], living[1:])


async def _join(client: WebSocketClient, outcome: Outcome) -> None:
    await client.say(_JOIN)
    try:
        with trio.fail_after(PATIENCE):
            while '"ref":"joined"' not in str(await client.hear()):
                pass
    except (EOFError, trio.TooSlowError):
        outcome.closed[client.code or 0] += 1
        client.vanish()


async def _publish(load: Load, outcome: Outcome, speaker: WebSocketClient, listeners: list[WebSocketClient]) -> None:
    """One message after another, each when all who are still there have had the one before."""
    missing: set[WebSocketClient] = set()
    heard, living, began = trio.Event(), set(listeners), trio.current_time()

    async def listen(client: WebSocketClient) -> None:
        nonlocal heard
        try:
            while True:
                if '"type":"message"' in str(await client.hear()) and client in missing:
                    missing.discard(client)
                    outcome.note(began)
                    heard.set()
        except EOFError:
            outcome.closed[client.code or 0] += 1
            living.discard(client)
            missing.discard(client)
            heard.set()

    text = json.dumps({"op": "publish", "room": _ROOM, "data": "x" * load.size})
    async with trio.open_nursery() as nursery:
        for client in listeners:
            nursery.start_soon(listen, client)
        nursery.start_soon(_drink, speaker)
        try:
            while living and speaker.code is None:
                missing |= living
                began = trio.current_time()
                await speaker.say(text)
                with trio.move_on_after(PATIENCE):
                    while missing:
                        await heard.wait()
                        heard = trio.Event()
                if missing:
                    outcome.failures["no delivery"] += len(missing)
                    break
        except trio.Cancelled:
            for _ in missing:
                outcome.note(began)
            raise
        nursery.cancel_scope.cancel()
    if speaker.code is not None:
        outcome.failures["the one who publishes was closed"] += 1


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
                async with load.client(number, outcome) as client:
                    if client is not None:
                        await client.leave()
                await trio.sleep(0.05)


async def _drink(client: WebSocketClient) -> None:
    """Read whatever comes."""
    while client.code is None:
        await client.read()
        client.messages.clear()


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
    await KINDS[kind](load, outcome)
    return outcome
