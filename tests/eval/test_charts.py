import re

from eval.charts import strip, strip_scale
from eval.intervals import Figure


def figure(low: float, value: float, high: float) -> Figure:
    return Figure(value=value, low=low, high=high)


def test_a_strip_orders_its_figures_from_left_to_right() -> None:
    svg = strip({"model": figure(0.6, 0.9, 0.98), "blind": figure(0.1, 0.5, 0.9)})
    x_model, x_blind = (float(x) for x in re.findall(r'cx="([\d.]+)"', svg))
    assert x_blind == 200 and x_blind < x_model < 400
    for low, high, x in zip(
        re.findall(r'whisker d="M([\d.]+) ', svg),
        re.findall(r'whisker[^>]*H([\d.]+)"', svg),
        (x_model, x_blind),
        strict=True,
    ):
        assert float(low) < x < float(high)


def test_a_scale_has_its_zero_where_strips_have_theirs() -> None:
    ends = (-0.1, 0.1)
    (zero,) = re.findall(r'x="([\d.]+)" y="12" text-anchor="middle">0<', strip_scale(ends))
    assert f'cx="{zero}"' in strip({"model": figure(-0.02, 0.0, 0.02)}, ends)
    assert re.findall(r">([-\d.]+)</text>", strip_scale(ends)) == ["-10", "-5", "0", "5", "10"]


def test_what_is_not_defined_is_not_drawn_and_what_lies_outside_is_drawn_at_the_end() -> None:
    nothing = Figure(value=None, low=None, high=None)
    assert "<g" not in strip({"model": nothing})
    assert strip({"model": figure(0.9, 1.7, 2.0)}) == strip({"model": figure(0.9, 1.0, 1.0)})
