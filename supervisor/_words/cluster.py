"""How nodes find each other, and what they do when they cannot."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class ClusterOptions:
    """The settings of one node; `url`, `lease` and `prefix` are to be the same at all nodes."""

    url: str = attrs.field(repr=False)
    """``redis://[user:password@]host[:port][/db]``, ``rediss://`` with TLS, or ``unix:///path``: the same for all."""
    lease: float = attrs.field(default=5.0)
    """Seconds after which a node that says nothing is lost: its seats are free then, and it must begin anew."""
    patience: float = attrs.field(default=1.0)
    """Seconds that anybody waits for the engine."""
    without: str = attrs.field(default="local", validator=attrs.validators.in_(("local", "refuse")))
    """What becomes of newcomers while the engine cannot be reached: ``local`` lets in whoever this node has room for,
    and those who are beyond a limit of all nodes leave when it is back; ``refuse`` answers 503. Who is in, stays."""
    prefix: str = attrs.field(default="ws-supervisor:")
    """What the keys in the engine begin with, for several clusters that share one."""

    @lease.validator
    def _longer_than_a_moment(self, _: object, value: float) -> None:
        if not 0.2 <= value <= 3600:
            raise ValueError(f"lease must be 0.2 to 3600 s, is {value!r}")

    @patience.validator
    def _shorter_than_the_lease(self, _: object, value: float) -> None:
        if not 0.01 <= value <= self.lease:
            raise ValueError(f"patience must be 0.01 s to the lease ({self.lease:g} s), is {value!r}")
