"""What can go wrong, as a small tree.

::

    SupervisorError
    ├── Refused               this connection is not admitted; says what HTTP should answer
    │   ├── LimitReached      a limit is full, and its policy does not make room
    │   │   └── HardLimitReached   too many stuck handlers
    │   ├── Superseded        a newer connection took the claim before this one had its seat
    │   ├── Draining          nobody is admitted any more
    │   ├── RateLimited       too many attempts in too short a time
    │   ├── Unavailable       our own side cannot say now whether it may come in
    │   ├── BadRequest        the request itself cannot be understood
    │   │   └── IdentityMismatch   it says in two places who it is for, and they disagree
    │   ├── Unauthorized      nobody may come in without saying who they are
    │   └── Forbidden         it is known who they are, or where they come from, and they may not
    ├── RoomLimitReached      a connection is in as many rooms as it may, or there are too many in all
    ├── RunLimitReached       a user has as many runs as they may
    ├── RunFailed             waiting for the result of a run that has none
    ├── OutcomeUnknown        the answer was lost, and nobody can say whether it was done
    ├── ConnectionClosed      sending or receiving on a connection that has begun to leave
    └── NotFound              nothing is known under this key
"""

from __future__ import annotations

from .closing import CloseReason


class SupervisorError(Exception):
    """The root of everything this package raises on purpose."""


class Refused(SupervisorError):
    """A connection was not admitted, and nothing of it is left.

    `reason` is the close reason that fits, `status` the HTTP status (before the upgrade), `retry_after` the seconds
    after which another attempt makes sense, or None. `error` is the word for it in a JSON answer.
    """

    reason: CloseReason = CloseReason.POLICY_VIOLATION
    status: int = 403
    retry_after: float | None = None

    @property
    def error(self) -> str:
        """Usually the name of the reason, in lower case."""
        return self.reason.word


class LimitReached(Refused):
    """A limit is full and its policy is to reject, or to wait and the wait is over."""

    reason = CloseReason.LIMIT_REACHED
    retry_after = 1.0

    def __init__(self, user: str, limit: str, current: int, maximum: int) -> None:
        super().__init__(limit_sentence(user, limit, current, maximum))
        #: Who wanted to connect.
        self.user = user
        #: ``"per user"`` or ``"total"``.
        self.limit = limit
        self.current = current
        self.maximum = maximum
        self.status = 429 if limit == PER_USER else 503


class HardLimitReached(LimitReached):
    """More of a user's handlers are stuck than ``limits.stuck``: what is left of them cannot be cleaned up."""

    def __init__(self, user: str, current: int, maximum: int, stuck: int) -> None:
        super().__init__(user, PER_USER, current, maximum)
        self.stuck = stuck
        self.args = (f"HARD LIMIT: user {user!r} still over limit after cleanup ({current}/{maximum}, {stuck} stuck)",)


class Superseded(Refused):
    """While this connection was waiting for a seat, newer ones of the same limit took its claim."""

    status = 429
    retry_after = 1.0

    def __init__(self, sentence: str, reason: CloseReason) -> None:
        super().__init__(sentence)
        self.reason = reason


class Draining(Refused):
    """The supervisor is draining or closed: nobody is admitted any more."""

    reason = CloseReason.RESTART
    status = 503
    retry_after = 5.0

    def __init__(self) -> None:
        super().__init__("draining: no new connections are admitted")


class RateLimited(Refused):
    """More attempts to connect than ``limits.connect_rate_user`` or ``limits.connect_rate_address``."""

    reason = CloseReason.OVERLOAD
    status = 429
    error = "rate_limited"

    def __init__(self, who: str, rate: str, retry_after: float) -> None:
        super().__init__(f"{who} exceeded {rate} connection attempts")
        self.retry_after = retry_after


class Unavailable(Refused):
    """Our own side cannot say now whether this may come in."""

    reason = CloseReason.OVERLOAD
    status = 503
    error = "unavailable"
    retry_after = 1.0


class BadRequest(Refused):
    """The request cannot be understood; trying again will not help."""

    reason = CloseReason.BAD_REQUEST
    status = 400


class IdentityMismatch(BadRequest):
    """The token says that it is somebody else's, or of another session, than the rest of the request."""

    error = "identity_mismatch"


class Unauthorized(Refused):
    """No credential, or one that is not valid."""

    reason = CloseReason.UNAUTHORIZED
    status = 401


class Forbidden(Refused):
    """A valid request from somebody, or some origin, that may not make it."""

    reason = CloseReason.UNAUTHORIZED
    status = 403


class OutcomeUnknown(SupervisorError):
    """What was asked for may have been done, or not: the answer was lost, and nobody can say any more."""


class ConnectionClosed(SupervisorError):
    """The connection has begun to leave, so nothing can be sent or received. `reason` says why."""

    def __init__(self, reason: CloseReason, text: str = "") -> None:
        super().__init__(text or reason.text)
        self.reason = reason


class RoomLimitReached(SupervisorError):
    """A connection is in as many rooms as it may, or there are as many as there may be in all."""

    def __init__(self, limit: str, current: int, maximum: int) -> None:
        super().__init__(f"exceeded maximum rooms {limit} limit ({current}/{maximum})")
        #: ``"per connection"`` or ``"total"``.
        self.limit = limit
        self.current = current
        self.maximum = maximum


class RunLimitReached(SupervisorError):
    """A user has as many runs as they may."""

    def __init__(self, user: str, current: int, maximum: int) -> None:
        super().__init__(f"user {user!r} exceeded maximum runs per user limit ({current}/{maximum})")
        self.user = user
        self.current = current
        self.maximum = maximum


class RunFailed(SupervisorError):
    """A run has no result: it has failed, or was cancelled."""

    def __init__(self, run: str, error: str) -> None:
        super().__init__(f"run {run!r}: {error}")
        self.run = run
        self.error = error


class NotFound(SupervisorError):
    """No connection, user, session or room is known under this key: never an empty success."""


PER_USER = "per user"
TOTAL = "total"


def limit_sentence(user: str, limit: str, current: int, maximum: int) -> str:
    """The one sentence about a full limit: in the error, the HTTP body, the log and the close frame alike."""
    return f"user {user!r} exceeded maximum connections {limit} limit ({current}/{maximum})"
