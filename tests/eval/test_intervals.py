import math

import numpy as np
import pytest

from eval.intervals import clusters_of, figures, wilson
from eval.items import Item, Picture
from eval.metrics.measured import Measured, mean


def alone(measured: Measured) -> np.ndarray:
    """Every unit is a cluster of its own."""
    return np.arange(len(measured.statistics))


def test_the_interval_of_a_mean_is_near_the_normal_one() -> None:
    scores = np.random.default_rng(1).uniform(size=400)
    measured = mean("accuracy", scores)
    figure = figures(measured, alone(measured))["accuracy"]
    value, low, high = figure.numbers
    assert value == pytest.approx(scores.mean())
    error = 1.959964 * scores.std() / math.sqrt(400)
    # A thousand resamples know a 2.5 % quantile to about 7 % of the interval's half width.
    assert value - low == pytest.approx(error, rel=0.2)
    assert high - value == pytest.approx(error, rel=0.2)


def test_pictures_asked_many_times_widen_the_interval() -> None:
    # Ten questions about each of 20 pictures, all right or all wrong: worth 20 questions.
    scores = np.repeat(np.random.default_rng(0).integers(0, 2, 20), 10).astype(float)
    measured = mean("accuracy", scores)
    by_picture = figures(measured, np.repeat(np.arange(20), 10))["accuracy"].numbers
    by_question = figures(measured, alone(measured))["accuracy"].numbers
    ratio = (by_picture[2] - by_picture[1]) / (by_question[2] - by_question[1])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.25)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_or_nothing_is_not_certain(value: float) -> None:
    measured = mean("accuracy", [value] * 20)
    found, low, high = figures(measured, alone(measured))["accuracy"].numbers
    assert found == value and (low, high) == wilson(value, 20)
    assert 0 <= low <= high <= 1 and 0.1 < high - low < 0.2


def test_wilsons_bounds_solve_their_equation() -> None:
    # |p - x| = z sqrt(x (1 - x) / n).
    for bound in wilson(0.75, 40):
        assert abs(0.75 - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / 40))


def test_figures_of_a_part_are_those_of_its_units() -> None:
    measured = mean("accuracy", [1, 0, 1, 1])
    part = figures(measured, alone(measured), np.array([0, 1]))["accuracy"]
    assert part.value == 0.5


def test_a_figure_without_anything_to_divide_by_is_none() -> None:
    measured = Measured(
        np.ones(2), np.arange(2), np.zeros((2, 1)), lambda sums: {"f": sums[..., 0] * np.nan}
    )
    assert figures(measured, np.arange(2))["f"].model_dump() == {
        "value": None,
        "low": None,
        "high": None,
    }


def test_the_same_answers_have_the_same_interval() -> None:
    measured = mean("accuracy", [1, 0, 1, 1, 0])
    assert figures(measured, alone(measured)) == figures(measured, alone(measured))


def test_items_of_a_picture_are_a_cluster_and_others_stand_alone() -> None:
    picture = Picture("p", lambda: b"")
    items = [Item("a", "?", (picture,)), Item("b", "?"), Item("c", "?", (picture,)), Item("p", "?")]
    clusters = clusters_of(items, mean("accuracy", [1, 1, 1, 1]))
    assert clusters[0] == clusters[2] and len(set(clusters.tolist())) == 3
