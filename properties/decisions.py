"""Each decision module beside a model of it that is too simple to be wrong."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from supervisor import (
    CloseReason,
    End,
    Frame,
    HardLimitReached,
    Identity,
    Limits,
    Overflow,
    Policies,
    SlowConsumer,
    Timeouts,
)
from supervisor._decisions.admission import Admit, Refuse, Wait, decide
from supervisor._decisions.bulletin import Bulletin, step
from supervisor._decisions.dues import OVERRUN, Act, lifetime, next_due
from supervisor._decisions.histories import OVERHEAD, Histories
from supervisor._decisions.memberships import Group, Memberships
from supervisor._decisions.outbox import Outbox, Put, Queued
from supervisor._decisions.ranking import Ranking
from supervisor._decisions.roster import Roster
from supervisor._decisions.seats import Seats
from supervisor._decisions.shedding import excess, reclaimable
from supervisor._decisions.stay import Stage, Stay, User
from supervisor._words.events import Audited, Failed
from supervisor.testing import FaultWire, strategies

NAMES = "abcd"
STAGES = tuple(Stage)
times = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0, 300.0])


def stay_of(user: str = "a", now: float = 0.0, ends_at: float = math.inf) -> Stay:
    """Somebody, on a wire on which nothing has happened."""
    identity = Identity(user=user)
    return Stay("c", identity, FaultWire(), None, now, ends_at, CloseReason.LIFETIME)


WHICH = st.integers(0, 1)


class OutboxMachine(RuleBasedStateMachine):
    """A queue is a list; two of one user share what they may hold."""

    @initialize(
        messages=st.integers(1, 4),
        octets=st.integers(20, 60),
        together=st.integers(20, 100),
        policy=st.sampled_from(SlowConsumer),
    )
    def open(self, messages: int, octets: int, together: int, policy: SlowConsumer) -> None:
        self.limits = Limits(outbox_messages=messages, outbox_bytes=octets, outbox_bytes_user=together)
        self.policy, self.total = policy, Queued()
        self.outboxes = Outbox(self.total), Outbox(self.total)
        self.frames: tuple[list[Frame], list[Frame]] = [], []

    def too_many(self, frames: list[Frame], others: list[Frame]) -> bool:
        size, together = sum(map(len, frames)), sum(map(len, frames + others))
        limits = self.limits
        return len(frames) > 1 and (
            len(frames) > limits.outbox_messages or size > limits.outbox_bytes or together > limits.outbox_bytes_user
        )

    @rule(message=st.binary(max_size=40), which=WHICH)
    def put(self, message: bytes, which: int) -> None:
        frame, others = Frame(message), self.frames[1 - which]
        outcome = self.outboxes[which].put(frame, self.limits, self.policy)
        kept = [*self.frames[which], frame]
        if self.policy is SlowConsumer.DROP_OLDEST:
            while self.too_many(kept, others):
                del kept[0]
        fits = not self.too_many(kept, others)
        refused = Put.OVERFLOW if self.policy is SlowConsumer.CLOSE else Put.DROPPED
        assert outcome is (Put.QUEUED if fits else refused)
        if fits:
            self.frames[which][:] = kept

    @rule(which=WHICH)
    def get(self, which: int) -> None:
        if self.frames[which]:
            assert self.outboxes[which].get() is self.frames[which].pop(0)

    @rule(which=WHICH)
    def clear(self, which: int) -> None:
        self.outboxes[which].clear()
        self.frames[which].clear()

    @invariant()
    def they_agree(self) -> None:
        if hasattr(self, "outboxes"):
            for outbox, frames in zip(self.outboxes, self.frames, strict=True):
                assert list(outbox.frames) == frames
                assert outbox.bytes == sum(map(len, frames))
            assert self.total.bytes == sum(outbox.bytes for outbox in self.outboxes)


class MembershipsMachine(RuleBasedStateMachine):
    """An index from both ends is a list of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.memberships = Memberships()
        self.stays = [stay_of() for _ in range(3)]
        self.pairs: dict[tuple[int, Group], str] = {}

    who = st.integers(0, 2)
    groups = st.builds(Group, st.sampled_from(["room", "run"]), st.sampled_from(["x", "y"]))

    @rule(who=who, group=groups, metadata=st.text(max_size=2))
    def join(self, who: int, group: Group, metadata: str) -> None:
        self.memberships.join(self.stays[who], group, metadata)
        self.pairs[who, group] = metadata

    @rule(who=who, group=groups)
    def leave(self, who: int, group: Group) -> None:
        assert self.memberships.leave(self.stays[who], group) is (self.pairs.pop((who, group), None) is not None)

    @rule(who=who)
    def leave_all(self, who: int) -> None:
        for group in list(self.stays[who].groups):
            assert self.memberships.leave(self.stays[who], group)
        self.pairs = {pair: metadata for pair, metadata in self.pairs.items() if pair[0] != who}

    @invariant()
    def they_agree(self) -> None:
        groups = {group for _, group in self.pairs}
        assert self.memberships.groups.keys() == groups
        for group in groups:
            members = [self.stays[who] for who, other in self.pairs if other == group]
            assert list(self.memberships.members(group)) == members
        for who, stay in enumerate(self.stays):
            assert stay.groups == {group: metadata for (other, group), metadata in self.pairs.items() if other == who}
        for kind in ("room", "run"):
            assert {group for group, _ in self.memberships.of_kind(kind)} == {g for g in groups if g.kind == kind}


class SeatsMachine(RuleBasedStateMachine):
    """Those who sit, and those who wait in line."""

    @initialize(maximum=st.integers(1, 3))
    def open(self, maximum: int) -> None:
        self.seats: Seats = Roster.of(maximum).seats
        self.maximum = maximum
        self.sitting: list[Stay] = []
        self.waiting: list[Stay] = []

    @rule()
    def take(self) -> None:
        stay = stay_of()
        sits = len(self.sitting) < self.maximum
        assert self.seats.take(stay) is sits
        (self.sitting if sits else self.waiting).append(stay)

    @precondition(lambda self: self.sitting)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        stay = data.draw(st.sampled_from(self.sitting))
        heir = self.seats.give_back(stay)
        self.sitting.remove(stay)
        free = len(self.sitting) < self.maximum
        assert heir is (self.waiting.pop(0) if self.waiting and free else None)
        if heir is not None:
            assert self.seats.take(heir)
            self.sitting.append(heir)

    @rule(maximum=st.integers(1, 4))
    def resize(self, maximum: int) -> None:
        self.seats.resize(maximum)
        self.maximum = maximum
        while self.waiting and len(self.sitting) < maximum:
            assert self.seats.heir is self.waiting[0]
            assert self.seats.take(self.waiting[0])
            self.sitting.append(self.waiting.pop(0))

    @rule()
    def take_while_limits_are_only_watched(self) -> None:
        if not self.waiting:
            self.sitting.append(stay_of())
            assert self.seats.take(self.sitting[-1], enforce=False)

    @invariant()
    def they_agree(self) -> None:
        if hasattr(self, "seats"):
            assert self.seats.limiter.total_tokens == max(self.maximum, len(self.sitting))
            assert set(self.seats.limiter.statistics().borrowers) == set(self.sitting)
            assert list(self.seats.heirs) == self.waiting
            assert all(stay.seats == [self.seats] for stay in self.sitting)
            assert all(stay.seats == [] for stay in self.waiting)


class RosterMachine(RuleBasedStateMachine):
    """Everybody is in one file."""

    @initialize(maximum=st.integers(1, 4))
    def open(self, maximum: int) -> None:
        self.roster, self.maximum = Roster.of(maximum), maximum
        self.filed: dict[Stay, Stage] = {}
        self.order: list[Stay] = []

    @rule(first=st.sampled_from([Stage.QUEUED, Stage.CLAIM]))
    def enter(self, first: Stage) -> None:
        self.move(stay_of(), first)

    @precondition(lambda self: self.filed)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        stay = data.draw(st.sampled_from(list(self.filed)))
        later = STAGES[STAGES.index(self.filed[stay]) + 1 :]
        self.move(stay, data.draw(st.sampled_from(later)))

    def move(self, stay: Stay, stage: Stage) -> None:
        self.roster.refile(stay, stage)
        stay.stage = stage
        self.filed.pop(stay, None)
        if stage is not Stage.GONE:
            self.filed[stay] = stage

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "roster"):
            return
        for stage, file in self.roster.files.items():
            assert list(file) == [stay for stay, at in self.filed.items() if at is stage]
        claims = [stay for stay, at in self.filed.items() if at is Stage.CLAIM]
        assert set(self.roster.by_activity) == set(claims)
        assert self.roster.full is (len(claims) >= self.maximum)
        assert self.roster.occupied is bool(self.filed)
        assert self.roster.maximum == self.maximum


class BulletinMachine(RuleBasedStateMachine):
    """What is posted is heard in that order by everybody, and never in the middle of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.bulletin = Bulletin()
        self.heard: list[Any] = []
        self.posted: list[float] = []
        self.inside = 0
        self.failures = 0
        self.bulletin.subscribers += [self.hear, self.fail]

    def hear(self, event: Any) -> None:
        assert self.inside == 0, "told in the middle of a step"
        if isinstance(event, Failed):
            self.failures += 1
        else:
            self.heard.append(event.at)

    def fail(self, event: Any) -> None:
        raise ValueError("a subscriber that fails")

    @rule(nested=st.lists(st.integers(0, 2), max_size=4))
    def take_steps(self, nested: list[int]) -> None:
        self.take(nested)
        assert self.heard == self.posted
        assert self.failures == len(self.posted)

    @step
    def take(self, nested: list[int]) -> None:
        self.inside += 1
        for depth in nested:
            self.post()
            self.take([0] * depth)
            self.post()
        self.inside -= 1

    def post(self) -> None:
        self.posted.append(len(self.posted))
        self.bulletin.post(Audited(at=self.posted[-1], orphans=()))


# -- what is a function of its arguments is checked as one -------------------------------------------------------


def of(**drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Make a property of what is drawn: a function of how many examples to try."""

    def decorate(function: Callable[..., None]) -> Callable[[int], None]:
        @functools.wraps(function)
        def check(examples: int) -> None:
            settings(max_examples=examples, database=None, deadline=None)(given(**drawn)(function))()

        return check

    return decorate


def ranking_of(users: dict[str, User]) -> Ranking:
    """Who of them holds how many."""
    ranking = Ranking()
    for user in users.values():
        ranking.note(user, len(user.roster.claims))
    return ranking


@of(
    shares=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5)), max_size=40),
)
def ranking(shares: list[tuple[str, int]]) -> None:
    """The greediest is who holds most, and has held as many for longest."""
    ranked, users, held = Ranking(), {name: User(name, Roster.of(9), Queued()) for name in NAMES}, dict[str, int]()
    for name, count in shares:
        ranked.note(users[name], count)
        if held.get(name, 0) != count:
            held.pop(name, None)
            if count:
                held[name] = count
        if held:
            assert ranked.greediest().name == max(held, key=lambda name: held[name])
        else:
            with pytest.raises(KeyError):
                ranked.greediest()


def crowd(shares: dict[str, int], idle: list[float], maximum: int) -> tuple[Roster, dict[str, User]]:
    """A total roster, and users, with as many claims as `shares` says, interleaved."""
    total, users = Roster.of(maximum), {name: User(name, Roster.of(99), Queued()) for name in NAMES}
    names = sorted((number, name) for name, share in shares.items() for number in range(share))
    for (_, name), active in zip(names, idle * len(names), strict=False):
        stay = stay_of(name)
        stay.host, stay.last_active = users[name], active
        for roster in (users[name].roster, total):
            roster.refile(stay, Stage.CLAIM)
        stay.stage = Stage.CLAIM
    by_activity = sorted(total.by_activity, key=lambda stay: stay.last_active)
    for stay in by_activity:
        total.by_activity.move_to_end(stay)
        stay.host.roster.by_activity.move_to_end(stay)
    return total, users


shares = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3))


@of(
    shares=shares,
    idle=st.lists(times, min_size=1),
    limit=st.integers(1, 3),
    maximum=st.integers(1, 8),
    stuck=st.integers(0, 3),
    allowed=st.none() | st.integers(0, 2),
    policies=strategies.policies,
)
def admission(
    shares: dict[str, int],
    idle: list[float],
    limit: int,
    maximum: int,
    stuck: int,
    allowed: int | None,
    policies: Policies,
) -> None:
    """Whoever decides, decides as the table in the documentation does."""
    total, users = crowd(shares, idle, maximum)
    limits = Limits(per_user=limit, total=maximum, stuck=allowed)
    user = users["a"].roster
    user.seats.resize(limit)
    for _ in range(stuck):
        held = stay_of()
        user.refile(held, Stage.STUCK)
        held.stage = Stage.STUCK
    verdict = decide("a", user, total, ranking_of(users), limits, policies)
    theirs = list(user.claims)
    if stuck > (limit if allowed is None else allowed):
        assert isinstance(verdict, Refuse)
        assert isinstance(verdict.refusal, HardLimitReached)
        assert verdict.refusal.stuck == stuck
        return
    if len(theirs) >= limit:
        crowded, policy, words = theirs, policies.overflow_user, "per user"
    elif len(total.claims) >= maximum:
        crowded, policy, words = list(total.claims), policies.overflow_total, "total"
    else:
        assert verdict == Admit()
        return
    sentence = (
        f"user 'a' exceeded maximum connections {words} limit ({len(crowded)}/{limit if words != 'total' else maximum})"
    )
    most = max(shares.values(), default=0)
    match policy:
        case Overflow.REJECT:
            assert isinstance(verdict, Refuse)
            assert str(verdict.refusal) == sentence
        case Overflow.WAIT:
            assert isinstance(verdict, Wait)
            assert str(verdict.refusal) == sentence
        case Overflow.EVICT_OLDEST:
            assert verdict == Admit(crowded[0], sentence, policy)
        case Overflow.EVICT_IDLEST:
            assert isinstance(verdict, Admit)
            assert verdict.evict is not None
            assert verdict.evict.last_active == min(stay.last_active for stay in crowded)
        case Overflow.EVICT_GREEDIEST:
            assert isinstance(verdict, Admit)
            assert verdict.evict is not None
            name = verdict.evict.identity.user
            assert shares[name] == most
            assert verdict.evict is next(stay for stay in crowded if stay.identity.user == name)


marks = st.sampled_from(["0.1", "0.5", "0.7", "0.8", "0.9", "1"])


@of(claims=st.integers(0, 1100), maximum=st.integers(1, 1000), at=marks, to=marks)
def how_many_to_shed(claims: int, maximum: int, at: str, to: str) -> None:
    """As many as arithmetic without rounding says."""
    high, low = max(Fraction(at), Fraction(to)), min(Fraction(at), Fraction(to))
    count = excess(claims, maximum, Policies(shed_at=float(high), shed_to=float(low)))
    assert count == (claims - math.floor(maximum * low) if claims >= maximum * high else 0)


@of(
    idle=st.lists(times, min_size=1, max_size=6),
    pinged=st.lists(st.none() | times, min_size=6, max_size=6),
    stalled=st.lists(st.none() | times, min_size=6, max_size=6),
    count=st.integers(0, 7),
    after=st.none() | st.sampled_from([0.5, 2.0]),
)
def whom_to_shed(
    idle: list[float], pinged: list[float | None], stalled: list[float | None], count: int, after: float | None
) -> None:
    """First the unresponsive, then the longest idle, and nobody else."""
    now, limits, timeouts = 300.0, Limits(idle_ttl=10), Timeouts()
    total, _ = crowd({"a": len(idle)}, idle, 99)
    unresponsive = []
    for stay, ping, stall in zip(total.claims, pinged, stalled, strict=False):
        wire = stay.wire
        assert isinstance(wire, FaultWire)
        wire.silent_since, wire.stalled_since = -1.0, stall
        stay.pinged_at = -math.inf if ping is None else ping
        if ping is not None or stall is not None:
            total.suspects[stay] = None
        if (ping is not None and ping <= now - timeouts.suspect) or (
            stall is not None and stall <= now - timeouts.suspect
        ):
            unresponsive.append(stay)
    chosen = reclaimable(total, count, now, limits, timeouts, Policies(shed_idle_after=after))
    long_idle = [
        stay
        for stay in total.by_activity
        if now - stay.last_active >= (5 if after is None else after) and stay not in unresponsive
    ]
    assert list(chosen) == [*unresponsive, *long_idle][:count]


@of(
    stage=st.sampled_from([Stage.QUEUED, Stage.CLAIM, Stage.LEAVING, Stage.CLOSING, Stage.STUCK]),
    active=times,
    ends_at=times | st.just(math.inf),
    grace=times | st.just(-math.inf),
    begun=st.booleans(),
    silent=st.none() | times,
    pinged=times | st.just(-math.inf),
    ended=times,
)
def dues(
    stage: Stage,
    active: float,
    ends_at: float,
    grace: float,
    begun: bool,
    silent: float | None,
    pinged: float,
    ended: float,
) -> None:
    """The earliest of all that is due, spelled out."""
    limits, timeouts = Limits(idle_ttl=5), Timeouts(ping_interval=3, pong=2)
    stay = stay_of(ends_at=ends_at)
    stay.host = User("a", Roster.of(1), Queued(), grace_until=grace)
    stay.stage, stay.begun, stay.last_active, stay.pinged_at = stage, begun, active, pinged
    assert isinstance(stay.wire, FaultWire)
    stay.wire.silent_since = silent
    if stage in (Stage.LEAVING, Stage.CLOSING):
        stay.end = End(CloseReason.KICKED, 4503, "", ended)
    moment, what = next_due(stay, limits, timeouts)
    if stage in (Stage.LEAVING, Stage.CLOSING):
        allowance = timeouts.handler_exit if stage is Stage.LEAVING else timeouts.close + OVERRUN
        assert (moment, what) == (max(grace, ended + allowance), Act.SET_ASIDE)
    elif stage is Stage.CLAIM:
        candidates: list[tuple[float, object]] = [
            (max(grace, active + 5), CloseReason.IDLE),
            (ends_at, CloseReason.LIFETIME),
        ]
        if begun and silent is None:
            candidates.append((max(pinged, 0.0) + 3, Act.PING))
        elif begun and silent is not None and silent < pinged:
            candidates.append((max(grace, pinged + 2), CloseReason.UNRESPONSIVE))
        elif begun and silent is not None:
            candidates.append((silent + 3, Act.PING))
        assert (moment, what) in candidates
        assert moment == min(at for at, _ in candidates)
    else:
        assert moment == math.inf


@of(now=times, wall=times, length=times.filter(bool) | st.just(math.inf), expires=st.none() | times)
def lifetimes(now: float, wall: float, length: float, expires: float | None) -> None:
    """Whatever ends first, and never before now."""
    at, why = lifetime(Identity(user="a", expires_at=expires), Limits(lifetime=length), now, wall)
    by_credential = math.inf if expires is None else now + max(0.0, expires - wall)
    assert at == min(now + length, by_credential)
    assert why is (CloseReason.CREDENTIAL_EXPIRED if by_credential < now + length else CloseReason.LIFETIME)


class HistoryMachine(RuleBasedStateMachine):
    """Whoever comes back gets exactly what they have missed, or is told that something is missing; and bounds hold."""

    @initialize(
        messages=st.integers(0, 4),
        octets=st.sampled_from([0, 20, 1000]),
        room=st.sampled_from([(0, 0), (1, 30), (2, 60), (2, 10_000)]),
        age=st.sampled_from([1.0, 5.0]),
    )
    def open(self, messages: int, octets: int, room: tuple[int, int], age: float) -> None:
        """Room in all for so many histories, and for so many bytes of their messages."""
        total = room[0] * OVERHEAD + room[1]
        self.limits = Limits(
            history_messages=messages, history_bytes=octets, history_bytes_total=total, history_age=age
        )
        self.histories, self.now = Histories(), 0.0
        #: Everything that was ever said: number, when, frame.
        self.said: dict[str, list[tuple[int, float, Frame]]] = defaultdict(list)

    @rule(audience=st.sampled_from("ab"), size=st.integers(0, 15))
    def say(self, audience: str, size: int) -> None:
        numbers: list[int] = []

        def spell(number: int) -> Frame:
            numbers.append(number)
            return Frame(f"{number}".ljust(size))

        before = self.histories.last(audience)
        frame = self.histories.say(audience, spell, self.limits, self.now)
        assert numbers == [before + 1]
        self.said[audience].append((numbers[0], self.now, frame))
        assert sorted(number for number, _, _ in self.said[audience]) == [
            number for number, _, _ in self.said[audience]
        ]

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(audience=st.sampled_from("ab"), data=st.data())
    def come_back(self, audience: str, data: st.DataObject) -> None:
        """With a number that one may have: none, or any that was given, or that was the last when one joined."""
        said = self.said[audience]
        since = data.draw(st.sampled_from([0, *(number for number, _, _ in said), self.histories.last(audience)]))
        missed = [frame for number, _, frame in said if number > since]
        answer = self.histories.after(audience, since, self.limits, self.now)
        assert answer is None or list(answer) == missed
        kept = [frame for _, at, frame in said if at >= self.now - self.limits.history_age]
        assert answer is None or len(answer) <= min(self.limits.history_messages, len(kept))
        if since == self.histories.last(audience):
            assert answer == ()

    @rule(audience=st.sampled_from("ab"), data=st.data())
    def come_back_too_late(self, audience: str, data: st.DataObject) -> None:
        """When everything is too old, somebody who had all of it is told so, and nobody is told anything old."""
        self.now += self.limits.history_age + 1.0
        last = self.histories.last(audience)
        since = data.draw(st.integers(0, last))
        assert self.histories.after(audience, since, self.limits, self.now) == (() if since == last else None)

    @rule(audience=st.sampled_from("ab"), beyond=st.integers(1, 5))
    def come_from_nowhere(self, audience: str, beyond: int) -> None:
        since = self.histories.last(audience) + beyond
        assert self.histories.after(audience, since, self.limits, self.now) is None

    @invariant()
    def bounds_hold(self) -> None:
        if hasattr(self, "histories"):
            assert self.histories.bytes == self.histories.counted() <= self.limits.history_bytes_total


MACHINES: tuple[type[RuleBasedStateMachine], ...] = (
    OutboxMachine,
    MembershipsMachine,
    SeatsMachine,
    RosterMachine,
    BulletinMachine,
    HistoryMachine,
)
FUNCTIONS: tuple[Callable[[int], None], ...] = (admission, ranking, how_many_to_shed, whom_to_shed, dues, lifetimes)


def run_machine(machine: type[RuleBasedStateMachine], examples: int) -> None:
    """A machine, this often, with nothing remembered from before."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def run_all(examples: int) -> None:
    """All machines and functions of this module."""
    for function in FUNCTIONS:
        function(examples)
    for machine in MACHINES:
        run_machine(machine, examples)
