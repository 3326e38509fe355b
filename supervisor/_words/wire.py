"""What the core knows of a transport: the one seam between connections and whatever carries them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

import trio

from .closing import CloseReason
from .frames import Frame


class WireClosed(Exception):
    """Nothing can be sent or received on this wire any more."""


class Ended(Protocol):
    """How a wire says that it came to its end by itself; `cause` is for the log, if it was a failure."""

    def __call__(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None: ...


class Wire(Protocol):
    """A transport for whole messages.

    The synchronous methods never wait and never raise. The asynchronous ones are cancelled without ceremony. A write
    that is cancelled when its frame has begun is the wire's end (`CloseReason.SEND_CANCELLED`): whatever is called
    then, except `cut`, raises `WireClosed`. `open` and `close` are called at most once.
    """

    @property
    def peer(self) -> str:
        """The other side's address, for people."""
        ...

    @property
    def silent_since(self) -> float | None:
        """Since when the peer could have been heard and was not; None while we are not listening."""
        ...

    @property
    def stalled_since(self) -> float | None:
        """Since when a write has been waiting without progress; None if none is."""
        ...

    @property
    def traffic(self) -> tuple[int, int] | None:
        """Bytes that have come, and bytes that the peer has taken, all protocols included; None if nobody counts."""
        ...

    async def open(self, nursery: trio.Nursery, ended: Ended) -> None:
        """Complete the upgrade. Tasks of the wire go into `nursery`.

        `cut` wakes those that wait for the peer. What is left of them is cancelled: when the time is over if the wire
        is listening, else at once.
        """
        ...

    async def receive(self) -> str | bytes:
        """The next message, also those that arrived before the peer closed; `WireClosed` after the last."""
        ...

    def write(self, frame: Frame) -> Coroutine[Any, Any, None] | None:
        """Write a whole frame, after everything written before it. None if that is done; else what does it, to be
        awaited at once, with `WireClosed` if it is impossible.
        """
        ...

    def offer(self, frame: Frame) -> bool:
        """Take a whole frame to be written now. False, and nothing is taken, if it would have to wait."""
        ...

    def ping(self) -> None:
        """Ask for a sign of life; an answer moves `silent_since`."""
        ...

    async def close(self, code: int, text: str) -> None:
        """Say goodbye after everything written before, and wait for the answer; `WireClosed` if that is impossible.

        The caller bounds the time.
        """
        ...

    def cut(self, code: int, text: str) -> None:
        """Close the transport now, whatever it is doing, after a close frame if that needs no wait. Idempotent."""
        ...


class Severed:
    """The wire of a connection that is gone: it has none."""

    peer = "gone"
    silent_since = None
    stalled_since = None
    traffic = None

    async def open(self, nursery: trio.Nursery, ended: Ended) -> None:
        """Not possible."""
        raise WireClosed

    async def receive(self) -> str | bytes:
        """Not possible."""
        raise WireClosed

    async def write(self, frame: Frame) -> None:
        """Not possible."""
        raise WireClosed

    def offer(self, frame: Frame) -> bool:
        """Never."""
        return False

    def ping(self) -> None:
        """Nothing to do."""

    async def close(self, code: int, text: str) -> None:
        """Nothing to do."""

    def cut(self, code: int, text: str) -> None:
        """Nothing to do."""


SEVERED = Severed()
