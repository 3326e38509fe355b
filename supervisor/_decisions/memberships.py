"""Who belongs to which room and run: one index, readable from both ends."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, TypeGuard

import attrs

from .stay import Stay


class Group(NamedTuple):
    """The key of an audience: its kind, so that a room and a run of one name are two, and its name."""

    kind: str
    name: Hashable


def is_room(group: Hashable) -> TypeGuard[Group]:
    """Whether that is what it is a key of."""
    return isinstance(group, Group) and group.kind == "room"


@attrs.define
class Memberships:
    """Members by group, in order of joining. A group without members does not exist.

    The other direction is `Stay.groups`, with the metadata; both are written here, in one step, and nowhere else.
    """

    groups: dict[Hashable, dict[Stay, None]] = attrs.field(factory=dict)
    #: How many of them are rooms.
    rooms: int = 0

    def join(self, stay: Stay, group: Group, metadata: Any) -> None:
        """Make `stay` a member; joining again replaces the metadata and keeps the place."""
        members = self.groups.get(group)
        if members is None:
            members = self.groups[group] = {}
            self.rooms += is_room(group)
        members[stay] = None
        stay.groups[group] = metadata

    def leave(self, stay: Stay, group: Hashable) -> bool:
        """End one membership; False if there was none."""
        if group not in stay.groups:
            return False
        del stay.groups[group]
        members = self.groups[group]
        del members[stay]
        if not members:
            del self.groups[group]
            self.rooms -= is_room(group)
        return True

    def members(self, group: Hashable) -> tuple[Stay, ...]:
        """A snapshot, in order of joining."""
        return tuple(self.groups.get(group, ()))

    def of_kind(self, kind: str) -> Iterator[tuple[Group, dict[Stay, None]]]:
        """Every group of one kind."""
        for group, members in self.groups.items():
            if isinstance(group, Group) and group.kind == kind:
                yield group, members
