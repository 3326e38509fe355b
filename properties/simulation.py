"""Many nodes on virtual time, a simulated engine, and everything that can come between them; one seed, one run."""

from __future__ import annotations

import contextlib
import json
import random
from functools import partial

import attrs
import trio

from properties.engine import Simulated, Store
from supervisor import (
    ClusterOptions,
    Connection,
    ConnectionClosed,
    Identity,
    Limits,
    Overflow,
    Policies,
    Refused,
    Supervisor,
    open_supervisor,
)
from supervisor._cluster.cluster import Cluster, open_cluster
from supervisor._decisions.memberships import Group
from supervisor._words import events
from supervisor._words.errors import OutcomeUnknown
from supervisor.testing import FaultWire, schedule

USERS = ("ann", "bob")
LIMITS = Limits(per_user=3, total=5, history_messages=10_000, history_bytes=10**8, idle_ttl=10_000)
LEASE = 2.0


@attrs.define(eq=False)
class Listener:
    """A connection that has stayed, and from when on it must have heard everything."""

    conn: Connection
    wire: FaultWire
    since: int | None = None


@attrs.define(eq=False)
class Network:
    """One run: what was dealt, and what was seen."""

    rng: random.Random
    nodes: int = 3
    engine: Simulated = attrs.field(init=False)
    policies: Policies = attrs.field(init=False)
    supervisors: list[Supervisor] = attrs.field(factory=list)
    clusters: list[Cluster] = attrs.field(factory=list)
    listeners: list[Listener] = attrs.field(factory=list)
    #: Those that were told, by their numbers; and how often numbers have begun anew.
    told: dict[int, int] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)
    scripts: int = 0
    lost: int = 0

    def __attrs_post_init__(self) -> None:
        self.engine = Simulated(self.rng)
        self.engine.check = self._check
        self.policies = Policies(
            overflow_user=self.rng.choice((Overflow.EVICT_OLDEST, Overflow.REJECT)),
            overflow_total=self.rng.choice((Overflow.EVICT_OLDEST, Overflow.REJECT, Overflow.EVICT_GREEDIEST)),
        )

    def _check(self, store: Store) -> None:
        """After every script: claims are within the limits, and all indexes of the engine agree."""
        self.scripts += 1
        key = b"ws-supervisor:".__add__
        everybody = store.values.get(key(b"all"), {})
        if len(everybody) > LIMITS.total:
            self.problems.append(f"{len(everybody)} claims in all")
        for user in USERS:
            claims = store.values.get(key(b"u:" + user.encode()), {})
            if len(claims) > LIMITS.per_user:
                self.problems.append(f"{len(claims)} claims of {user}")
            if claims.items() > everybody.items():
                self.problems.append(f"claims of {user} that are none in all")
            counted = store.values.get(key(b"users"), {}).get(user.encode(), 0)
            if counted != len(claims):
                self.problems.append(f"{user} is counted {counted} times and is here {len(claims)} times")

    async def stays(self, conn: Connection) -> None:
        await trio.sleep_forever()

    async def enter(self, supervisor: Supervisor) -> None:
        wire = FaultWire()
        with contextlib.suppress(Refused, ConnectionClosed):
            conn = await supervisor.start(wire, Identity(user=self.rng.choice(USERS)), self.stays)
            while not conn.begun and conn.end is None:
                await trio.lowlevel.checkpoint()
            conn.join("r")
            await supervisor.room("r").attend()
            replica = supervisor.nodes.attendance.replicas[Group("room", "r")]
            if conn.end is None and replica.last is not None:  # from here on, it must hear everything
                self.listeners.append(Listener(conn, wire, replica.last))

    async def tell(self, supervisor: Supervisor) -> None:
        number = len(self.told) + self.rng.randrange(10**9)
        with contextlib.suppress(Refused, OutcomeUnknown):
            told = await supervisor.room("r").tell({"n": number})
            self.told[told.seq] = number

    async def trouble(self) -> None:
        """Something that happens to networks and engines."""
        what = self.rng.random()
        node = self.rng.randrange(self.nodes)
        if what < 0.4:
            self.engine.cut(node)
        elif what < 0.7:
            self.engine.cut_off.add(node)
            await trio.sleep(self.rng.choice((0.1, 0.5, LEASE, 2 * LEASE)))
            self.engine.cut_off.discard(node)
        elif what < 0.8:
            self.engine.cut()

    async def play(self) -> None:
        """Everybody comes and talks; then the troubles end, and everything must be as it should."""
        options = ClusterOptions(url="redis://simulated", lease=LEASE, patience=0.3)
        async with contextlib.AsyncExitStack() as stack:
            for number in range(self.nodes):
                supervisor = await stack.enter_async_context(open_supervisor(limits=LIMITS, policies=self.policies))
                opener = partial(self.engine.connect, number)
                self.clusters.append(
                    await stack.enter_async_context(open_cluster(supervisor, options, opener, self.rng))
                )
                supervisor.subscribe(self._hear)
                self.supervisors.append(supervisor)
            async with trio.open_nursery() as nursery:
                for _ in range(self.rng.randint(20, 60)):
                    supervisor = self.rng.choice(self.supervisors)
                    act = self.rng.choice((self.enter, self.tell, self.tell, self.tell))
                    nursery.start_soon(act, supervisor)
                    if self.rng.random() < 0.2:
                        nursery.start_soon(self.trouble)
                    if self.rng.random() < 0.2 and (live := supervisor.connections()):
                        self.rng.choice(live).close()
                    await trio.sleep(self.rng.choice((0, 0, 0.01, 0.1, 0.5)))
            self.engine.cut_off.clear()
            await trio.sleep(3 * LEASE)
            self._judge()

    def _hear(self, event: events.Event) -> None:
        self.lost += isinstance(event, events.MessagesLost)
        if isinstance(event, events.Failed):
            self.problems.append(f"{event.what}: {event.exception!r}")

    def _judge(self) -> None:
        claims = {claim.decode().split(" ")[0] for claim in self.engine.store.values.get(b"ws-supervisor:all", {})}
        here = {conn.id for supervisor in self.supervisors for conn in supervisor.connections()}
        if claims != here:
            self.problems.append(f"orphans in the engine {claims - here}, uncounted {here - claims}")
        for name in (b"leaving",):
            if left := self.engine.store.values.get(b"ws-supervisor:" + name):
                self.problems.append(f"{left} have not given back their seats")
        for user in USERS:
            together = sum(len(supervisor.connections(user=user)) for supervisor in self.supervisors)
            if together > LIMITS.per_user:
                self.problems.append(f"{together} of {user}")
        for supervisor in self.supervisors:
            self.problems += supervisor.audit()
            members = {member.id for member in supervisor.room("r").presence}
            if supervisor.connections() and members != here:
                self.problems.append(f"{members ^ here} are in a room at some nodes and not at others")
        for listener in self.listeners:
            if listener.conn.end is None:
                self._judge_hearing(listener)

    def _judge_hearing(self, listener: Listener) -> None:
        heard = [(it["seq"], it["n"]) for it in map(json.loads, listener.wire.sent)]
        numbers = [number for number, _ in heard]
        texts = [n for _, n in heard]
        if len(set(texts)) != len(texts):
            self.problems.append("what was said once is told twice")
        if numbers != sorted(set(numbers)):
            self.problems.append("a message twice, or out of order")
        wanted = {number: n for number, n in self.told.items() if number > (listener.since or 0)}
        missing = wanted.keys() - set(numbers)
        if missing and not self.lost:
            self.problems.append(f"{sorted(missing)} were told, and {listener.conn.id} has not heard them: {numbers}")
        if any(wanted[number] != n for number, n in heard if number in wanted):
            self.problems.append("another message under this number")


def play(seed: int, nodes: int = 3) -> Network:
    """Play the network of `seed`; the same seed is the same run."""
    network = Network(random.Random(seed), nodes)
    schedule.run(seed, network.play, instruments=[])
    return network
