"""Those who are spoken to together: a user's connections, a room's members, a run's followers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs
import trio

from .._decisions.ledger import Ledger
from .._decisions.memberships import Group
from .._words.frames import Frame
from .connection import Connection, Message


@attrs.frozen
class Audience:
    """A name that may be spoken to. It is only a key: making one costs nothing and keeps nobody."""

    _ledger: Ledger = attrs.field(repr=False)
    group: Group

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
    def presence(self) -> dict[Connection, Any]:
        """The members with the metadata that each joined with."""
        return {member: member.groups.get(self.group) for member in self.members}

    def tell(self, spell: Callable[[int], Message], *, exclude: Connection | None = None) -> int:
        """Publish ``spell(number)``, a message that knows its number, and keep it for those who come back.

        Numbers of one audience follow each other, `exclude` or not. What is kept is bounded:
        ``limits.history_messages``, ``_bytes``, ``_age``, and ``_bytes_total`` for all audiences together.
        """
        now, limits = trio.current_time(), self._ledger.limits
        frame = self._ledger.histories.say(self.group, lambda number: Frame(spell(number)), limits, now)
        return self.publish(frame, exclude=exclude)

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
        """Send `message` to every member but `exclude`, never waiting; returns how many took it.

        It is encoded once. A member that does not read holds up nobody: see `Connection.send_nowait`.
        """
        frame = message if isinstance(message, Frame) else Frame(message)
        return sum(member.send_nowait(frame) for member in self.members if member is not exclude)
