"""Curves over steps as inline SVG.

Colours come from the page's style, by class: `first` and `second` for curves, `grid` for lines
behind them.
"""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from data.charts import CHART_PX, PLOT_PX, Axis, linear_axis, svg, value_axis, value_grid, value_y


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
