import random
import re
from collections import Counter

import pytest

from data.charts import MAX_BARS, PLOT_PX, bars, histogram


@pytest.mark.parametrize("largest", [0, 1, 5, 22, 23, 24, 100, 999, 10**6, 10**12])
@pytest.mark.parametrize("smallest", [0, 1, 17])
def test_bars_are_few_equal_round_and_lose_nothing(smallest: int, largest: int) -> None:
    rng = random.Random(largest)
    counts = Counter(smallest + rng.randint(0, largest) for _ in range(500))
    drawn = bars(counts)
    assert 1 <= len(drawn) <= MAX_BARS + 1
    assert sum(bar.number for bar in drawn) == 500
    assert drawn[0].low <= min(counts) and max(counts) < drawn[-1].high
    (step,) = {bar.high - bar.low for bar in drawn}
    assert re.fullmatch("[125]0*", str(step))
    for bar in drawn:
        assert bar.number == sum(n for value, n in counts.items() if bar.low <= value < bar.high)


def test_heights_are_in_proportion_and_stay_in_the_plot() -> None:
    svg = histogram("size & shape", "px", Counter({1: 10, 2: 5, 4: 20}))
    heights = [float(height) for height in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
    assert heights == pytest.approx([h * (PLOT_PX[3] - PLOT_PX[1]) / 20 for h in (10, 5, 0, 20)])
    assert "size &amp; shape" in svg and "<title>4 px: 20</title>" in svg


def test_nothing_has_no_bars() -> None:
    assert bars({}) == [] and "<rect" not in histogram("none", "px", {})
