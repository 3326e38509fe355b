"""Who a request comes from, if nothing better is configured: whoever it says, where that may be believed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from .._words.errors import Unauthorized
from .._words.identity import Identity
from .head import Request

#: Milliseconds of this millennium have so many.
_DIGITS = 15
_anonymous: Iterator[int] = count(1)


def takeover(request: Request) -> int:
    """``?takeover=``: see `Identity.takes_over`; what is no number takes nothing over."""
    given = request.query("takeover") or ""
    return int(given) if given.isascii() and given.isdigit() and len(given) <= _DIGITS else 0


def identify_anonymous(request: Request, *, allow_anonymous: bool) -> Identity:
    """``?user=``, ``?session=`` and ``?run=`` at their word.

    From this machine, or from anywhere with ``--allow-anonymous``. Without ``user``, everybody is somebody else:
    ``anonymous-1``, ``anonymous-2``, ...
    """
    if not allow_anonymous and not request.is_local:
        raise Unauthorized("anonymous users are only allowed on loopback, or with --allow-anonymous")
    user, session, run = request.query("user"), request.query("session"), request.query("run")
    return Identity(user=f"anonymous-{next(_anonymous)}" if user is None else user, session=session, run=run)
