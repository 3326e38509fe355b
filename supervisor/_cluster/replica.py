"""A replica: what one node knows of one audience, so that whoever comes back to it finds what they need here."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import attrs
import trio

from .._decisions.memberships import Group

Card = dict[str, Any]


class Said(NamedTuple):
    """A message, as it is told among nodes; `age` in seconds."""

    number: int
    exclude: str | None
    text: str
    age: float = 0.0


@attrs.define(eq=False)
class Replica:
    """Of its messages it knows the numbers; they are themselves in the histories of the books.

    While something is missing, whatever comes is held, until all that the engine still has is known.
    """

    group: Group
    #: Nothing is missing now.
    whole: bool = False
    #: The number of the last message that was heard; None before the first answer.
    last: int | None = None
    ready: trio.Event = attrs.field(factory=trio.Event)
    wanted_at: float = 0.0
    #: Members at other nodes, by these.
    others: dict[str, dict[str, Card]] = attrs.field(factory=dict)
    _held: list[Said] = attrs.field(factory=list)
    #: Comings and goings that were heard before it is known who is there; None once that is known.
    moves: deque[tuple[str, str, list[Card]]] | None = attrs.field(factory=deque)

    def miss(self) -> None:
        """Something may have been missed, of everything."""
        self.whole = False
        self.moves = deque()

    def hear(self, said: Said) -> list[Said]:
        """What is to be handed on, now that this has come; nothing, and it is not whole, if something is missing."""
        if self.whole and self.last is not None and said.number > self.last + 1:
            self.whole = False
        if not self.whole:
            self._held.append(said)
            return []
        return self._take(said)

    def settle(self, last: int, kept: list[Said]) -> tuple[list[Said], list[Said]]:
        """What the engine still has, and its last number.

        What is only to be kept, because it was said before this node attended; and what is to be handed on, in order.
        """
        heard = {said.number: said for said in self._held}
        self._held.clear()
        old = [said for said in kept if said.number not in heard] if self.last is None else []
        if self.last is None:
            self.last = old[-1].number if old else min((last, *(number - 1 for number in heard)))
        known = {said.number: said for said in kept} | heard
        told = [said for number in sorted(known) for said in self._take(known[number])]
        self.last = max(self.last, last)
        self.whole = True
        self.ready.set()
        return old, told

    def _take(self, said: Said) -> list[Said]:
        if self.last is not None and said.number <= self.last:
            return []
        self.last = said.number
        return [said]
