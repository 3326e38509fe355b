"""Those who are spoken to together: a user's connections, a room's members, a run's followers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import attrs
import trio

from .._decisions.ledger import Ledger
from .._decisions.memberships import Group
from .._words.frames import Frame, numbered
from .connection import Connection, Message
from .nodes import Nodes, Remote


@attrs.frozen
class Told:
    """What has become of a message: its number, and how many connections of this node took it, written or queued."""

    seq: int
    delivered: int


@attrs.frozen
class Audience:
    """A name that may be spoken to. It is only a key: making one costs nothing and keeps nobody."""

    _ledger: Ledger = attrs.field(repr=False)
    group: Group
    _nodes: Nodes | None = attrs.field(default=None, repr=False, eq=False)

    @property
    def members(self) -> tuple[Connection, ...]:
        """The connections it has now, in order of joining."""
        if self.group.kind == "user":
            user = self._ledger.users.get(cast("str", self.group.name))
            stays = () if user is None else tuple(user.roster.claims)
        else:
            stays = self._ledger.memberships.members(self.group)
        return cast("tuple[Connection, ...]", stays)

    def __contains__(self, conn: Connection) -> bool:
        """Whether `conn` belongs to it now."""
        return conn in self.members if self.group.kind == "user" else self.group in conn.groups

    @property
    def presence(self) -> dict[Connection | Remote, Any]:
        """The members with the metadata that each joined with; of a room, also those at other nodes."""
        present: dict[Connection | Remote, Any] = {member: member.groups.get(self.group) for member in self.members}
        return present if self._nodes is None else present | self._nodes.others(self.group)

    async def tell(
        self, message: Mapping[str, Any], *, exclude: Connection | None = None, by: Connection | None = None
    ) -> Told:
        """Publish `message`, a JSON object, with its number as ``seq``, and keep it for those who come back.

        Numbers of one audience follow each other, `exclude` or not. What is kept is bounded:
        ``limits.history_messages``, ``_bytes``, ``_age``, and ``_bytes_total`` for all audiences together. ValueError,
        TypeError or RecursionError if it is not for JSON. Alone, this never waits; among other nodes, all of them
        deliver it, and it raises `Unavailable` if it was not told, `OutcomeUnknown` if nobody can say. A message `by` a
        connection that was taken over meanwhile is not told: its client may say it again where it is now.
        """
        text = json.dumps(message, separators=(",", ":"), allow_nan=False)
        excluded = None if exclude is None else exclude.id
        if self._nodes is None:
            return self.hear(text, excluded)
        number = await self._nodes.tell(self.group, text, excluded, by)
        return Told(number, len(self.members) - (exclude in self.members))

    def hear(self, text: str, exclude: str | None = None, age: float = 0.0) -> Told:
        """Number the next message, keep it, and give it to those who are here; it was said `age` seconds ago."""
        frame = self.keep(text, age)
        delivered = sum(member.send_nowait(frame) for member in self.members if member.id != exclude)
        return Told(self.last, delivered)

    def keep(self, text: str, age: float = 0.0) -> Frame:
        """Number the next message, and keep it for those who come back."""
        said_at, ledger = trio.current_time() - age, self._ledger
        return ledger.histories.say(self.group, partial(numbered, text), ledger.limits, said_at)

    async def attend(self) -> None:
        """Return once everything is heard here that is told to it, and known what was told lately: at once, alone."""
        if self._nodes is not None:
            await self._nodes.attend(self.group)

    @property
    def last(self) -> int:
        """The number of the last message that was told."""
        return self._ledger.histories.last(self.group)

    def recover(self, conn: Connection, number: int) -> bool:
        """Send `conn` everything that was told after `number`.

        False if some of it is not known any more, or could not be queued: then the client must be told so.
        """
        missed = self._ledger.histories.after(self.group, number, self._ledger.limits, trio.current_time())
        taken = [conn.send_nowait(frame) for frame in missed or ()]
        return missed is not None and all(taken)

    def publish(self, message: Message | Frame, *, exclude: Connection | None = None) -> int:
        """Send `message` to every member but `exclude`, never waiting; returns how many took it here.

        It is encoded once. A member that does not read holds up nobody: see `Connection.send_nowait`.
        """
        frame = message if isinstance(message, Frame) else Frame(message)
        if self._nodes is not None:
            self._nodes.publish(self.group, frame)
        return sum(member.send_nowait(frame) for member in self.members if member is not exclude)
