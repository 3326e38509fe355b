"""Who is connecting: made once, at the door, and the only key a connection is ever stored under."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

MAX_NAME = 256


class InvalidName(ValueError):
    """A user or a session with a name that nobody may have: whoever has sent it has made a mistake."""


def _name(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None and attribute.name != "user":
        return
    if not isinstance(value, str):
        raise TypeError(f"{attribute.name} must be a str, not {type(value).__name__}")
    if not 1 <= len(value) <= MAX_NAME:
        raise InvalidName(f"{attribute.name} must have 1 to {MAX_NAME} characters, has {len(value)}")


def _frozen(labels: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(labels))


@attrs.frozen(kw_only=True)
class Identity:
    """Who a connection belongs to.

    Names have 1 to 256 characters and are compared exactly; a name of another type is a TypeError,
    so that ``"0"``, ``0`` and ``False`` can never become one user.
    """

    #: Whose nursery and whose limit.
    user: str = attrs.field(validator=_name)
    #: What survives a reconnect, None if nothing does.
    session: str | None = attrs.field(default=None, validator=_name)
    #: Other than 0: a connection of the same user and session leaves for this one, whatever the limits; for one that
    #: comes back while its own dead socket is still here. Of several attempts, the greatest number is the last: one
    #: that was given up, and arrives late, is refused. Without a session it says nothing.
    takes_over: int = 0
    #: The run it comes for, and the request it came with: for those who read logs, never interpreted.
    run: str | None = attrs.field(default=None, validator=_name)
    request: str | None = attrs.field(default=None, validator=_name)
    #: When the credential expires, in POSIX seconds (a JWT's ``exp``); the connection ends then. None: never.
    expires_at: float | None = attrs.field(default=None)
    #: Anything else that is worth showing, never interpreted.
    labels: Mapping[str, str] = attrs.field(factory=dict, converter=_frozen)

    @expires_at.validator
    def _finite(self, _: object, value: float | None) -> None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"expires_at must be finite, is {value}")
