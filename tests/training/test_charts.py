import re

import pytest

from data.charts import CHART_PX, MAX_TICKS, PLOT_PX, linear_axis, log_axis, value_axis
from training.charts import Curve, chart


def places(svg: str) -> list[tuple[float, float]]:
    """The points of the first curve in a chart."""
    (path,) = re.findall(r'<g class=first><path class=line d="M([^"]*)"', svg)
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path.split("L"))]


@pytest.mark.parametrize("high", [0.003, 0.7, 1, 3, 5, 9.99, 100, 101, 700, 12345])
def test_a_linear_axis_starts_at_zero_holds_its_values_and_has_few_ticks(high: float) -> None:
    axis = linear_axis(high)
    assert axis.ticks[0] == 0 and axis.ticks[-1] >= high * 0.999
    assert axis.ticks[-1] - axis.ticks[1] < high
    assert 3 <= len(axis.ticks) <= 7
    steps = {round(b - a, 9) for a, b in zip(axis.ticks, axis.ticks[1:], strict=False)}
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("low", "high"), [(0.031, 0.6), (0.9, 6.2), (1, 10), (1e-6, 9), (0.5, 2.0), (0.0011, 0.0099)]
)
def test_a_log_axis_holds_its_values(low: float, high: float) -> None:
    axis = log_axis(low, high)
    assert axis.ticks[0] <= low and axis.ticks[-1] >= high
    assert 2 <= len(axis.ticks) <= MAX_TICKS


def test_equal_factors_are_equal_distances_on_a_log_axis() -> None:
    axis = log_axis(0.1, 10)
    assert [axis.place(value) for value in (0.1, 1, 10)] == pytest.approx([0, 0.5, 1])
    assert axis.place(0.2) - axis.place(0.1) == pytest.approx(axis.place(4) - axis.place(2))


@pytest.mark.parametrize(
    ("values", "log"),
    [([6.0, 1.0], True), ([6.0, 3.0], False), ([6.0, 0.0], False), ([], False), ([2.0], False)],
)
def test_values_that_differ_widely_get_a_log_axis(values: list[float], log: bool) -> None:
    assert value_axis(values).log is log


def test_a_chart_puts_values_where_its_ticks_say() -> None:
    svg = chart("loss", "text", [Curve("train", [(0, 4.0), (50, 2.0), (100, 0.0)], False)], 100)
    left, top, right, bottom = PLOT_PX
    middle = ((left + right) / 2, (top + bottom) / 2)
    assert places(svg) == [(left, top), middle, (right, bottom)]
    labels = dict(re.findall(r'<text x="38" y="([\d.]+)" text-anchor="end">([\d.]+)</text>', svg))
    assert {label: float(y) - 4 for y, label in labels.items()}["4"] == top


def test_points_stay_inside_the_plot() -> None:
    points = [(step, 9.7 * 0.9**step) for step in range(1, 73)]
    svg = chart("loss", "text", [Curve("train", points, dots=False)], 73)
    left, top, right, bottom = PLOT_PX
    assert len(places(svg)) == 72
    assert all(left <= x <= right and top <= y <= bottom for x, y in places(svg))
    assert CHART_PX[0] > right and CHART_PX[1] > bottom
    assert "loss (log)" in svg and ">step</text>" in svg


def test_a_curve_without_points_is_left_out_and_a_single_point_gets_a_dot() -> None:
    svg = chart("loss", "x", [Curve("train", [(1, 3.0)], False), Curve("held", [], True)], 1)
    assert svg.count("<circle") == 1 and "train" in svg and "held" not in svg
    assert "<circle" not in chart("loss", "x", [Curve("none", [], True)], 10)
