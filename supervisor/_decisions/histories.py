"""Histories: what has been said in a room or to a user lately, numbered, for those who come back. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable

import attrs

from .._words.frames import Frame
from .._words.limits import Limits
from .backlog import Backlog

#: What one history counts in bytes, besides its messages: names that somebody has made up are bounded, too.
OVERHEAD = 1024


@attrs.define(eq=False)
class History:
    """One of them: a backlog, and when each of its messages was said."""

    backlog: Backlog
    times: deque[float] = attrs.field(factory=deque)

    def forget_until(self, moment: float) -> None:
        """Drop what is older, and the times of what the backlog has dropped by itself."""
        while len(self.times) > len(self.backlog):
            self.times.popleft()
        while self.times and self.times[0] < moment:
            self.times.popleft()
            self.backlog.drop_oldest()


@attrs.define(eq=False)
class Histories:
    """By audience, the one in which something was said last at the end; bounded in all, in bytes.

    A history that was dropped begins anew beyond whatever it had come to: nobody who comes back with an old number can
    be told that nothing is missing.
    """

    _histories: OrderedDict[Hashable, History] = attrs.field(factory=OrderedDict)
    bytes: int = 0
    #: The greatest number that a history had which was dropped.
    _forgotten: int = 0

    def say(self, audience: Hashable, spell: Callable[[int], Frame], limits: Limits, now: float) -> Frame:
        """Number one more message, and keep it."""
        history = self._histories.get(audience)
        if history is None:
            history = self._histories[audience] = History(Backlog(limits.history_messages, limits.history_bytes))
            history.backlog.last = self._forgotten
            self.bytes += OVERHEAD
        backlog = history.backlog
        frame = spell(backlog.last + 1)
        self.bytes -= backlog.bytes
        backlog.add(frame)
        history.times.append(now)
        history.forget_until(now - limits.history_age)
        self.bytes += backlog.bytes
        self._histories.move_to_end(audience)
        while self.bytes > limits.history_bytes_total and self._histories:
            _, oldest = self._histories.popitem(last=False)
            self.bytes -= oldest.backlog.bytes + OVERHEAD
            self._forgotten = max(self._forgotten, oldest.backlog.last)
        return frame

    def resume(self, audience: Hashable, last: int, limits: Limits) -> None:
        """Somebody else gives the numbers, and has come to `last`: what is said next has the one after that."""
        self.forget(audience)
        history = self._histories[audience] = History(Backlog(limits.history_messages, limits.history_bytes))
        history.backlog.last = last
        self.bytes += OVERHEAD

    def forget(self, audience: Hashable) -> None:
        """Keep nothing of it."""
        history = self._histories.pop(audience, None)
        if history is not None:
            self.bytes -= history.backlog.bytes + OVERHEAD

    def counted(self) -> int:
        """The bytes of all, counted anew."""
        return sum(history.backlog.bytes + OVERHEAD for history in self._histories.values())

    def last(self, audience: Hashable) -> int:
        """The number of the last message; what a client may come back with."""
        history = self._histories.get(audience)
        return self._forgotten if history is None else history.backlog.last

    def after(self, audience: Hashable, number: int, limits: Limits, now: float) -> tuple[Frame, ...] | None:
        """What was said after `number`; None if some of that is not known any more."""
        history = self._histories.get(audience)
        if history is None:
            return () if number == self._forgotten else None
        self.bytes -= history.backlog.bytes
        history.forget_until(now - limits.history_age)
        self.bytes += history.backlog.bytes
        return history.backlog.after(number)
