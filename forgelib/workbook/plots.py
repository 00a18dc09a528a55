"""Figures in one quiet style. Each function returns a figure that a notebook shows as SVG; nothing is global.

Colours follow the order of the series and stay apart in greyscale and for colour-blind readers (Okabe and Ito, 2008).
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, SOFT, LINE = "#1c2330", "#5b6675", "#dfe3e8"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#aab2bc",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.fonttype": "none",
    "svg.hashsalt": "agent-forge",
}


class Plot(Figure):
    """A matplotlib figure that shows itself as SVG, whatever backend the notebook has; equal data give equal bytes."""

    def _repr_svg_(self) -> str:
        buffer = io.StringIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return buffer.getvalue()


def curves(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    y: str,
    x: str = "step",
    title: str = "",
    unit: str = "",
    smooth: int = 1,
    log: bool = False,
    threshold: float | None = None,
) -> Plot:
    """One line a series from journal records: {"trunk": records, ...}, value `y` over `x`.

    `smooth` is the window of a running median in records; the raw points stay visible behind it. Records without `y`
    are left out; a series of one point is a dot, and a figure without any says that nothing was measured.
    """
    figure, axes = _blank(title, x, f"{y} ({unit})" if unit else y)
    for i, (colour, (name, records)) in enumerate(zip(_cycle(), series.items(), strict=False)):
        points = [(record[x], record[y]) for record in records if _finite(record.get(y))]
        xs, ys = np.array(points, dtype=float).reshape(-1, 2).T
        if smooth > 1 and len(ys) > smooth:
            axes.plot(xs, ys, color=colour, alpha=0.22, linewidth=0.9)
            ys = _running_median(ys, smooth)
        dot = "o" if len(ys) == 1 else None
        axes.plot(xs, ys, color=colour, label=name, linestyle="--" if i >= len(COLOURS) else "-", marker=dot)
    if not any(len(line.get_xdata()) for line in axes.lines):
        axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color=SOFT)
        axes.set(xticks=[], yticks=[])
    elif all((line.get_xdata() == np.round(line.get_xdata())).all() for line in axes.lines):
        # There is no generation 2.5.
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    if log:
        axes.set_yscale("log")
    _threshold(axes, threshold)
    return _legend(figure, axes, len(series))


def bars(
    groups: Mapping[str, Mapping[str, float]],
    title: str = "",
    unit: str = "",
    threshold: float | None = None,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Plot:
    """Grouped bars: {"reasoning": {"math": 0.4, "code": 0.1}, ...}; one group a key, one colour an inner key.

    `intervals` holds (low, high) for the same keys and is drawn as error bars. A bar of height zero is written as a 0,
    so that it is not taken for one that was not measured.
    """
    figure, axes = _blank(title, "", unit)
    labels = list(dict.fromkeys(label for values in groups.values() for label in values))
    width = 0.8 / max(len(labels), 1)
    for index, (colour, label) in enumerate(zip(_cycle(), labels, strict=False)):
        places = [place + (index - (len(labels) - 1) / 2) * width for place in range(len(groups))]
        heights = [values.get(label, np.nan) for values in groups.values()]
        axes.bar(places, heights, width * 0.92, color=colour, label=label)
        for place, name, height in zip(places, groups, heights, strict=True):
            if height == 0:
                axes.annotate("0", (place, 0), ha="center", va="bottom", color=colour, fontsize=8)
            if intervals and label in intervals.get(name, {}):
                low, high = intervals[name][label]
                axes.plot([place, place], [low, high], color=INK, linewidth=1)
    slanted = {"rotation": 30, "ha": "right"} if len(groups) > len(COLOURS) else {}
    axes.set_xticks(range(len(groups)), list(groups), **slanted)
    if not any(height for values in groups.values() for height in values.values()):
        axes.set_ylim(0, 1)  # all zero: matplotlib would draw an axis of negative numbers too
    _threshold(axes, threshold)
    return _legend(figure, axes, len(labels))


def histogram(samples: Mapping[str, Iterable[float]], title: str = "", xlabel: str = "", bins: int = 24) -> Plot:
    """Distributions over shared bins as shares of each sample, one outline a series."""
    figure, axes = _blank(title, xlabel, "share")
    arrays = {name: np.asarray(list(values), dtype=float) for name, values in samples.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins=bins)
    for colour, (name, values) in zip(_cycle(), arrays.items(), strict=False):
        counts, _ = np.histogram(values, bins=edges)
        axes.stairs(counts / max(len(values), 1), edges, color=colour, linewidth=1.6, label=name)
        axes.stairs(counts / max(len(values), 1), edges, color=colour, fill=True, alpha=0.12)
    return _legend(figure, axes, len(arrays))


def heatmap(rows: Mapping[str, Mapping[str, float]], title: str = "", unit: str = "") -> Plot:
    """A table of numbers as shades, each number written in its cell: {"reasoning": {"math": 0.61, ...}, ...}."""
    columns = list(dict.fromkeys(name for values in rows.values() for name in values))
    table = np.array([[values.get(name, np.nan) for name in columns] for values in rows.values()], dtype=float)
    figure, axes = _blank(title + (f" ({unit})" if unit else ""), "", "", height=0.9 + 0.38 * len(rows))
    axes.imshow(table, cmap="Blues", aspect="auto", vmin=min(0.0, np.nanmin(table)), vmax=1.4 * np.nanmax(table))
    axes.grid(False)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), list(rows))
    for (row, column), value in np.ndenumerate(table):
        axes.text(column, row, "" if np.isnan(value) else f"{value:.3g}", ha="center", va="center", color=INK)
    return figure


def _blank(title: str, xlabel: str, ylabel: str, height: float = 2.9) -> tuple[Plot, Axes]:
    with mpl.rc_context(STYLE):
        figure = Plot(figsize=(6.6, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
    return figure, axes


def _legend(figure: Plot, axes: Axes, series: int) -> Plot:
    """Beside the axes, where it hides nothing."""
    if series > 1:
        with mpl.rc_context(STYLE):
            axes.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _threshold(axes: Axes, value: float | None) -> None:
    if value is not None:
        axes.axhline(value, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))


def _running_median(values: np.ndarray, window: int) -> np.ndarray:
    padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _cycle() -> Iterable[str]:
    while True:
        yield from COLOURS
