"""The tokens of one limit: a `trio.CapacityLimiter`, and the order in which those without one get theirs."""

from __future__ import annotations

import attrs
import trio

from .stay import Stay


@attrs.define(eq=False)
class Seats:
    """A capacity limiter that hands a returned token on in the same step.

    Nobody ever parks inside the limiter: a parked task owns its token one scheduler pass before it knows, and a
    cancellation in that pass would miscount. So there are only non-blocking acquisitions, and a queue of our own.
    """

    limiter: trio.CapacityLimiter
    heirs: dict[Stay, None] = attrs.field(factory=dict)

    def take(self, stay: Stay) -> bool:
        """Give `stay` a token, or a place in the queue for one."""
        if self.limiter.available_tokens <= 0:
            self.heirs[stay] = None
            return False
        self.limiter.acquire_on_behalf_of_nowait(stay)
        stay.seats.append(self)
        return True

    def give_back(self, stay: Stay) -> Stay | None:
        """Take the token of `stay` back; returns who is to have it, if anybody waits."""
        self.limiter.release_on_behalf_of(stay)
        stay.seats.remove(self)
        if not self.heirs:
            return None
        heir = next(iter(self.heirs))
        del self.heirs[heir]
        return heir
