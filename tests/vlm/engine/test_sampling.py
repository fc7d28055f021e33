"""How the next token is chosen: greedy, temperature, cuts, penalty, seeds."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlm.engine.sampling import (
    Sampler,
    SamplingConfig,
    keep_nucleus,
    log_probabilities,
    token_probabilities,
)

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])


def draw(config: SamplingConfig, logits: Tensor, num_draws: int) -> list[int]:
    """Tokens drawn one after the other."""
    sampler = Sampler(config, ())
    return [sampler(logits) for _ in range(num_draws)]


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


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_what_is_drawn_from_equals_transformers(config: dict[str, float]) -> None:
    torch.manual_seed(0)
    for logits in 2 * torch.randn(20, 60):
        theirs = TemperatureLogitsWarper(config["temperature"])(None, logits[None])
        if "top_k" in config:
            theirs = TopKLogitsWarper(int(config["top_k"]))(None, theirs)
        if "top_p" in config:
            theirs = TopPLogitsWarper(config["top_p"])(None, theirs)
        if "min_p" in config:
            theirs = MinPLogitsWarper(config["min_p"])(None, theirs)
        ours = token_probabilities(logits, SamplingConfig.model_validate(config))
        expected = theirs[0].softmax(dim=-1)
        # Divided by their sum at another place: a few roundings of numbers up to 1.
        torch.testing.assert_close(ours / ours.sum(), expected, rtol=1e-5, atol=1e-7)


def test_the_repetition_penalty_equals_transformers() -> None:
    torch.manual_seed(0)
    sampler = Sampler(SamplingConfig(repetition_penalty=1.7), [3, 5, 5])
    seen = [3, 5, 5]
    for logits in torch.randn(40, 12):
        theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([seen]), logits[None].clone())
        token = sampler(logits)
        assert token == int(theirs.argmax())
        seen.append(token)
    assert len(set(seen)) > 6


def test_prompt_tokens_behind_the_output_layer_are_not_penalised() -> None:
    sampler = Sampler(SamplingConfig(repetition_penalty=2.0), [0, 7])
    assert sampler(torch.tensor([1.5, 1.0])) == 1


def test_temperature_zero_takes_the_most_likely_token() -> None:
    config = SamplingConfig(temperature=0, top_p=0.5)
    assert draw(config, torch.tensor([0.0, 2.0, 1.0]), 3) == [1, 1, 1]
    assert Sampler(config, ()).takes_likeliest
    for other in (SamplingConfig(temperature=1), SamplingConfig(repetition_penalty=1.1)):
        assert not Sampler(other, ()).takes_likeliest


def test_tokens_are_drawn_as_often_as_their_probability_says() -> None:
    tokens = torch.tensor(draw(SamplingConfig(temperature=1, seed=0), PROBABILITIES.log(), 4000))
    shares = tokens.bincount(minlength=5) / 4000
    # Four standard deviations of a share near 0.4 over 4,000 draws.
    torch.testing.assert_close(shares, PROBABILITIES, rtol=0.0, atol=0.031)


def test_temperature_sharpens_and_flattens() -> None:
    logits = PROBABILITIES.log()
    shares = {
        temperature: draw(SamplingConfig(temperature=temperature, seed=1), logits, 1000).count(1)
        for temperature in (0.25, 1.0, 4.0)
    }
    assert shares[0.25] > shares[1.0] + 100 > shares[4.0] + 200


@pytest.mark.parametrize("cut", [{"top_p": 0.4}, {"top_k": 2}, {"min_p": 0.75}])
def test_outside_the_cut_nothing_is_drawn(cut: dict[str, float]) -> None:
    config = SamplingConfig.model_validate({"temperature": 2, "seed": 0, **cut})
    assert set(draw(config, PROBABILITIES.log(), 500)) == {1, 3}


def test_a_seed_reproduces_and_another_differs() -> None:
    logits = torch.zeros(50)
    first, again, other = (
        draw(SamplingConfig(temperature=1, seed=seed), logits, 20) for seed in (3, 3, 4)
    )
    assert first == again != other


def test_without_a_seed_answers_differ() -> None:
    logits = torch.zeros(50)
    config = SamplingConfig(temperature=1)
    assert draw(config, logits, 20) != draw(config, logits, 20)


@pytest.mark.parametrize("seed", [None, 3])
def test_sampling_leaves_torchs_own_random_numbers_alone(seed: int | None) -> None:
    state = torch.get_rng_state()
    draw(SamplingConfig(temperature=1, seed=seed), torch.zeros(50), 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_log_probabilities_are_those_of_the_likeliest_and_of_the_token() -> None:
    logits = torch.cat([PROBABILITIES.log(), torch.tensor([-torch.inf])])
    logprob, top = log_probabilities(logits, 2, 20)
    assert logprob == pytest.approx(float(PROBABILITIES[2].log()))
    assert [token for token, _ in top] == [1, 3, 4, 0, 2]
    assert log_probabilities(logits, 2, 0)[1] == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", 0),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("top_logprobs", 21),
        ("seed", -1),
        ("seed", 2**64),
        ("greedy", True),
    ],
)
def test_impossible_settings_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        SamplingConfig.model_validate({field: value})


def test_the_largest_seed_is_taken() -> None:
    assert len(draw(SamplingConfig(temperature=1, seed=2**64 - 1), torch.zeros(5), 1)) == 1
