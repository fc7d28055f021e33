"""Charts as inline SVG: curves over steps, and shares with their intervals.

Colours come from the page's style, by class: `first` and `second` for curves, `grid` for lines
behind them, and whatever classes a caller gives to shares.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from data.charts import CHART_PX, PLOT_PX, Axis, linear_axis, svg, value_axis, value_grid, value_y
from eval.intervals import Figure

STRIP_PX = (400, 38)
STRIP_MARGIN_PX = 16
STRIP_MARKS = (
    '<circle cx="{x}" cy="{y}" r="4.5"/>',
    '<circle class=hollow cx="{x}" cy="{y}" r="3.5"/>',
    '<path d="M{x} {y}m-3.5-3.5h7v7h-7z"/>',
)


class Curve(NamedTuple):
    """Values over steps, as (step, value); `dots` marks each."""

    label: str
    points: Sequence[tuple[float, float]]
    dots: bool


def chart(
    title: str, subject: str, curves: Sequence[Curve], steps: int, axis: Axis | None = None
) -> str:
    """A figure of at most two curves over `steps` steps; the second is dashed.

    Args:
        subject: what the title is about, for those who hear the page.
        axis: the vertical one; None: whatever suits the values, which are at least 0.
    """
    axis = axis or value_axis([value for curve in curves for _, value in curve.points])
    shown = [curve for curve in curves if curve.points]
    drawn = "".join(
        _curve(name, curve, steps, axis)
        for name, curve in zip(("first", "second"), shown, strict=False)
    )
    keys = "".join(
        f'<span class={name}><svg viewBox="0 0 26 10" aria-hidden="true">'
        f'<path class=line d="M1 5H25"/></svg>{escape(curve.label)}</span>'
        for name, curve in zip(("first", "second"), shown, strict=False)
    )
    scale = " (log)" if axis.log else ""
    return (
        f"<figure><figcaption><b>{escape(title)}{scale}</b>{keys}</figcaption>"
        f"{svg(CHART_PX, f'{subject}: {title} over steps')}{_frame(steps, axis)}{drawn}"
        f'<text x="{PLOT_PX[2]}" y="{CHART_PX[1] - 2}" text-anchor="end">step</text>'
        f"</svg></figure>"
    )


def strip(shares: Mapping[str, Figure]) -> str:
    """Up to three shares one below another on a scale of 0 to 1, each under its class name.

    Marks differ in form as well; bars are the 95 % intervals.
    """
    parts = []
    for row, ((name, share), mark) in enumerate(zip(shares.items(), STRIP_MARKS, strict=False)):
        y = 8 + 11 * row
        x, low, high = (_strip_x(value) for value in share.numbers)
        parts.append(
            f"<g class={name}><title>{name}: {100 * share.numbers[0]:.1f} %</title>"
            f'<path class=whisker d="M{low} {y}H{high}"/>{mark.format(x=x, y=y)}</g>'
        )
    grid = "".join(f"M{_strip_x(share)} 0V{STRIP_PX[1]}" for share in (0, 0.25, 0.5, 0.75, 1))
    return f'{svg(STRIP_PX, None)}<path class=grid d="{grid}"/>{"".join(parts)}</svg>'


def strip_scale() -> str:
    """The scale above strips, in percent."""
    labels = "".join(
        f'<text x="{_strip_x(percent / 100)}" y="12" text-anchor="middle">{percent}</text>'
        for percent in (0, 25, 50, 75, 100)
    )
    return f"{svg((STRIP_PX[0], 15), 'percent')}{labels}</svg>"


def _frame(steps: int, axis: Axis) -> str:
    """Grid lines and the labels of both axes' ticks."""
    bottom = PLOT_PX[3]
    parts = [value_grid(axis)]
    # The last step ends the plot, wherever the next tick would be.
    for tick in linear_axis(steps).ticks:
        if tick <= steps:
            x = _x(tick, steps)
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
            )
    return "".join(parts)


def _curve(name: str, curve: Curve, steps: int, axis: Axis) -> str:
    places = [(_x(step, steps), value_y(value, axis)) for step, value in curve.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dots = ""
    if curve.dots or len(places) == 1:  # a line of one point cannot be seen
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>step {step:g}: {value:.4g}</title>'
            "</circle>"
            for (x, y), (step, value) in zip(places, curve.points, strict=True)
        )
    return f'<g class={name}><path class=line d="M{path}"/>{dots}</g>'


def _x(step: float, steps: int) -> float:
    left, _, right, _ = PLOT_PX
    return left + step / steps * (right - left)


def _strip_x(share: float) -> float:
    return round(STRIP_MARGIN_PX + share * (STRIP_PX[0] - 2 * STRIP_MARGIN_PX), 1)
