"""Averages of weights: their definition, what has none, and where they come and go."""

import torch
from torch import nn

from training.config import EmaConfig
from training.ema import Ema


def make(write: bool = True, decay: float = 0.75) -> tuple[dict[str, nn.Module], Ema]:
    torch.manual_seed(0)
    modules: dict[str, nn.Module] = {"encoder": nn.Linear(3, 2), "decoder": nn.Linear(2, 2)}
    modules["encoder"].bias.requires_grad_(False)  # type: ignore[union-attr]
    return modules, Ema(modules, EmaConfig(decay=decay, write=write))


def weight(modules: dict[str, nn.Module]) -> torch.Tensor:
    return modules["decoder"].state_dict()["weight"]


def test_averages_follow_their_definition_and_frozen_weights_have_none() -> None:
    modules, ema = make()
    assert set(ema.averages) == {"encoder.weight", "decoder.weight", "decoder.bias"}
    expected = weight(modules).clone()
    for _ in range(4):
        weight(modules).add_(torch.randn(2, 2))
        ema.update()
        expected = 0.75 * expected + 0.25 * weight(modules)
    # Two ways to write the same in float32.
    torch.testing.assert_close(ema.averages["decoder.weight"], expected, rtol=1e-6, atol=1e-6)


def test_averages_are_in_place_where_they_are_written_and_nowhere_else() -> None:
    for write in (True, False):
        modules, ema = make(write)
        before = weight(modules).clone()
        weight(modules).add_(1.0)
        ema.update()
        trained, average = weight(modules).clone(), ema.averages["decoder.weight"].clone()
        assert not average.equal(trained) and not average.equal(before)
        with ema.in_place():
            assert weight(modules).equal(average if write else trained)
        assert weight(modules).equal(trained)
        assert ema.averages["decoder.weight"].equal(average)
