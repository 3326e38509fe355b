"""Whether memory grows: sampled while something runs, judged by a threshold and by the slope."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence

import attrs

MB = 1024 * 1024
#: A slope counts as a leak only if it amounts to more than this over the whole run; allocators keep a little.
_NEGLIGIBLE_MB = 1.0


@attrs.frozen(kw_only=True)
class Sample:
    """Memory at one moment."""

    #: Seconds since the start, on the wall.
    at: float
    label: str
    #: Resident set, in bytes.
    rss: int
    #: What Python has allocated, in bytes; 0 unless it is traced.
    traced: int
    #: Objects that the cycle collector knows.
    objects: int
    #: Objects that only the cycle collector could free, found just before this sample.
    cycles: int


@attrs.frozen(kw_only=True)
class Growth:
    """What the samples say together."""

    leaking: bool
    #: From the first sample after the warm-up to the last, in megabytes.
    megabytes: float
    #: Bytes per sample, with the interval in which it lies with 95 % confidence.
    slope: float
    slope_low: float
    slope_high: float
    #: One sentence for each thing that was found.
    because: tuple[str, ...]


@attrs.define
class MemoryProfiler:
    """Start it, take samples at moments that are alike (after each cycle, say), then ask it to `detect`.

    With `trace`, allocations are traced: the lines that have allocated what is left can be named, and everything is
    two to four times as slow. Needs psutil (the extra ``testing``).
    """

    trace: bool = False
    samples: list[Sample] = attrs.field(factory=list)
    _started: float = 0.0
    _before: tracemalloc.Snapshot | None = None
    _types: Counter[str] = attrs.field(factory=Counter)
    _traces: bool = False

    def start(self) -> None:
        """Forget all samples, and take the first."""
        self.samples.clear()
        self._started = time.monotonic()
        self._types = types_alive()
        if self.trace and not tracemalloc.is_tracing():
            tracemalloc.start(10)
            self._traces = True
        if self.trace:
            self._before = tracemalloc.take_snapshot()
        self.sample("start")

    def sample(self, label: str = "") -> Sample:
        """Collect garbage, give back what is free, and look at the memory."""
        import psutil

        cycles = gc.collect()
        _give_back()
        traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0
        sample = Sample(
            at=time.monotonic() - self._started,
            label=label,
            rss=psutil.Process().memory_info().rss,
            traced=traced,
            objects=len(gc.get_objects()),
            cycles=cycles,
        )
        self.samples.append(sample)
        return sample

    def detect(self, growth_mb: float, *, warm_up: float = 0.25) -> Growth:
        """Whether it leaks: it has grown by `growth_mb` or more, or its slope is above 0 with 95 % confidence, and in
        the later half still is.

        The first `warm_up` of the samples, as a fraction, are not judged. ValueError with fewer than three left.
        """
        return judge_growth([sample.rss for sample in self.samples], growth_mb, warm_up=warm_up)

    def grown_types(self, most: int = 10) -> tuple[tuple[str, int], ...]:
        """The types of which there are more than at the start, with how many more."""
        return tuple((types_alive() - self._types).most_common(most))

    def grown_lines(self, most: int = 10) -> tuple[str, ...]:
        """The lines that have allocated what has come since the start, as ``file:line: bytes``. Needs `trace`."""
        if self._before is None:
            raise ValueError("lines are known only to a MemoryProfiler(trace=True) that has been started")
        differences = tracemalloc.take_snapshot().compare_to(self._before, "lineno")
        return tuple(
            f"{entry.traceback[0].filename}:{entry.traceback[0].lineno}: {entry.size_diff} bytes"
            for entry in differences[:most]
            if entry.size_diff > 0
        )

    def stop(self) -> None:
        """Stop tracing, if this has started it."""
        if self._traces:
            tracemalloc.stop()
            self._traces = False
        self._before = None


def judge_growth(rss: Sequence[float], growth_mb: float, *, warm_up: float = 0.25) -> Growth:
    """See `MemoryProfiler.detect`: the same of any series of bytes."""
    judged = rss[int(len(rss) * warm_up) :]
    if len(judged) < 3:
        raise ValueError(f"at least 3 samples after the warm-up are needed, there are {len(judged)}")
    slope, margin = slope_of(judged)
    grown = (judged[-1] - judged[0]) / MB
    because = []
    if grown >= growth_mb:
        because.append(f"Memory growth {grown:.1f} MB exceeds acceptable threshold ({growth_mb:g} MB)")
    steadily = slope - margin > 0 and _goes_on(judged[len(judged) // 2 :])
    if steadily and (slope - margin) * len(judged) > _NEGLIGIBLE_MB * MB:
        because.append(f"Memory grows by {slope / 1024:.1f} ± {margin / 1024:.1f} kB with every sample")
    return Growth(
        leaking=bool(because),
        megabytes=grown,
        slope=slope,
        slope_low=slope - margin,
        slope_high=slope + margin,
        because=tuple(because),
    )


def _give_back() -> None:
    """Free memory that is kept for later hides a leak: what leaks is put there, and the resident set stays as it is.

    Only the C library of GNU can be asked to part with it; elsewhere, leaks smaller than that reserve are not seen.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _goes_on(later: Sequence[float]) -> bool:
    """Whether the later half still grows; what has only been warming up does not."""
    if len(later) < 3:
        return later[-1] > later[0]
    slope, margin = slope_of(later)
    return slope - margin > 0


def types_alive() -> Counter[str]:
    """How many objects of each type the cycle collector knows."""
    return Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())


def slope_of(values: Sequence[float]) -> tuple[float, float]:
    """The slope of a line through `values`, one apart, and the margin around it, with 95 % confidence."""
    count = len(values)
    slope, intercept = statistics.linear_regression(range(count), values)
    errors = sum((value - intercept - slope * place) ** 2 for place, value in enumerate(values))
    spread = sum((place - (count - 1) / 2) ** 2 for place in range(count))
    return slope, _student(count - 2) * math.sqrt(errors / (count - 2) / spread)


def _student(freedom: int) -> float:
    """The 97.5th percentile of Student's distribution; the expansion of Cornish and Fisher, exact enough from 3 on."""
    if freedom < 3:
        return {1: 12.706, 2: 4.303}[freedom]
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / freedom + second / freedom**2 + third / freedom**3 + fourth / freedom**4
