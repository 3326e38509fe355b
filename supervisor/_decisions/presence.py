"""Presence: what one step has changed in a room, for those who watch rooms. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from .stay import Stay


@attrs.define(eq=False)
class Diff:
    """Who has come to a room, or changed there, and who has left it; each with the metadata."""

    room: Hashable
    joined: dict[Stay, Any] = attrs.field(factory=dict)
    left: dict[Stay, Any] = attrs.field(factory=dict)

    def came(self, stay: Stay, metadata: Any) -> None:
        """`stay` is a member now, with this metadata."""
        self.left.pop(stay, None)
        self.joined[stay] = metadata

    def went(self, stay: Stay, metadata: Any) -> None:
        """`stay` is no member any more."""
        self.joined.pop(stay, None)
        self.left[stay] = metadata


Watcher = Callable[[Diff], None]
