"""Charts as inline SVG: axes, and histograms. `training.charts` draws curves over the same axes.

Colours come from the page's style, by class: `grid` for lines behind, `bar` for bars.
"""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

CHART_PX = (440, 216)
# Left, top, right and bottom of the plot in a chart.
PLOT_PX = (46, 10, 424, 180)
LOG_RATIO = 4  # values that differ by more than this factor get a logarithmic axis
MAX_TICKS = 8
MAX_BARS = 24
BAR_GAP_PX = 1.0


class Axis(NamedTuple):
    """A scale from the first tick to the last."""

    ticks: list[float]
    log: bool

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the first tick, 1 at the last."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            return log10(value / low) / log10(high / low)
        return (value - low) / (high - low)


def linear_axis(high: float) -> Axis:
    """From 0 to at least `high`, in steps of 1, 2 or 5 times a power of ten."""
    # What rounding adds must not cost a tick.
    high = (high or 1) * 0.999
    power = 10.0 ** floor(log10(high / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= high / 5)
    count = next(n for n in range(1, 7) if n * step >= high)
    return Axis([n * step for n in range(count + 1)], log=False)


def log_axis(low: float, high: float) -> Axis:
    """Around 0 < `low` < `high`, ticks at 1, 2 and 5 times powers of ten, or at these alone."""
    powers = [10.0**n for n in range(floor(log10(low)), floor(log10(high)) + 2)]
    fine = [power * factor for power in powers for factor in (1, 2, 5)]
    first = max(i for i, tick in enumerate(fine) if tick <= low)
    last = min(i for i, tick in enumerate(fine) if tick >= high)
    inside = fine[first : last + 1]
    return Axis(inside if len(inside) <= MAX_TICKS else powers, log=True)


def value_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis for positive values that differ widely, else a linear one from 0."""
    low, high = min(values, default=0), max(values, default=1)
    return log_axis(low, high) if 0 < low * LOG_RATIO < high else linear_axis(high)


class Bar(NamedTuple):
    """How many values lie in [low, high)."""

    low: int
    high: int
    number: int


def bars(counts: Mapping[int, int]) -> list[Bar]:
    """Counts of whole numbers in bars of equal width: 1, 2 or 5 times a power of ten each.

    Args:
        counts: how often each value occurs.
    """
    if not counts:
        return []
    low, high = min(counts), max(counts)
    step = next(
        10**power * factor
        for power in range(20)
        for factor in (1, 2, 5)
        if (high - low) // (10**power * factor) < MAX_BARS - 1
    )
    first = low // step
    sums = [0] * (high // step - first + 1)
    for value, count in counts.items():
        sums[value // step - first] += count
    return [Bar((first + i) * step, (first + i + 1) * step, n) for i, n in enumerate(sums)]


def histogram(title: str, unit: str, counts: Mapping[int, int]) -> str:
    """A figure of how often whole numbers occur, as bars over a linear axis.

    Args:
        unit: of the values, for the axis; as in `px`.
    """
    drawn = bars(counts)
    axis = linear_axis(max((bar.number for bar in drawn), default=1))
    first, last = (drawn[0].low, drawn[-1].high) if drawn else (0, 1)
    step = drawn[0].high - first if drawn else 1
    left, _, right, bottom = PLOT_PX

    def x(value: float) -> float:
        return left + (value - first) / (last - first) * (right - left)

    parts = [value_grid(axis)]
    for bar in drawn:
        top = value_y(bar.number, axis)
        shown = f"{bar.low:,}" if step == 1 else f"{bar.low:,} to {bar.high - 1:,}"
        parts.append(
            f'<rect class=bar x="{x(bar.low):.1f}" y="{top:.1f}" '
            f'width="{max(x(bar.high) - x(bar.low) - BAR_GAP_PX, 1):.1f}" '
            f'height="{bottom - top:.1f}"><title>{shown} {escape(unit)}: {bar.number:,}</title>'
            "</rect>"
        )
    # A bar of one value has its label in the middle, a wider one at the edge where it begins.
    middle = step / 2 if step == 1 else 0
    every = max(1, ceil(len(drawn) / MAX_TICKS))
    edges = [bar.low for bar in drawn[::every]]
    for edge in edges:
        parts.append(
            f'<text x="{x(edge + middle):.1f}" y="{bottom + 18}" text-anchor="middle">{edge:g}'
            "</text>"
        )
    return (
        f"<figure><figcaption><b>{escape(title)}</b></figcaption>"
        f"{svg(CHART_PX, f'{title}: how often each value occurs')}{''.join(parts)}"
        f'<text x="{right}" y="{CHART_PX[1] - 2}" text-anchor="end">{escape(unit)}</text>'
        "</svg></figure>"
    )


def value_grid(axis: Axis) -> str:
    """Grid lines across the plot at the ticks of the vertical axis, with their labels."""
    left, _, right, _ = PLOT_PX
    parts = []
    for tick in axis.ticks:
        y = value_y(tick, axis)
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<path class=grid d="M{left} {y:.1f}H{right}"/>')
    return "".join(parts)


def value_y(value: float, axis: Axis) -> float:
    """Where a value lies on the vertical axis of the plot."""
    _, top, _, bottom = PLOT_PX
    return bottom - axis.place(value) * (bottom - top)


def svg(size_px: tuple[int, int], label: str | None) -> str:
    """The opening tag of a drawing; without a label, those who hear the page hear nothing of it."""
    named = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return f'<svg viewBox="0 0 {size_px[0]} {size_px[1]}" {named}>'
