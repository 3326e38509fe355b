"""Floods: when there are too many lines of one kind, the rest are counted instead. Pure."""

from __future__ import annotations

import math
from collections import Counter

import attrs

#: So many lines of one kind are written in one window of seconds.
MOST = 100
WINDOW = 10.0


@attrs.define
class Floods:
    """Windows of time that begin with the first line after the last one. Kinds are words of ours, so they are few."""

    most: int = MOST
    window: float = WINDOW
    _seen: Counter[str] = attrs.field(factory=Counter)
    _ends_at: float = -math.inf

    def ebb(self, now: float) -> dict[str, int]:
        """If the window is over: of each kind that came too often, how many were not written. A new one begins."""
        if now < self._ends_at:
            return {}
        unwritten = {kind: count - self.most for kind, count in self._seen.items() if count > self.most}
        self._seen.clear()
        self._ends_at = now + self.window
        return unwritten

    def passes(self, kind: str) -> bool:
        """Whether one more of this kind is written; it is counted in any case."""
        self._seen[kind] += 1
        return self._seen[kind] <= self.most
