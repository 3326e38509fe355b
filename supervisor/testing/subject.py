"""What is put to the test, seen from its doors: somebody may connect, and somebody may count.

The same checks run against a supervisor in memory, a server on real sockets, and a deployed server; whatever else owns
connections can be a subject too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import attrs

from .._words.limits import Limits, Policies, Timeouts
from .wire import Peer

T = TypeVar("T")


class Finding(AssertionError):
    """What convicts a subject; the sentence says of what."""


class NotHere(Exception):
    """A check that cannot be made of this subject; the sentence says why. It is told, never passed over."""


def expect(condition: bool, finding: str) -> None:  # noqa: FBT001 - reads as a sentence
    """Convict the subject of `finding` unless `condition` holds."""
    if not condition:
        raise Finding(finding)


@attrs.frozen(kw_only=True)
class Settings:
    """What a check asks of a subject."""

    limits: Limits = attrs.field(factory=Limits)
    timeouts: Timeouts = attrs.field(factory=Timeouts)
    policies: Policies = attrs.field(factory=Policies)
    #: Whether its background tasks are alive.
    background: bool = True


class Client(Protocol):
    """Somebody who has connected, or has been refused."""

    status: int
    text: str
    code: int | None

    @property
    def refused(self) -> bool:
        """Whether it was not let in."""
        ...

    async def say(self, message: str | bytes) -> None:
        """Send a message."""
        ...

    async def over(self) -> int:
        """Wait until it is over; the close code."""
        ...

    async def leave(self) -> None:
        """Say goodbye."""
        ...

    def vanish(self) -> None:
        """Be gone without a word."""
        ...


class Subject(Protocol):
    """Whatever owns connections."""

    limits: Limits

    async def connect(self, user: str, *, session: str | None = None, peer: Peer = Peer.HEALTHY) -> Client:
        """Try to connect; returns when it is known whether one is in."""
        ...

    async def count(self, user: str | None = None) -> int:
        """How many connections it believes to have, of one user or in all."""
        ...

    async def census(self) -> Mapping[str, int]:
        """How many entries each of its indexes has; all 0 when nobody is there."""
        ...

    async def disconnect(self, user: str, session: str | None = None) -> int:
        """End a user's connections by hand; how many there were."""
        ...


class Lab(Protocol):
    """Where subjects are made."""

    @property
    def door(self) -> str:
        """``memory``, ``sockets`` or ``deployed``."""
        ...

    def run(self, seed: int, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run a check, by the schedule of `seed` where that is possible."""
        ...

    def open(self, settings: Settings = Settings()) -> AbstractAsyncContextManager[Subject]:
        """A fresh subject with these settings; `NotHere` if it cannot have them."""
        ...
