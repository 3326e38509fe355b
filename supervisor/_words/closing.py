"""Why connections end: one table, and the record of one end."""

from __future__ import annotations

import enum

import attrs


def may_return(code: int) -> bool:
    """Whether a client that reconnects by itself should do so after this close code."""
    return code in (1001, 1006, 1011, 1012, 1013) or 4000 <= code < 4500


class CloseReason(enum.Enum):
    """Why a connection ended. The first reason wins and is kept.

    Each has a WebSocket close ``code`` and a ``text`` for people. The code's range tells a client whether to come
    back: 1012, 1013 and 4000-4499 yes, 4500-4999 no (see `may_return`).
    """

    PEER_CLOSED = 1000, "closed by the peer"
    RETURNED = 1000, "handler returned"
    CLOSED = 1000, "closed by the handler"
    GOING_AWAY = 1001, "going away"
    PROTOCOL_ERROR = 1002, "protocol error"
    UNSUPPORTED_DATA = 1003, "unsupported data"
    PEER_LOST = 1006, "connection lost"
    SEND_CANCELLED = 1006, "a send was cancelled in mid-frame"
    INVALID_TEXT = 1007, "invalid text"
    POLICY_VIOLATION = 1008, "policy violation"
    TOO_BIG = 1009, "message too big"
    FAILED = 1011, "handler failed"
    RESTART = 1012, "server restart"
    OVERLOAD = 1013, "try again later"
    IDLE = 4001, "idle"
    UNRESPONSIVE = 4002, "unresponsive"
    TOO_SLOW = 4003, "too slow"
    LIFETIME = 4004, "lifetime over"
    CREDENTIAL_EXPIRED = 4005, "credential expired"
    SHED = 4006, "shed to make room"
    TOO_MANY_MESSAGES = 4008, "too many messages"
    CANNOT_RESUME = 4010, "cannot resume"
    UNAUTHORIZED = 4500, "unauthorized"
    BAD_REQUEST = 4501, "bad request"
    KICKED = 4503, "kicked"
    LIMIT_REACHED = 4504, "limit reached"
    EVICTED = 4505, "evicted by a newer connection"
    TAKEN_OVER = 4505, "taken over by a newer connection of its session"
    REVOKED = 4506, "revoked"

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        self.text = text

    @property
    def word(self) -> str:
        """How logs, metrics and answers spell it: ``limit_reached``."""
        return self.name.lower()

    @property
    def may_return(self) -> bool:
        """Whether a client that reconnects by itself should do so."""
        return may_return(self.code)

    @property
    def on_wire(self) -> bool:
        """Whether a close frame may carry this code; 1006 only says that there was none."""
        return self.code != 1006


@attrs.frozen
class End:
    """How one connection ended: the reason, what its close frame says, and when."""

    reason: CloseReason
    #: The close code that the peer is sent; the reason's own, unless a handler chose another.
    code: int
    #: For the close frame, the log and the HTTP body alike.
    text: str
    #: `trio.current_time` when it began to leave. All bounds on leaving count from here.
    at: float
