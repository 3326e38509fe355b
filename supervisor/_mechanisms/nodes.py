"""What a supervisor asks of other nodes, if there are any. Without them, nothing of it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs

from .._decisions.memberships import Group
from .._words.frames import Frame

if TYPE_CHECKING:
    from .connection import Connection
    from .run import Run


@attrs.frozen
class Remote:
    """A connection at another node."""

    id: str
    user: str


class Nodes(Protocol):
    """All nodes together, seen from this one."""

    @property
    def standing(self) -> dict[str, int]:
        """How all nodes stand together, as far as is known: ``lease_held``, ``nodes``, ``connections``, ``users``."""
        ...

    async def claim(self, conn: Connection) -> None:
        """Get `conn`, which has its claim here, a lease among all nodes, and a seat; or raise `Refused`.

        It may be told to leave meanwhile; that is then to be seen from its `end`.
        """
        ...

    async def tell(self, group: Group, text: str, exclude: str | None, by: Connection | None) -> int:
        """Number a message, keep it, and have all nodes deliver it, this one included; its number.

        `Unavailable` if that was not done, also because `by`, whose message it is, was taken over meanwhile;
        `OutcomeUnknown` if nobody can say.
        """
        ...

    def publish(self, group: Group, frame: Frame) -> None:
        """Have the other nodes deliver a message, as far as they can be reached."""
        ...

    def emit(self, run: Run, number: int, text: str) -> None:
        """Have the other nodes hear what a run of ours says."""
        ...

    def know(self, run: Run) -> None:
        """Have the other nodes find a run of ours, or see how it has ended."""
        ...

    async def register(self, run: Run) -> None:
        """`know`, and return once it is known, or after a while."""
        ...

    async def runs(self, user: str) -> list[dict[str, Any]]:
        """The runs of a user that other nodes have: ``run``, ``known_by``, and ``outcome``, None if it is not over.

        `Unavailable` or `OutcomeUnknown` if that cannot be said now.
        """
        ...

    async def follow(self, conn: Connection, run: str, after: int | None) -> tuple[bool, int]:
        """Have `conn` hear what a run at another node says, see `Run.follow`; and its last number."""
        ...

    def cancel(self, run: str) -> None:
        """End a run at another node."""
        ...

    def others(self, group: Group) -> dict[Connection | Remote, Any]:
        """The members of a room at the other nodes, with their metadata, as far as this node attends."""
        ...

    async def attend(self, group: Group) -> None:
        """Return once this node hears everything that is told to `group`, and knows what was told lately."""
        ...
