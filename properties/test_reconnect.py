"""Whatever is cut, and whenever: in the end, what was said was heard, once and in order, or is called missing."""

from __future__ import annotations

from collections import deque

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor._decisions.backlog import Backlog
from supervisor._words.frames import Frame
from supervisor.client.sequence import Missing, Sequence
from tests.cutting import converse, judge
from tests.proxy import Cut, Manner

SAY, HEAR, CUT, RETURN, OVERLAP = "say", "hear", "cut", "return", "overlap"


@attrs.define
class Line:
    """A server that keeps its last messages, a client, and what is on its way between them."""

    backlog: Backlog
    connected: bool = True
    way: deque[tuple[int, str]] = attrs.field(factory=deque)
    sequence: Sequence[str] = attrs.field(factory=lambda: Sequence(0))
    told: list[str | Missing] = attrs.field(factory=list)

    def say(self) -> None:
        number = self.backlog.add(Frame(str(self.backlog.last + 1)))
        if self.connected:
            self.way.append((number, str(number)))

    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.way))):
            number, text = self.way.popleft()
            if text == "settle":
                self.told += self.sequence.settle(number)
            else:
                self.told += self.sequence.hear(number, text)

    def cut(self) -> None:
        self.connected = False
        self.way.clear()

    def come_back(self, said_before: int) -> None:
        """`said_before` messages are said before it has asked what it has missed: they come first, and again."""
        if not self.connected:
            self.connected = True
            self.sequence.recover()
            for _ in range(said_before):
                self.say()
            last = self.backlog.last
            missed = len(self.backlog.after(self.sequence.last or 0) or ())
            self.way.extend((number, str(number)) for number in range(last - missed + 1, last + 1))
            self.way.append((last, "settle"))


@pytest.mark.req("R39")
@given(
    st.integers(0, 6),
    st.lists(st.tuples(st.sampled_from([SAY, SAY, HEAR, CUT, RETURN, OVERLAP]), st.integers(1, 4)), max_size=60),
)
def test_everything_is_heard_once_and_in_order_or_called_missing(kept: int, moves: list[tuple[str, int]]) -> None:
    line = Line(Backlog(kept, 10**6))
    for move, count in moves:
        match move:
            case "say":
                for _ in range(count):
                    line.say()
            case "hear":
                line.hear(count)
            case "cut":
                line.cut()
            case "return":
                line.come_back(0)
            case "overlap":
                line.come_back(count)
    line.come_back(0)
    line.hear(10**6)
    at = 0
    for thing in line.told:
        if isinstance(thing, Missing):
            assert (thing.after, thing.until is not None) == (at, True)
            assert at < (thing.until or 0)
            at = thing.until or 0
        else:
            assert int(thing) == at + 1
            at += 1
    assert at == line.backlog.last
    if kept >= line.backlog.last:
        assert line.told == [str(number) for number in range(1, line.backlog.last + 1)]


CUTS = st.builds(
    Cut,
    st.integers(1, 3000),
    st.integers(1, 6000),
    st.sampled_from([Manner.RESET, Manner.CLOSE, Manner.HALF_OPEN]),
)


@pytest.mark.req("R39")
@settings(max_examples=15, deadline=None)
@given(st.lists(CUTS, max_size=12), st.sampled_from([2, 10_000]))
def test_three_clients_are_cut_as_hypothesis_likes(cuts: list[Cut], kept: int) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            _, talkers, record = await converse(iter(cuts), history_messages=kept, run_messages=max(kept, 100))
        judge(talkers, record)
        if kept > len(record):
            assert not any(gap.room for talker in talkers for gap in talker.gaps)

    trio.run(main)
