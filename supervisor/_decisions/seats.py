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

    #: The limit. The limiter has as many tokens, or as many as are out: while a limit that was lowered waits for those
    #: who leave, and while limits are only watched.
    maximum: int
    limiter: trio.CapacityLimiter = attrs.field(init=False)
    heirs: dict[Stay, None] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.limiter = trio.CapacityLimiter(self.maximum)

    def take(self, stay: Stay, *, enforce: bool = True) -> bool:
        """Give `stay` a token, or a place in the queue for one."""
        if self.limiter.available_tokens <= 0:
            if enforce:
                self.heirs[stay] = None
                return False
            self.limiter.total_tokens += 1
        self.heirs.pop(stay, None)
        self.limiter.acquire_on_behalf_of_nowait(stay)
        stay.seats.append(self)
        return True

    def give_back(self, stay: Stay) -> Stay | None:
        """Take the token of `stay` back; returns who is to have it, if anybody waits."""
        self.limiter.release_on_behalf_of(stay)
        stay.seats.remove(self)
        self._fit()
        return self.heir

    def resize(self, maximum: int) -> None:
        """Another limit. Tokens that are out stay with who has them."""
        self.maximum = maximum
        self._fit()

    @property
    def heir(self) -> Stay | None:
        """Who is to have the next token, if one is free and somebody waits."""
        return next(iter(self.heirs), None) if self.limiter.available_tokens > 0 else None

    def _fit(self) -> None:
        tokens = max(self.maximum, self.limiter.borrowed_tokens)
        if self.limiter.total_tokens != tokens:
            self.limiter.total_tokens = tokens
