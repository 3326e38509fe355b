"""Whether the server is well, and whether it wants more connections."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from .._mechanisms.supervisor import Supervisor


def not_ready(supervisor: Supervisor) -> tuple[str, ...]:
    """Why ``/readyz`` answers 503; empty if it does not."""
    return tuple(_complaints(supervisor))


def _complaints(supervisor: Supervisor) -> Iterator[str]:
    health, stuck = supervisor.audit_health, supervisor.statistics().stuck
    if supervisor.draining:
        yield "draining"
    if stuck > supervisor.limits.stuck_total:
        yield f"{stuck} stuck handlers"
    if health.overdue(trio.current_time()):
        yield "the audit has not run in time"
    if health.orphans:
        yield f"the audit found {len(health.orphans)} inconsistencies"
