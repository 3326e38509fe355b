"""A sequence: what is heard of one audience, each message once and in order, and by name what is missing. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

import attrs

T = TypeVar("T")


@attrs.frozen
class Missing:
    """Numbers whose messages will not come: after `after`, up to and including `until`; None: nobody knows how many."""

    after: int
    until: int | None


@attrs.define(eq=False)
class Sequence(Generic[T]):
    """One audience's numbers, across as many connections as it takes."""

    #: The number of the last message that was handed on; None before any is known.
    last: int | None = None
    #: What was missed has been asked for, and not all of it has been heard yet.
    recovering: bool = False
    #: What came meanwhile, and is not next.
    _held: dict[int, T] = attrs.field(factory=dict)

    def hear(self, number: int, message: T) -> list[T | Missing]:
        """What is to be handed on, now that this one has come."""
        if self.last is None or number == self.last + 1:
            self.last = number
            return [message]
        if number <= self.last:  # replayed, or told twice
            return []
        if self.recovering:
            self._held[number] = message
            return []
        missing = Missing(self.last, number - 1)
        self.last = number
        return [missing, message]

    def recover(self) -> None:
        """Another connection: what is not next is held, until `settle`."""
        self.recovering = self.last is not None

    def settle(self, last: int) -> list[T | Missing]:
        """The server has sent what it still had, and its last number was `last` then."""
        self.recovering = False
        held, self._held = self._held, {}
        if self.last is None:
            self.last = last
        told = [thing for number in sorted(held) for thing in self.hear(number, held[number])]
        if self.last < last:
            told.append(Missing(self.last, last))
            self.last = last
        return told

    def restart(self, last: int | None = None) -> list[T | Missing]:
        """Another server, with numbers of its own, which has come to `last`: nobody knows what was missed."""
        before, self.last = self.last, last
        self.recovering = False
        self._held.clear()
        return [] if before is None else [Missing(before, None)]
