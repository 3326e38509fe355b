"""The audit: recomputes every index from Trio's own task tree and limiters, and names each inconsistency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import attrs
import trio

from .._decisions.books import SLACK
from .._decisions.dues import expiry, next_due
from .._decisions.ledger import Ledger
from .._decisions.roster import FILES, Roster
from .._decisions.stay import Stage, Stay, User
from .._words.events import Audited, Failed


def audit(ledger: Ledger) -> tuple[str, ...]:
    """Every inconsistency there is now; empty if all is well. Holds before and after every task step."""
    return tuple(_inconsistencies(ledger))


def _inconsistencies(ledger: Ledger) -> Iterator[str]:
    users = list(ledger.users.values())
    for stage in FILES:
        by_user = {stay for user in users for stay in user.roster.files[stage]}
        if by_user != ledger.total.files[stage].keys():
            yield f"{stage.name.lower()}: the users' files and the total's differ"
    enforce = ledger.limits.enforce
    yield from _of_limit("total", ledger.total, enforce=enforce)
    for user in users:
        yield from _of_limit(f"user {user.name!r}", user.roster, enforce=enforce)
        yield from _of_user(ledger, user)
    if ledger.queued.bytes != sum(user.queued.bytes for user in users):
        yield f"{ledger.queued.bytes} bytes are said to be queued in all, and that is not their sum"
    if ledger.histories.bytes != ledger.histories.counted():
        yield f"{ledger.histories.bytes} bytes are said to be kept of what was told, and that is not their sum"
    if ledger.runs.shares != ledger.runs.counted():
        yield "the runs of each user are miscounted"
    for run in ledger.runs.active.values():
        if run.outcome is not None or run.host is None:
            yield f"{run.id}: is over, and still among the runs"
    yield from _of_waiting(ledger)
    yield from _of_indexes(ledger)


def _of_waiting(ledger: Ledger) -> Iterator[str]:
    """Nobody waits for a claim that is free."""
    enforce = ledger.limits.enforce
    if not (enforce and ledger.total.full):
        for stay in ledger.total.files[Stage.QUEUED]:
            if not (enforce and stay.host.roster.full):
                yield f"{stay.id}: waits although there is room"


def _of_limit(name: str, roster: Roster, *, enforce: bool) -> Iterator[str]:
    """Claims within the limit, no token too many, and the limiter's borrowers exactly those who hold its seat."""
    limiter = roster.seats.limiter.statistics()
    if enforce and len(roster.claims) > roster.maximum:
        yield f"{name}: {len(roster.claims)} claims, limit {roster.maximum}"
    if limiter.total_tokens != max(roster.maximum, limiter.borrowed_tokens):
        yield f"{name}: {limiter.total_tokens} tokens, {limiter.borrowed_tokens} of them out, limit {roster.maximum}"
    holders = {stay for file in roster.files.values() for stay in file if roster.seats in stay.seats}
    if holders != set(limiter.borrowers):
        yield f"{name}: the limiter's borrowers are not the connections that hold its seat"
    if roster.by_activity.keys() != roster.claims.keys():
        yield f"{name}: the claims by activity are not the claims"
    if any(earlier.last_active > later.last_active for earlier, later in pairwise(roster.by_activity)):
        yield f"{name}: the claims by activity are out of order"
    if not roster.suspects.keys() <= roster.claims.keys():
        yield f"{name}: suspects that hold no claim"
    if roster.seats.heir is not None:
        yield f"{name}: a seat is free, and somebody waits for it"
    for heir in roster.seats.heirs:
        if heir not in roster.claims or roster.seats in heir.seats:
            yield f"{name}: {heir.id} waits for a seat that it may not have"


def _of_user(ledger: Ledger, user: User) -> Iterator[str]:
    """Every connection filed where it belongs, its task a child of the user's nursery, its time kept."""
    stays = [stay for file in user.roster.files.values() for stay in file]
    if not stays and user.vacant_since is None:
        yield f"user {user.name!r}: nobody is here, and the user is not closing"
    due = min((_judged_at(ledger, stay) for stay in stays), default=float("inf"))
    if user.alarm is not None and user.alarm.deadline > due and user.alarm.deadline > trio.current_time():
        yield f"user {user.name!r}: the alarm is set later than the earliest due"
    children = user.nursery.child_tasks if user.nursery is not None else frozenset()
    for stay in stays:
        yield from _of_stay(ledger, user, stay, children)
    if not {stay.task for stay in stays if stay.task is not None} <= children:
        yield f"user {user.name!r}: a connection's task is not a child of the user's nursery"
    queued = sum(stay.outbox.bytes for stay in stays if stay.outbox is not None)
    if user.queued.bytes != queued:
        yield f"user {user.name!r}: {user.queued.bytes} bytes are said to be queued, and {queued} are"
    lasting = children - {trio.lowlevel.current_task()}  # a subscriber may ask during a task's own last step
    running = [run for run in user.runs.values() if run.outcome is None]
    if len(lasting) > len(stays) + len(running):
        yield f"user {user.name!r}: {len(lasting)} tasks for {len(stays)} connections and {len(running)} runs"
    for run in running:
        if ledger.runs.active.get(run.id) is not run or (run.task is not None and run.task not in children):
            yield f"{run.id}: is not among the runs, or no child of its user's nursery"


def _judged_at(ledger: Ledger, stay: Stay) -> float:
    """When it must end; heartbeats move with what the peer sends, and are no promise of the ledger's."""
    if stay.stage is Stage.CLAIM:
        return expiry(stay, ledger.limits)[0]
    return next_due(stay, ledger.limits, ledger.timeouts)[0]


def _of_stay(ledger: Ledger, user: User, stay: Stay, children: frozenset[trio.lowlevel.Task]) -> Iterator[str]:
    may_serve = stay.stage in (Stage.QUEUED, Stage.CLAIM)
    if may_serve is not (stay.end is None) or stay.host is not user or stay.identity.user != user.name:
        yield f"{stay.id}: filed under {user.name!r} as {stay.stage}, which it is not"
    if stay.begun and may_serve and (stay.task not in children or len(stay.seats) != 2):
        yield f"{stay.id}: serves without a task or without its seats"
    if (
        stay.begun
        and may_serve
        and (stay.scope is None or stay.scope.deadline > expiry(stay, ledger.limits)[0] + SLACK)
    ):
        yield f"{stay.id}: serves without its deadline"


def _of_indexes(ledger: Ledger) -> Iterator[str]:
    """Connections and memberships lead to somebody who is here, in both directions."""
    here = {stay for stage in FILES if stage is not Stage.STUCK for stay in ledger.total.files[stage]}
    for stay in here.symmetric_difference(ledger.connections.values()):
        yield f"{stay.id}: orphan in the index of connections, or missing there"
    members: Counter[Stay] = Counter()
    if ledger.memberships.rooms != sum(1 for _ in ledger.memberships.of_kind("room")):
        yield f"{ledger.memberships.rooms} rooms are said to be there, and there are others"
    for group, stays in ledger.memberships.groups.items():
        members.update(stays.keys())
        for stay in stays:
            if stay.end is not None or stay not in here or group not in stay.groups:
                yield f"{stay.id}: orphan in {group}"
        if not stays:
            yield f"{group}: exists without members"
    for stay in here:
        if len(stay.groups) != members[stay]:
            yield f"{stay.id}: is in {len(stay.groups)} groups, and {members[stay]} know it"


@attrs.define(eq=False)
class AuditHealth:
    """Whether the periodic audit lives, and what it found; read by ``/readyz`` and the statistics."""

    interval: float
    runs: int = 0
    failures: int = 0
    last_at: float | None = None
    orphans: tuple[str, ...] = ()

    def overdue(self, now: float) -> bool:
        """Whether the audit has missed two of its times: it is dead, or our loop is."""
        return self.last_at is None or now - self.last_at > 2 * self.interval


async def audit_periodically(
    ledger: Ledger, health: AuditHealth, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Audit now and every interval. One that fails is reported, and the next one comes all the same."""
    while True:
        try:
            health.orphans = audit(ledger)
        except Exception as exception:  # noqa: BLE001 - reported as a Failed event, and counted in the health
            health.failures += 1
            ledger.post(Failed(at=trio.current_time(), what="audit", exception=exception))
        else:
            health.runs += 1
            health.last_at = trio.current_time()
            ledger.post(Audited(at=health.last_at, orphans=health.orphans))
        task_status.started()
        task_status = trio.TASK_STATUS_IGNORED
        await trio.sleep(health.interval)
