"""Orders: what one node has all others do, and what they answer."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import attrs
import trio

from .line import Line

Answer = Any
#: Does what is asked for; what it raises is its own failure, and this node answers nothing.
Executor = Callable[[Any], Awaitable[Answer]]


@attrs.define(eq=False)
class Inquiry:
    """A question to all other nodes, and what they have said so far."""

    nodes: frozenset[str]
    answers: dict[str, Answer] = attrs.field(factory=dict)
    over: trio.Event = attrs.field(factory=trio.Event)

    def note(self, node: str, answer: Answer) -> None:
        """One more has answered."""
        if node in self.nodes:
            self.answers[node] = answer
        if self.answers.keys() >= self.nodes:
            self.over.set()


@attrs.define(eq=False)
class Orders:
    """Those that this node gives, and those that it obeys; one after another."""

    line: Line
    node: str
    #: Which nodes there are.
    look: Callable[[float], Awaitable[frozenset[str]]]
    report: Callable[[str, BaseException], None]
    #: What obeys; nobody does until it is set.
    execute: Executor | None = None
    _inquiries: dict[int, Inquiry] = attrs.field(factory=dict)
    _numbers: Any = attrs.field(factory=lambda: count(1))
    _given: trio.MemorySendChannel[tuple[str, int, Any]] = attrs.field(init=False)
    _taken: trio.MemoryReceiveChannel[tuple[str, int, Any]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._given, self._taken = trio.open_memory_channel[tuple[str, int, Any]](math.inf)

    async def ask(self, order: Any, patience: float) -> tuple[dict[str, Answer], frozenset[str]]:
        """What each of the other nodes answers; and those that have not, within `patience` seconds."""
        inquiry = Inquiry(await self.look(patience) - {self.node})
        if not inquiry.nodes:
            return {}, frozenset()
        number = next(self._numbers)
        self._inquiries[number] = inquiry
        try:
            self.line.ask("order", "", json.dumps({"number": number, "order": order}))
            with trio.move_on_after(patience):
                await inquiry.over.wait()
        finally:
            del self._inquiries[number]
        return inquiry.answers, inquiry.nodes - inquiry.answers.keys()

    def hear(self, node: str, text: str) -> None:
        """An order, or an answer to one of ours."""
        heard = json.loads(text)
        number = int(heard["number"])
        if "answer" in heard:
            if number in self._inquiries:
                self._inquiries[number].note(node, heard["answer"])
        elif node != self.node:
            self._given.send_nowait((node, number, heard["order"]))

    async def obey(self) -> None:
        """Do what others order, for ever."""
        async with trio.open_nursery() as nursery:
            async for node, number, order in self._taken:
                if self.execute is not None:
                    nursery.start_soon(self._obey_one, self.execute, node, number, order)

    async def _obey_one(self, execute: Executor, node: str, number: int, order: Any) -> None:
        try:
            answer = await execute(order)
        except Exception as exception:  # noqa: BLE001 - reported as a Failed event; who has ordered it hears nothing
            self.report("order", exception)
            return
        self.line.ask("order", node, json.dumps({"number": number, "answer": answer}))
