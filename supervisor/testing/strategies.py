"""Hypothesis strategies for what connections meet: settings, peers, faults, users, pauses."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from .._words.identity import Identity
from .._words.limits import Limits, Overflow, Policies, SlowConsumer, Timeouts
from .wire import Fault, FaultWire, Mishap, Peer

#: A schedule of Trio's. Without drawing one, every example would run on the same.
seeds = st.integers(0, 2**32 - 1)
users = st.sampled_from(["ann", "bob", "cleo"])
peers = st.sampled_from(Peer)
#: Seconds that meet: their sums fall into one batch with the supervisor's own bounds.
pauses = st.sampled_from([0.0, 0.05, 0.1, 0.4, 0.5, 1.0, 7.0, 60.0])
messages = st.text(max_size=20) | st.binary(max_size=20)

_waiting = st.builds(
    Fault,
    call=st.sampled_from(["open", "receive", "send", "close"]),
    mishap=st.sampled_from(Mishap),
    nth=st.integers(1, 3),
)
_at_once = st.builds(
    Fault, call=st.sampled_from(["offer", "ping", "cut"]), mishap=st.just(Mishap.RAISE), nth=st.integers(1, 3)
)
_often = st.just(Fault("send", Mishap.HANG, 50, every=True))
faults = st.just(()) | st.lists(_waiting | _at_once | _often, max_size=2).map(tuple)

wires = st.builds(FaultWire, kind=peers, faults=faults, answers_pings=st.sampled_from([None, None, False]))
identities = st.builds(Identity, user=users, session=st.none() | st.sampled_from(["tab-1", "tab-2"]))

limits = st.builds(
    Limits,
    per_user=st.sampled_from([1, 2, 5]),
    total=st.sampled_from([1, 2, 4, 10]),
    stuck=st.sampled_from([None, 0, 1]),
    closing=st.sampled_from([0, 1, 100]),
    idle_ttl=st.sampled_from([1.0, 5.0, 300.0]),
    lifetime=st.sampled_from([math.inf, math.inf, 3.0]),
)
timeouts = st.builds(
    Timeouts,
    linger=st.sampled_from([0.0, 1.0]),
    wait=st.sampled_from([0.0, 0.1, 1.0]),
    ping_interval=st.sampled_from([20.0, 2.0]),
    pong=st.just(1.0),
)
policies = st.builds(
    Policies,
    overflow_user=st.sampled_from([policy for policy in Overflow if policy is not Overflow.EVICT_GREEDIEST]),
    overflow_total=st.sampled_from(Overflow),
    slow_consumer=st.sampled_from(SlowConsumer),
    shed_idle_after=st.none() | st.just(0.5),
)
