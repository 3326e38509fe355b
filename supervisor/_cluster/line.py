"""The line: one node's operations, in the order in which they are asked for, each done once, on whatever connection."""

from __future__ import annotations

import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

import attrs
import trio

from .._words.errors import OutcomeUnknown, Unavailable
from .engine import Argument, Engine, EngineLost, OpenEngine, Push

T = TypeVar("T")
#: Operations of one batch, and arguments of one operation, at most: nobody keeps the engine for long.
MOST: Final = 200
MOST_ARGUMENTS: Final = 1000
#: Operations that wait, at most; more are refused.
MOST_WAITING: Final = 50_000
#: They need no memory of the engine's, so they are done also when it has none left.
_FRUGAL = frozenset(
    {
        "renew",
        "leave",
        "give_back",
        "go",
        "touch",
        "exit",
        "look",
        "present",
        "runs",
        "follow",
        "cancel",
        "evicted",
        "rob",
    }
)
#: They only ask, so it does no harm to ask again, and they need no number.
_READS = frozenset({"evicted", "attend", "present", "look", "renew", "runs"})
#: Seconds until the next attempt to reach the engine, at first and at most; all of it is jitter.
_FIRST, _LONGEST = 0.05, 1.0


class Fenced(Exception):
    """The engine has given this node up: what it had is not its own any more."""


@attrs.define(eq=False)
class Operation:
    """One thing that the engine is to do."""

    name: str
    arguments: tuple[Argument, ...]
    #: Called with the answer, in the order in which operations were asked for.
    then: Callable[[Any], object] | None = None
    answer: Any = None
    error: Exception | None = None
    over: trio.Event | None = None

    def settle(self, answer: Any = None, error: Exception | None = None) -> None:
        """It was done, or it was not."""
        self.answer, self.error = answer, error
        if self.then is not None and error is None:
            self.then(answer)
        if self.over is not None:
            self.over.set()


@attrs.define(eq=False)
class Line:
    """Between a node and the engine. `hold` is its task; everybody else only asks.

    One batch is under way at a time, and has a number: if its answer is lost it is sent again, and not done again.
    """

    node: str
    prefix: str
    #: Seconds for which the engine believes that this node lives, after each batch.
    lease: float
    open_engine: OpenEngine
    #: Told of whatever is heard.
    hear: Callable[[Push], None]
    #: Told whenever there is a connection; with the epoch if this node has begun anew, and has nothing.
    connected: Callable[[Engine, str | None], None]
    #: Told that a connection was lost, or could not be had, and why.
    lost: Callable[[str], None]
    #: Told what an answer has raised that could not be understood; it ends nothing.
    failed: Callable[[Exception], None]
    rng: random.Random = attrs.field(repr=False)
    #: Until when this node is known to live, on Trio's clock.
    valid_until: float = -math.inf
    engine: Engine | None = None
    waiting: deque[Operation] = attrs.field(factory=deque)
    _number: int = 0
    #: What was sent and not answered.
    _sent: list[Operation] = attrs.field(factory=list)
    _run: str = ""
    _wanted: trio.Event = attrs.field(factory=trio.Event)

    # -- asking ------------------------------------------------------------------------------------------------

    def ask(self, name: str, *arguments: Argument, then: Callable[[Any], object] | None = None) -> Operation:
        """Have something done, some time; `then` is called with the answer."""
        operation = Operation(name, arguments, then)
        self.waiting.append(operation)
        self._wanted.set()
        return operation

    async def do(self, name: str, *arguments: Argument, patience: float) -> Any:
        """Have something done, and wait for the answer.

        `Unavailable` if it was not done within `patience`, and will not be; `OutcomeUnknown` if nobody can say.
        """
        if self.full:
            raise Unavailable("the other nodes cannot be told fast enough")
        operation = self.ask(name, *arguments)
        operation.over = trio.Event()
        try:
            with trio.move_on_after(patience):
                await operation.over.wait()
        finally:
            if not operation.over.is_set():
                self.forget(operation)
        if operation.error is not None:
            raise operation.error
        if not operation.over.is_set():
            raise OutcomeUnknown(f"{name}: no answer within {patience:g} s")
        return operation.answer

    def forget(self, operation: Operation) -> None:
        """Nobody waits for it any more: it is not sent, if it was not."""
        with contextlib.suppress(ValueError):
            self.waiting.remove(operation)
            operation.settle(error=Unavailable("the other nodes cannot be reached"))

    def drop(self, which: Callable[[Operation], bool]) -> None:
        """These are not to be done any more, and nobody waits for them."""
        self.waiting = deque(operation for operation in self.waiting if not which(operation))

    def restate(self, operations: list[Operation]) -> None:
        """Have these done before everything that waits."""
        self.waiting.extendleft(reversed(operations))
        self._wanted.set()

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing should be added which need not be done."""
        return len(self.waiting) >= MOST_WAITING

    @property
    def alive(self) -> bool:
        """Whether this node's lease is in force."""
        return trio.current_time() < self.valid_until

    # -- holding -----------------------------------------------------------------------------------------------

    async def hold(self) -> None:
        """Keep a connection, for ever."""
        attempts = 0
        while True:
            began = trio.current_time()
            why = await self._converse()
            self.engine = None
            self.lost(why)
            attempts = 0 if trio.current_time() - began > self.lease else attempts + 1
            await trio.sleep(self.rng.uniform(0, min(_LONGEST, _FIRST * 2.0 ** min(attempts, 10))))

    async def _converse(self) -> str:
        try:
            async with self.open_engine() as engine:
                epoch = await self._come_back(engine)
                self.engine = engine
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, engine)
                    self.connected(engine, epoch)
                    await self._work(engine)
        except EngineLost as error:
            return str(error)
        except BaseExceptionGroup as group:  # noqa: ASYNC103 - what is neither is raised again
            faults, rest = group.split((EngineLost, Fenced))
            if faults is None or rest is not None:
                raise
            return str(faults.exceptions[0])
        return "ended"

    async def _listen(self, engine: Engine) -> None:
        async for push in engine.pushes():
            self.hear(push)

    async def _come_back(self, engine: Engine) -> str | None:
        """Go on as the node that we are, if we are it still; else begin anew, and answer the epoch."""
        if self.alive and engine.run == self._run:
            try:
                await self._send(engine, self._sent)
            except Fenced:
                pass
            else:
                return None
        self._run = engine.run
        unsure, self._sent = self._sent, []
        for operation in unsure:
            operation.settle(error=OutcomeUnknown(f"{operation.name}: the answer was lost with the connection"))
        sent_at = trio.current_time()
        enter = Operation("enter", (engine.run, f"{self.rng.getrandbits(32):08x}"))
        _, epoch = await engine.call([*self._head(""), *_spell(enter)], frugal=False)
        self.valid_until = sent_at + self.lease
        return bytes(epoch).decode()

    async def _work(self, engine: Engine) -> None:
        while True:
            if not self.waiting:
                self._wanted = trio.Event()
                with trio.move_on_after(self.lease / 4):
                    await self._wanted.wait()
            self._number += 1
            self._sent = self._take()
            await self._send(engine, self._sent)

    def _take(self) -> list[Operation]:
        """The next batch: operations that only ask, or operations that do something."""
        taken: list[Operation] = []
        while self.waiting and len(taken) < MOST:
            if taken and (self.waiting[0].name in _READS) is not (taken[0].name in _READS):
                break
            taken.append(self.waiting.popleft())
        return taken

    async def _send(self, engine: Engine, batch: list[Operation]) -> None:
        batch = batch or [Operation("renew", ())]
        sent_at = trio.current_time()
        number = "" if batch[0].name in _READS else str(self._number)
        spelled = [part for operation in batch for part in _spell(operation)]
        frugal = all(operation.name in _FRUGAL for operation in batch)
        outcome, *answers = await engine.call([*self._head(number), *spelled], frugal=frugal)
        if outcome == b"fenced":
            self.valid_until = -math.inf
            raise Fenced("this node was given up by the engine")
        self.valid_until = sent_at + self.lease
        self._sent = []
        for operation, answer in zip(batch, answers, strict=True):
            try:
                if isinstance(answer, list) and answer[:1] == [b"error"]:
                    operation.settle(error=OutcomeUnknown(f"{operation.name}: the engine has failed"))
                    raise ValueError(bytes(answer[1]).decode(errors="replace"))
                operation.settle(answer)
            except Exception as exception:  # noqa: BLE001 - reported as a Failed event; somebody has written into the engine
                self.failed(exception)

    def _head(self, number: str) -> list[Argument]:
        return [self.prefix, self.node, number, round(self.lease * 1000)]


def _spell(operation: Operation) -> list[Argument]:
    arguments = [it.encode("utf-8", "surrogatepass") if isinstance(it, str) else it for it in operation.arguments]
    return [operation.name, len(arguments), *arguments]


def in_batches(things: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """So many of them at a time."""
    iterator = iter(things)
    while batch := tuple(islice(iterator, size)):
        yield batch
