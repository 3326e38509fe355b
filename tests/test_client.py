"""The client for Trio, against the real server, and through a proxy that cuts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from tests.cutting import converse, judge
from tests.proxy import Cut, Manner

MANNERS = [*[Manner.RESET] * 6, *[Manner.CLOSE] * 6, *[Manner.HALF_OPEN] * 6, Manner.SILENT]


def deal(count: int, seed: int) -> Iterator[Cut]:
    """Random cuts: within the handshake, within a frame, after many."""
    rng = random.Random(seed)
    for _ in range(count):
        yield Cut(
            rng.choice((30, 600, 2000, 10_000)), rng.randint(1, rng.choice((200, 2000, 20_000))), rng.choice(MANNERS)
        )


@pytest.mark.req("R39")
@pytest.mark.parametrize("cuts", [100, pytest.param(1000, marks=pytest.mark.slow)])
async def test_random_cuts_lose_nothing(cuts: int, record_property) -> None:
    with trio.fail_after(cuts / 4):
        proxy, talkers, record = await converse(deal(cuts, seed=cuts), history_messages=10_000, history_bytes=10**7)
    judge(talkers, record)
    assert proxy.done.total() == cuts
    assert [talker.gaps for talker in talkers] == [[], [], []]
    assert all(number is not None for talker in talkers for _, number in talker.said)
    record_property("cuts", cuts)
    record_property("messages", len(record))
    record_property("runs", sum(len(talker.runs) for talker in talkers))


@pytest.mark.req("R39")
async def test_what_is_lost_is_said(record_property) -> None:
    limits: dict[str, Any] = {"history_messages": 3, "run_messages": 2}
    with trio.fail_after(60):
        _, talkers, record = await converse(deal(100, seed=3), **limits)
    judge(talkers, record)
    assert any(talker.gaps for talker in talkers)
