"""What one peer has used up of what it may send, and the first bound that it has exceeded."""

from __future__ import annotations

import attrs

from .._words.closing import CloseReason
from .._words.limits import Limits
from .._words.rates import Bucket, Rate


def _bucket(rate: Rate | None) -> Bucket | None:
    return None if rate is None else Bucket(rate)


@attrs.define(eq=False)
class Meters:
    """Counts what goes by; an engine looks whether there is a `violation`."""

    limits: Limits
    #: The first bound that was exceeded, and what to say about it.
    violation: tuple[CloseReason, str] | None = None
    _messages: Bucket | None = attrs.field(init=False)
    _bytes: Bucket | None = attrs.field(init=False)
    _controls: Bucket | None = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._messages = _bucket(self.limits.message_rate)
        self._bytes = _bucket(self.limits.byte_rate)
        self._controls = _bucket(self.limits.control_rate)

    def heard(self, octets: int, now: float) -> None:
        """So many bytes have come."""
        self._spend(self._bytes, now, "bytes", octets)

    def message(self, now: float) -> None:
        """A message begins."""
        self._spend(self._messages, now, "messages")

    def control(self, now: float) -> None:
        """A control frame has come."""
        self._spend(self._controls, now, "control frames")

    def size(self, octets: int) -> None:
        """A message is, or will be, of this size."""
        if octets > self.limits.max_message_size:
            self.violate(CloseReason.TOO_BIG, f"message exceeds {self.limits.max_message_size} bytes")

    def fragments(self, count: int) -> None:
        """A message consists of so many pieces by now."""
        if count > self.limits.max_fragments:
            self.violate(CloseReason.POLICY_VIOLATION, f"message exceeds {self.limits.max_fragments} fragments")

    def violate(self, reason: CloseReason, text: str) -> None:
        """A bound has been exceeded; the first one counts."""
        if self.violation is None:
            self.violation = reason, text

    def _spend(self, bucket: Bucket | None, now: float, what: str, amount: int = 1) -> None:
        if bucket is not None and not bucket.spend(now, amount):
            self.violate(CloseReason.TOO_MANY_MESSAGES, f"more than {bucket.rate} {what}")
