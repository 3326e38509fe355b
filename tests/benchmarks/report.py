"""What was measured, as a table, as JSON, and as a picture."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import attrs


@attrs.frozen
class Figure:
    """One server under one load: what each round has cost; infinite, if it gave up."""

    server: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


@attrs.frozen
class Comparison:
    """All servers under one load, which took turns; the first of them is what the others are compared with."""

    load: str
    unit: str
    figures: tuple[Figure, ...]

    def ratios(self, figure: Figure) -> list[float]:
        """Of each round, to the first server's in the same round; sorted."""
        first = self.figures[0].rounds
        return sorted(theirs / ours for theirs, ours in zip(figure.rounds, first, strict=True))

    def lines(self) -> Iterator[str]:
        """A table in Markdown."""
        yield f"**{self.load}**, {self.unit}"
        yield ""
        yield "| | median | over ours | from, to |"
        yield "|---|---|---|---|"
        for figure in self.figures:
            ratios = self.ratios(figure)
            middle = statistics.median(ratios)
            yield f"| {figure.server} | {figure.median:.1f} | {middle:.2f} | {ratios[0]:.2f}, {ratios[-1]:.2f} |"
        yield ""


def as_json(comparisons: list[Comparison]) -> str:
    """For whoever wants to compute more."""
    return json.dumps([attrs.asdict(comparison) for comparison in comparisons], indent=1)


def plot(comparisons: list[Comparison], place: Path) -> None:
    """A picture: one row of bars for each load, the spread as whiskers."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.fonttype"] = "none"  # text stays text
    rows = len(comparisons)
    figure, axes = plt.subplots(rows, 1, figsize=(9, 2.4 * rows), squeeze=False)
    for axis, comparison in zip(axes[:, 0], comparisons, strict=True):
        figures = [it for it in comparison.figures if math.isfinite(max(it.rounds))][::-1]
        names, medians = [it.server for it in figures], [it.median for it in figures]
        spread = [[it.median - min(it.rounds), max(it.rounds) - it.median] for it in figures]
        colours = ["#2a6f97" if name.startswith("ours") else "#b0b7bf" for name in names]
        axis.barh(names, medians, xerr=list(zip(*spread, strict=True)), color=colours, ecolor="#444444")
        axis.set_title(f"{comparison.load}, {comparison.unit}", loc="left", fontsize=9)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(place)
    plt.close(figure)
