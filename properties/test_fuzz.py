"""Mutated conversations through the whole server: nothing escapes, nothing stays, every answer may be given."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

import pytest

from properties import fuzz

#: Conversations in the default run, and in CI, in two processes, beginning anywhere.
SOME = 1_000
MANY = 100_000


@pytest.mark.req("R35", "A24", "A35")
def test_the_corpus_is_answered_in_as_many_ways() -> None:
    corpus = fuzz.load()
    answers = {answer for start in range(0, len(corpus), 50) for answer in fuzz.play(0, corpus[start : start + 50])}
    assert len(answers) >= len(corpus) / 2  # where two are one by now, or with another engine, it is still worth a try


@pytest.mark.req("R19", "A36")
def test_nothing_escapes_from_a_thousand_conversations() -> None:
    seen = fuzz.fuzz(1, SOME, fuzz.load(), lambda *_: None)
    opened = Counter(answer.partition(" ")[0] for answer in seen.elements())
    assert opened["101"] > SOME / 3
    assert len(seen) > 40


@pytest.mark.slow
@pytest.mark.req("R19", "A36")
def test_nothing_escapes_from_a_hundred_thousand(record_property) -> None:
    first = random.randrange(10**12)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "properties.fuzz", str(MANY // 2), str(first + part * MANY // 2)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for part in range(2)
    ]
    for process in processes:
        said, complaint = process.communicate()
        assert process.returncode == 0, complaint.decode()[-2000:]
        figures = json.loads(said)
        record_property("conversations", figures)
        assert figures["conversations"] == MANY // 2


@pytest.mark.parametrize(
    "written",
    [
        b"SMTP/1.0",
        b"HTTP/1.1 101 \r\n\r\n\x81\x81\0\0\0\0x",
        b"HTTP/1.1 101 \r\n\r\n\xc1\x00",
        b"HTTP/1.1 101 \r\n\r\n\x83\x00",
        b"HTTP/1.1 101 \r\n\r\n\x88\x02\x03\xee",
        b"HTTP/1.1 101 \r\n\r\n\x88\x00\x81\x02{}",
        b"HTTP/1.1 101 \r\n\r\n\x81\x01{",
    ],
)
def test_the_judge_convicts(written: bytes) -> None:
    with pytest.raises((AssertionError, ValueError)):
        fuzz.judge(written)


def test_whatever_escapes_is_known_by_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor._server.hub.decode", lambda message: 1 // 0)
    with pytest.raises(fuzz.Escaped, match=r"seed \d+, alone: .*ZeroDivisionError"):
        fuzz.fuzz(1, 50, [], lambda *_: None)
