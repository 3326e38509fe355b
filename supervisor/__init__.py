"""WebSocket connections under structured concurrency: every user a nursery, every connection a child task.

The house, from the ground up; imports only ever point downward:

- ``_words``       records, errors, events, close reasons, and the `Wire` seam
- ``_engines``     what carries messages: trio-websocket or websockets over our own stream, or a borrowed connection
- ``_decisions``   synchronous: who may come in, who must go, when; the ledger is the only hand that writes
- ``_mechanisms``  what waits: keepers, connections' tasks, the audit, the `Supervisor`
- ``_cluster``     other nodes: what is shared with them through a Redis; nothing below knows it
- ``_server``      the embedded server: sockets, handshakes, HTTP, the hub
- ``testing``      what this project tests itself with; nothing below knows it
- ``cli``          the command line; ``pytest_plugin`` beside it
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

from ._mechanisms.audience import Audience as Audience
from ._mechanisms.audience import Told as Told
from ._mechanisms.connection import Connection as Connection
from ._mechanisms.connection import Membership as Membership
from ._mechanisms.nodes import Remote as Remote
from ._mechanisms.recorder import Recorder as Recorder
from ._mechanisms.run import Run as Run
from ._mechanisms.supervisor import Supervisor as Supervisor
from ._mechanisms.supervisor import open_supervisor as open_supervisor
from ._mechanisms.tally import Statistics as Statistics
from ._server.collector import tune_collector as tune_collector
from ._server.head import Request as Request
from ._server.hub import Hub as Hub
from ._server.hub import echo as echo
from ._server.hub import hub as hub
from ._server.options import Options as Options
from ._server.server import Server as Server
from ._server.server import serve as serve
from ._words import events as events
from ._words.closing import CloseReason as CloseReason
from ._words.closing import End as End
from ._words.cluster import ClusterOptions as ClusterOptions
from ._words.errors import BadRequest as BadRequest
from ._words.errors import ConnectionClosed as ConnectionClosed
from ._words.errors import Draining as Draining
from ._words.errors import Forbidden as Forbidden
from ._words.errors import HardLimitReached as HardLimitReached
from ._words.errors import IdentityMismatch as IdentityMismatch
from ._words.errors import LimitReached as LimitReached
from ._words.errors import NotFound as NotFound
from ._words.errors import OutcomeUnknown as OutcomeUnknown
from ._words.errors import RateLimited as RateLimited
from ._words.errors import Refused as Refused
from ._words.errors import RoomLimitReached as RoomLimitReached
from ._words.errors import RunFailed as RunFailed
from ._words.errors import RunLimitReached as RunLimitReached
from ._words.errors import Superseded as Superseded
from ._words.errors import SupervisorError as SupervisorError
from ._words.errors import Unauthorized as Unauthorized
from ._words.errors import Unavailable as Unavailable
from ._words.frames import Frame as Frame
from ._words.identity import Identity as Identity
from ._words.limits import Limits as Limits
from ._words.limits import Overflow as Overflow
from ._words.limits import Policies as Policies
from ._words.limits import SlowConsumer as SlowConsumer
from ._words.limits import Timeouts as Timeouts
from ._words.profiles import Profile as Profile
from ._words.profiles import choose_profile as choose_profile
from ._words.rates import Rate as Rate
from ._words.wire import Wire as Wire
from ._words.wire import WireClosed as WireClosed

if _TYPE_CHECKING:
    from ._cluster.cluster import Cluster as Cluster
    from ._cluster.cluster import open_cluster as open_cluster
    from ._server.tokens import ClaimRules as ClaimRules
    from ._server.tokens import JwtAuthenticator as JwtAuthenticator
    from ._server.tracing import Tracing as Tracing

__version__ = _version("websocket-supervisor")


def __getattr__(name: str) -> object:
    """What needs an extra is imported when it is used."""
    if name in ("ClaimRules", "JwtAuthenticator"):
        return getattr(_import_module("._server.tokens", __name__), name)
    if name in ("Cluster", "open_cluster"):
        return getattr(_import_module("._cluster.cluster", __name__), name)
    if name == "Tracing":
        return _import_module("._server.tracing", __name__).Tracing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
