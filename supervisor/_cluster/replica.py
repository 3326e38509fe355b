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

    def settle(self, last: int, kept: list[Said]) -> list[Said]:
        """What the engine still has, and its last number; what is to be handed on then, in order."""
        told = sorted({said.number: said for said in (*self._held, *kept)}.values())
        self._held.clear()
        self.whole = True
        if self.last is None and not kept:
            self.last = last
        elif self.last is None:
            self.last = kept[0].number - 1
        found = [one for said in told for one in self._take(said)]
        self.last = max(self.last, last)
        self.ready.set()
        return found

    def _take(self, said: Said) -> list[Said]:
        if self.last is not None and said.number <= self.last:
            return []
        self.last = said.number
        return [said]
