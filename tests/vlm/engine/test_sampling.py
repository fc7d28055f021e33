"""How the next token is chosen: greedy, temperature, nucleus, seeds."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from vlm.engine.sampling import Sampler, SamplingConfig, keep_nucleus

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])


def draw(config: SamplingConfig, logits: Tensor, num_draws: int) -> Tensor:
    """(B, num_draws) tokens drawn one after the other."""
    sampler = Sampler(config, len(logits))
    return torch.stack([sampler(logits) for _ in range(num_draws)], dim=1)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, [1]), (0.39, [1]), (0.5, [1, 3]), (0.7, [1, 3, 4]), (0.93, [0, 1, 3, 4])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    nucleus = keep_nucleus(PROBABILITIES.expand(2, -1), top_p)
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept]
    assert torch.equal(nucleus, expected.expand(2, -1))


def test_the_nucleus_is_smallest_for_random_rows() -> None:
    torch.manual_seed(0)
    probabilities = (3 * torch.randn(200, 30)).softmax(dim=-1)
    for top_p in (0.1, 0.5, 0.9):
        nucleus = keep_nucleus(probabilities, top_p)
        kept = nucleus > 0
        smallest = nucleus.masked_fill(~kept, 2).amin(dim=-1)
        largest_left_out = probabilities.masked_fill(kept, 0).amax(dim=-1)
        assert (nucleus.sum(-1) >= top_p).all()
        assert (nucleus.sum(-1) - smallest < top_p).all()
        assert (largest_left_out <= smallest).all()


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 4.0, 4.9]])
    tokens = draw(SamplingConfig(temperature=0, top_p=0.5), logits, 3)
    assert tokens.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    # A thousand rows would share one seed; draws of one row are independent of each other.
    tokens = draw(SamplingConfig(temperature=1, seed=0), PROBABILITIES.log()[None], 4000)[0]
    shares = tokens.bincount(minlength=5) / 4000
    # Four standard deviations of a share near 0.4 over 4,000 draws.
    torch.testing.assert_close(shares, PROBABILITIES, rtol=0.0, atol=0.031)


def test_temperature_sharpens_and_flattens() -> None:
    logits = PROBABILITIES.log()[None]
    shares = {
        temperature: (draw(SamplingConfig(temperature=temperature, seed=1), logits, 1000) == 1)
        .double()
        .mean()
        for temperature in (0.25, 1.0, 4.0)
    }
    assert shares[0.25] > shares[1.0] + 0.1 > shares[4.0] + 0.2


def test_outside_the_nucleus_nothing_is_drawn() -> None:
    logits = PROBABILITIES.log()[None]
    tokens = draw(SamplingConfig(temperature=2, top_p=0.4, seed=0), logits, 500)
    assert set(tokens.flatten().tolist()) == {1, 3}


def test_a_seed_reproduces_and_another_differs() -> None:
    logits = torch.zeros(1, 50)
    first, again, other = (
        draw(SamplingConfig(temperature=1, seed=seed), logits, 20) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_rows_draws_do_not_depend_on_its_batch_mates() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 50)
    config = SamplingConfig(temperature=1, top_p=0.9, seed=7)
    together = draw(config, logits, 20)
    for row in range(3):
        assert torch.equal(draw(config, logits[row : row + 1], 20)[0], together[row])


def test_without_a_seed_rows_and_runs_differ() -> None:
    logits = torch.zeros(2, 50)
    config = SamplingConfig(temperature=1)
    first, second = draw(config, logits, 20), draw(config, logits, 20)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("seed", [None, 3])
def test_sampling_leaves_torchs_own_random_numbers_alone(seed: int | None) -> None:
    state = torch.get_rng_state()
    draw(SamplingConfig(temperature=1, seed=seed), torch.zeros(2, 50), 3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("seed", -1),
        ("seed", 2**64),
        ("greedy", True),
    ],
)
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        SamplingConfig.model_validate({field: value})


def test_the_largest_seed_is_taken() -> None:
    assert draw(SamplingConfig(temperature=1, seed=2**64 - 1), torch.zeros(1, 5), 1).shape == (1, 1)
