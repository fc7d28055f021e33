"""Figures with their intervals as inline SVG; colours come from the page's style, by class."""

from collections.abc import Mapping

from data.charts import svg
from eval.intervals import Figure

STRIP_PX = (400, 38)
ROW_PX = 11
STRIP_MARGIN_PX = 16
# Marks differ in form as well as in colour.
MARKS = (
    '<circle cx="{x}" cy="{y}" r="4.5"/>',
    '<circle class=hollow cx="{x}" cy="{y}" r="3.5"/>',
    '<path d="M{x} {y}m-3.5-3.5h7v7h-7z"/>',
)
SHARES = (0.0, 1.0)
NUM_TICKS = 5


def strip(figures: Mapping[str, Figure], ends: tuple[float, float] = SHARES) -> str:
    """Up to three figures one below another, each under its class name, with intervals as bars.

    Args:
        ends: the values at the left and the right end; what lies outside is drawn at the end.
    """
    parts = []
    for row, ((name, figure), mark) in enumerate(zip(figures.items(), MARKS, strict=False)):
        if figure.value is None:
            continue
        y = STRIP_PX[1] / 2 + ROW_PX * (row - (len(figures) - 1) / 2)
        bounds = [figure.value if bound is None else bound for bound in (figure.low, figure.high)]
        x, low, high = (_x(value, ends) for value in (figure.value, *bounds))
        bar = f'<path class=whisker d="M{low} {y:g}H{high}"/>'
        parts.append(f"<g class={name}>{bar}{mark.format(x=x, y=f'{y:g}')}</g>")
    grid = "".join(f"M{_x(tick, ends)} 0V{STRIP_PX[1]}" for tick in _ticks(ends))
    return f'{svg(STRIP_PX, None)}<path class=grid d="{grid}"/>{"".join(parts)}</svg>'


def strip_scale(ends: tuple[float, float] = SHARES, factor: float = 100) -> str:
    """The scale above strips; by default in percent."""
    labels = "".join(
        f'<text x="{_x(tick, ends)}" y="12" text-anchor="middle">{factor * tick:g}</text>'
        for tick in _ticks(ends)
    )
    return f"{svg((STRIP_PX[0], 15), 'scale')}{labels}</svg>"


def _ticks(ends: tuple[float, float]) -> list[float]:
    low, high = ends
    return [low + (high - low) * n / (NUM_TICKS - 1) for n in range(NUM_TICKS)]


def _x(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    place = min(max((value - low) / (high - low), 0.0), 1.0)
    return round(STRIP_MARGIN_PX + place * (STRIP_PX[0] - 2 * STRIP_MARGIN_PX), 1)
