"""A series of numbers as a picture made of characters, or in a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def chart(values: Sequence[float], width: int = 72, height: int = 8) -> list[str]:
    """Lines of characters, the greatest value at the top; of more values than columns, each column has the greatest."""
    if not values:
        return []
    columns = _squeeze(values, width)
    low, high = min(columns), max(columns)
    span = (high - low) or 1.0
    filled = [1 + round((value - low) / span * (height * 8 - 1)) for value in columns]
    lines = ["".join(_EIGHTHS[max(0, min(8, eighths - row * 8))] for eighths in filled) for row in range(height)]
    labels = [f"{high:.1f}", *[""] * (height - 2), f"{low:.1f}"]
    margin = max(map(len, labels))
    return [f"{label:>{margin}} │{line}" for label, line in zip(labels, reversed(lines), strict=True)]


def _squeeze(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [len(values) * column // width for column in range(width + 1)]
    return [max(values[begin:end]) for begin, end in pairwise(edges)]


def check_plot(place: Path) -> None:
    """ValueError if nothing could be drawn there: before the hours that a soak takes, and not after."""
    if place.suffix not in (".svg", ".png"):
        raise ValueError(f"--plot draws a file that ends in .svg or .png, not {place.name!r}")
    if not place.absolute().parent.is_dir():
        raise ValueError(f"--plot: there is no directory {place.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs an extra: pip install 'websocket-supervisor[plot]'")


def draw(panels: Mapping[str, Sequence[float]], seconds: Sequence[float], place: Path) -> None:
    """One panel for each series, over time, into an SVG or a PNG; see `check_plot`."""
    import matplotlib as mpl

    mpl.use("svg" if place.suffix == ".svg" else "agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 2.2 * len(panels)), sharex=True, squeeze=False)
    for axis, (name, series) in zip(axes[:, 0], panels.items(), strict=True):
        axis.plot(seconds, series, color="#2a6f97", linewidth=1.2)
        axis.set_title(name, loc="left", fontsize=9)
        axis.grid(alpha=0.25)
    axes[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(place)
    plt.close(figure)
