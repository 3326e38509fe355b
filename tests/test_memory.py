"""Whether memory grows: judged by what is known of the samples, and once with real memory."""

from __future__ import annotations

import sys

import attrs
import pytest

from supervisor.testing import MemoryProfiler, Sample
from supervisor.testing.memory import MB, slope_of


def profiler_of(*megabytes: float) -> MemoryProfiler:
    samples = [
        Sample(at=float(at), label="", rss=int(rss * MB), traced=0, objects=0, cycles=0)
        for at, rss in enumerate(megabytes)
    ]
    return MemoryProfiler(samples=samples)


@pytest.mark.req("R23")
def test_growth_is_judged_by_the_threshold() -> None:
    growth = profiler_of(100, 100, 100, 150, 100, 100, 100, 145.2).detect(45, warm_up=0)
    assert growth.leaking
    assert growth.because == ("Memory growth 45.2 MB exceeds acceptable threshold (45 MB)",)
    assert growth.slope_low < 0 < growth.slope_high


@pytest.mark.req("R23")
def test_and_by_the_slope() -> None:
    growth = profiler_of(*(100 + 0.5 * number + 0.1 * (number % 2) for number in range(20))).detect(100)
    assert growth.leaking
    assert "Memory grows by 51" in growth.because[0]
    assert growth.slope_low < 0.5 * MB < growth.slope_high


@pytest.mark.req("R23")
@pytest.mark.parametrize("values", [[100] * 20, [100, 101, 99, 100.5] * 5, [50, 80, 95] + [100] * 9])
def test_noise_and_warming_up_are_no_leak(values: list[float]) -> None:
    assert not profiler_of(*values).detect(50).leaking


def test_too_few_samples_say_nothing() -> None:
    with pytest.raises(ValueError, match="at least 3 samples"):
        profiler_of(1, 2).detect(1)


def test_the_margin_is_that_of_the_textbook() -> None:
    slope, margin = slope_of(
        [1, 3, 2, 5, 4]
    )  # residuals 3.6 in squares, and Student 3.182 with three degrees of freedom
    assert slope == pytest.approx(0.8)
    assert margin == pytest.approx(3.182 * (3.6 / 3 / 10) ** 0.5, rel=0.002)


@pytest.mark.req("R23")
@pytest.mark.skipif(sys.platform != "linux", reason="only there can free memory be given back")
def test_a_leak_does_not_hide_in_memory_that_was_free() -> None:
    once = [bytes(100_000) for _ in range(1000)]
    pins = once[::50]  # so that freeing the rest gives nothing back by itself
    del once
    profiler = MemoryProfiler()
    profiler.start()
    kept = []
    for _ in range(8):
        kept.append([bytes(100_000) for _ in range(100)])
        profiler.sample()
    growth = profiler.detect(50)
    assert growth.leaking
    assert growth.megabytes == pytest.approx(100_000 * 100 * 5 / MB, rel=0.2)
    del pins, kept


@pytest.mark.req("R23")
@pytest.mark.slow
def test_what_has_grown_is_named() -> None:
    @attrs.define
    class Kept:
        payload: bytes

    profiler = MemoryProfiler(trace=True)
    profiler.start()
    kept = [Kept(bytes(100_000)) for _ in range(100)]
    sample = profiler.sample("after")
    assert sample.traced > 10_000_000
    assert {name.rpartition(".")[2]: count for name, count in profiler.grown_types()}["Kept"] == 100
    assert profiler.grown_lines()[0].startswith(f"{__file__}:")
    profiler.stop()
    assert len(kept) == 100


def test_lines_are_known_to_those_who_trace() -> None:
    with pytest.raises(ValueError, match="trace=True"):
        MemoryProfiler().grown_lines()
