"""So many in so much time: what may be spent, what a book of it costs, and who is told to wait."""

from __future__ import annotations

import json
import tracemalloc

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervisor import Identity, Limits, Options, RateLimited, echo
from supervisor._decisions.rates import RateBook
from supervisor._words.rates import Bucket, Rate
from supervisor.testing import FaultWire
from tests.helpers import open_house, sleeper
from tests.serving import connect, frame, open_server, request, upgrade_head


@pytest.mark.parametrize(
    ("text", "burst", "seconds"),
    [("100/s", 100, 1), ("20/10s", 20, 10), ("600/min", 600, 60), ("5000/h", 5000, 3600), ("1/0.5s", 1, 0.5)],
)
def test_rates_are_spelled_in_the_usual_way(text: str, burst: int, seconds: float) -> None:
    rate = Rate(text)
    assert (rate.burst, rate.seconds, str(rate)) == (burst, seconds, text)


@pytest.mark.parametrize(
    "text", ["", "100", "0/s", "-1/s", "1/0s", "1/0.0s", "1/d", "1.5/s", "1/s ", "1/-1s", "١/s", "1/"]
)
def test_and_in_no_other(text: str) -> None:
    with pytest.raises(ValueError, match=r"a rate is spelled like 100/s"):
        Limits(message_rate=text)


@pytest.mark.req("R37")
@given(
    burst=st.integers(1, 20),
    seconds=st.floats(0.1, 100),
    pauses=st.lists(st.floats(0, 10), max_size=60),
    amounts=st.lists(st.integers(1, 3), min_size=60, max_size=60),
)
def test_a_bucket_gives_what_it_holds_and_what_has_come_since(burst, seconds, pauses, amounts) -> None:
    rate = Rate(f"{burst}/{seconds:.9f}s")
    bucket, level, now = Bucket(rate), float(burst), 1000.0
    for pause, amount in zip(pauses, amounts, strict=False):
        now += pause
        level = min(burst, level + pause * burst / rate.seconds)
        if abs(level - amount) > 1e-6:  # else two ways of adding up may disagree
            assert bucket.spend(now, amount) == (level >= amount)
            level -= amount if level >= amount else 0


@pytest.mark.req("R37")
@given(
    visits=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3)), max_size=80),
    rate=st.sampled_from(["1/s", "3/s", "2/5s"]),
)
def test_a_book_is_a_bucket_for_each(visits, rate: str) -> None:
    book, buckets, now = RateBook(Rate(rate)), {name: Bucket(Rate(rate)) for name in "abc"}, 50.0
    for name, pause in visits:
        now += pause
        retry_after = book.spend(name, now)
        assert (retry_after == 0.0) == buckets[name].spend(now)
        if retry_after:
            assert Bucket(Rate(rate), buckets[name]._full_at).spend(now + retry_after + 1e-6)


@pytest.mark.req("R37")
def test_a_book_forgets_whoever_may_come_again_as_often() -> None:
    book, most = RateBook(Rate("10/s")), 0
    for number in range(20_000):
        book.spend(f"guest-{number}", number / 100)
        most = max(most, len(book))
    assert most <= 12  # a tenth of a second each, of which there are ten
    for number in range(10):
        book.spend("the same", 1000 + number)
    assert len(book) == 1


@pytest.mark.req("R37")
def test_a_million_names_fill_no_memory() -> None:
    book = RateBook(Rate("10/h"), most=1000)
    for number in range(2000):
        book.spend(number, 0.0)
    tracemalloc.start(1)
    for number in range(50_000):
        book.spend(number, 1.0)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(book) == 1000
    assert grown < 200_000


@pytest.mark.req("R37")
async def test_a_user_who_comes_too_often_is_told_when_to_come_back(autojump_clock) -> None:
    async with open_house(limits=Limits(connect_rate_user="3/30s")) as house:
        for _ in range(3):
            await house.enter("ann")
        with pytest.raises(RateLimited, match=r"user 'ann' exceeded 3/30s connection attempts") as refused:
            await house.supervisor.start(FaultWire(), Identity(user="ann"), sleeper)
        assert (refused.value.status, refused.value.retry_after) == (429, pytest.approx(10))
        await house.enter("bob")  # who is somebody else
        await trio.sleep(10.001)
        await house.enter("ann")
        assert house.supervisor.statistics().refused == {"overload": 1}


@pytest.mark.req("R37")
async def test_an_address_that_comes_too_often_is_refused_before_it_is_asked_who_it_is() -> None:
    asked = []

    def authenticate(request) -> Identity:
        asked.append(request.peer)
        return Identity(user="ann")

    options, limits = Options(authenticate=authenticate), Limits(connect_rate_address="2/60s")
    async with open_server(echo, options, limits=limits) as server:
        for status in (101, 101, 429, 429):
            async with connect(server) as raw:
                await raw.send(upgrade_head())
                got, headers, body = await raw.response()
                assert got == status, body
        assert 25 <= int(headers["retry-after"]) <= 30
        assert json.loads(body)["error"] == "rate_limited"
        assert asked == ["127.0.0.1"] * 2
        assert server.supervisor.statistics().turned_away == {"rate_limited": 2}
        assert (await request(server, "GET", "/healthz"))[0] == 200  # that is no connection


@pytest.mark.req("R37")
@pytest.mark.parametrize(
    ("limits", "abuse", "text"),
    [
        (Limits(message_rate="10/10s"), frame(1, b"x") * 11, "more than 10/10s messages"),
        (Limits(message_rate="10/10s"), (frame(1, b"", fin=False) + frame(0)) * 11, "more than 10/10s messages"),
        (Limits(byte_rate="5000/10s"), frame(2, bytes(5000)), "more than 5000/10s bytes"),
        (Limits(control_rate="10/10s"), frame(9, b"x") * 11, "more than 10/10s control frames"),
        (Limits(control_rate="10/10s"), frame(10, b"x") * 11, "more than 10/10s control frames"),
        (Limits(), frame(10) * 2000, "more than 1000/10s control frames"),
    ],
)
async def test_a_connection_that_says_too_much_ends(limits: Limits, abuse: bytes, text: str) -> None:
    async with open_server(echo, limits=limits) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(abuse)
        assert await raw.closed_with() == (4008, text)


@pytest.mark.req("R37")
async def test_a_connection_that_keeps_to_its_rate_stays() -> None:
    limits = Limits(message_rate="10/10s", byte_rate="5000/10s", control_rate="10/10s")
    async with open_server(echo, limits=limits) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(1, b"x") * 10 + frame(9) * 10)
        heard = [(await raw.frame())[0] for _ in range(20)]
        assert sorted(heard) == [1] * 10 + [10] * 10
