"""Figures draw what they are given, show themselves as SVG, and the slider's verdicts agree with its table."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from forgelib.workbook import plots
from forgelib.workbook.plots import Plot
from forgelib.workbook.widgets import threshold_table, verdict

RECORDS = [{"step": n, "loss": 4.0 / (n + 1), "accuracy": None if n < 5 else 0.5} for n in range(40)]
FIGURES = {
    "curves": lambda: plots.curves({"trunk": RECORDS, "memory": RECORDS[:9]}, "loss", unit="nats", smooth=5, log=True),
    "bars": lambda: plots.bars({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}, threshold=0.3),
    "histogram": lambda: plots.histogram({"a": [1, 2, 2, 3], "b": np.arange(5)}, xlabel="cycles"),
    "heatmap": lambda: plots.heatmap({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_valid_svg_and_equal_data_give_equal_bytes(name):
    figure = FIGURES[name]()
    assert isinstance(figure, Plot)
    source = figure._repr_svg_()
    assert ElementTree.fromstring(source).tag.endswith("svg")
    assert source == FIGURES[name]()._repr_svg_()


def test_curves_leave_out_what_was_not_measured():
    (line,) = plots.curves({"only": RECORDS}, "accuracy").axes[0].lines
    assert list(line.get_xdata()) == list(range(5, 40))


def test_a_figure_without_a_point_says_so_and_one_point_is_seen():
    (empty,) = plots.curves({}, "loss").axes
    assert [text.get_text() for text in empty.texts] == ["nothing was measured"] and not len(empty.get_yticks())
    (axes,) = plots.curves({"short": RECORDS[:1], "not begun": []}, "loss").axes
    assert not axes.texts and axes.lines[0].get_marker() == "o"


def test_a_journal_may_hold_non_finite_text():
    (line,) = plots.curves({"only": [*RECORDS, {"step": 40, "loss": "nan"}]}, "loss").axes[0].lines
    assert len(line.get_xdata()) == 40


def test_smoothing_is_a_running_median_beside_the_raw_points():
    spiky = [{"step": n, "loss": 100.0 if n == 20 else 1.0} for n in range(41)]
    raw, smooth = plots.curves({"only": spiky}, "loss", smooth=5).axes[0].lines
    assert max(raw.get_ydata()) == 100.0 and set(smooth.get_ydata()) == {1.0}


def test_a_threshold_is_drawn_where_it_lies():
    axes = plots.bars({"a": {"x": 1.0}}, threshold=0.3).axes[0]
    assert [tuple(line.get_ydata()) for line in axes.lines] == [(0.3, 0.3)]


def test_bars_carry_their_intervals():
    axes = plots.bars({"a": {"x": 1.0}}, intervals={"a": {"x": (0.8, 1.2)}}).axes[0]
    assert [tuple(line.get_ydata()) for line in axes.lines] == [(0.8, 1.2)]


def test_a_bar_of_height_zero_is_written_and_one_not_measured_is_not():
    axes = plots.bars({"a": {"x": 0.0, "y": 0.0}, "b": {"x": 0.0}}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0"] * 3 and axes.get_ylim() == (0, 1)
    axes = plots.bars({"a": {"x": -0.5, "y": 0.0}}).axes[0]
    assert len(axes.texts) == 1 and axes.get_ylim()[0] < -0.5


@pytest.mark.parametrize("name", ["curves", "bars", "histogram"])
def test_a_legend_stands_beside_the_axes_and_inside_the_figure(name):
    figure = FIGURES[name]()
    figure._repr_svg_()
    legend, axes = figure.axes[0].get_legend().get_window_extent(), figure.axes[0].get_window_extent()
    assert axes.x1 <= legend.x0 and legend.x1 <= figure.bbox.x1


def test_drawing_changes_no_global_style():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    FIGURES["curves"]()._repr_svg_()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    "value, op, word",
    [(0.4, ">", "passed"), (0.3, ">", "failed"), (0.3, ">=", "passed"), (0.2, "<", "passed"), (None, ">", "not run")],
)
def test_verdicts_are_those_of_a_gate(value, op, word):
    assert verdict(value, 0.3, op) == word


def test_the_static_twin_has_a_row_for_each_threshold():
    table = threshold_table({"halting": 0.41, "latency": 0.12}, [0.1, 0.3, 0.5])
    assert table.count("<tr>") == 4 and table.count(">passed<") == 3 and table.count(">failed<") == 3
