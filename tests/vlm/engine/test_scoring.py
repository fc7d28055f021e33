"""Likelihoods are those of full recomputation, whatever is scored in the same pass."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.decoder.config import RopeScaling
from vlm.engine import scoring
from vlm.engine.engine import Engine, EngineConfig
from vlm.engine.image_cache import ImageCache
from vlm.engine.request import Request
from vlm.engine.sampling import SamplingConfig
from vlm.engine.scoring import Choices, Likelihood, Scorer
from vlm.inputs import Example, stack_examples
from vlm.model import VisionLanguageModel

# Sums of up to 12 log probabilities of some -5 each in float32: passes of other shapes use other
# matrix kernels, which add in another order.
TOLERANCE = 1e-5
ENDS: tuple[tuple[int, ...], ...] = ((7,), (7, 8, 9, 10, 11), (200, 3), (7, 8, 100), (45,) * 12)


@pytest.fixture
def prompts(processor: Processor, picture: Callable[..., Image.Image]) -> list[Example]:
    """Of unequal lengths: one image, none, two in two turns, two side by side."""

    def prompt(*contents: Sequence[str], sizes: Sequence[tuple[int, int]] = ()) -> Example:
        messages: list[dict[str, Any]] = []
        for number, content in enumerate(contents):
            parts = [
                {"type": "image"} if part == "<image>" else {"type": "text", "text": part}
                for part in content
            ]
            messages.append({"role": ("user", "assistant")[number % 2], "content": parts})
        images = [picture(seed, *size) for seed, size in enumerate(sizes)]
        return processor.encode(messages, images, add_generation_prompt=True)

    return [
        prompt(["<image>", "What colour is the large square?"], sizes=[(32, 32)]),
        prompt(["How many?"]),
        prompt(["<image>"], ["Two."], ["And", "<image>"], sizes=[(16, 16), (32, 16)]),
        prompt(["<image>", "<image>", "Which circle is red?"], sizes=[(16, 48), (16, 16)]),
    ]


def scorer_of(model: VisionLanguageModel) -> Scorer:
    return Scorer(model, ImageCache(2**20))


def recomputed(model: VisionLanguageModel, prompt: Example, tokens: Sequence[int]) -> Tensor:
    """The log probabilities of tokens after a prompt: one plain row, without a cache."""
    input_ids = torch.cat([prompt.input_ids, torch.tensor(tokens, dtype=torch.int64)])
    row = Example(input_ids, torch.zeros(len(input_ids), dtype=torch.bool), prompt.images)
    hidden = model(stack_examples([row], 0))[0, -len(tokens) - 1 : -1]
    return model.decoder.logits(hidden).log_softmax(dim=-1)  # (tokens, V)


def apart(first: Sequence[Sequence[Likelihood]], second: Sequence[Sequence[Likelihood]]) -> float:
    """The largest difference of two lists of sums."""
    pairs = [
        (one.logprob, other.logprob)
        for ours, theirs in zip(first, second, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ]
    return max(abs(one - other) for one, other in pairs)


@pytest.mark.parametrize("visibility", ["latest", "all_previous"])
def test_a_continuation_is_as_likely_as_in_a_row_of_its_own(
    open_model: VisionLanguageModel, prompts: list[Example], visibility: str
) -> None:
    open_model.config = open_model.config.model_copy(update={"image_visibility": visibility})
    scored = scorer_of(open_model).score([Choices(p, ENDS) for p in prompts], batch_size=3)
    for prompt, likelihoods in zip(prompts, scored, strict=True):
        for tokens, likelihood in zip(ENDS, likelihoods, strict=True):
            expected = recomputed(open_model, prompt, tokens)
            told = expected[range(len(tokens)), tokens].double()
            assert likelihood.logprob == pytest.approx(float(told.sum()), abs=TOLERANCE, rel=0)
            assert likelihood.num_tokens == len(tokens)
            assert likelihood.greedy == tuple(
                likeliest == token
                for likeliest, token in zip(expected.argmax(-1).tolist(), tokens, strict=True)
            )
    # Pictures and prompts decide.
    assert len({likelihoods[1].logprob for likelihoods in scored}) == len(prompts)


def test_sharing_a_prompt_changes_no_likelihood(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    scorer = scorer_of(open_model)
    together = scorer.score([Choices(prompt, ENDS) for prompt in prompts], batch_size=1)
    alone = [
        [scorer_of(open_model).score([Choices(prompt, (end,))], 1)[0][0] for end in ENDS]
        for prompt in prompts
    ]
    assert apart(together, alone) <= TOLERANCE
    backwards = scorer.score([Choices(prompt, ENDS[::-1]) for prompt in prompts], batch_size=1)
    assert apart(together, [row[::-1] for row in backwards]) <= TOLERANCE


def test_batch_mates_change_no_likelihood(
    open_model: VisionLanguageModel, prompts: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Choices(prompt, ENDS[: 1 + index]) for index, prompt in enumerate(prompts)]
    alone = [scorer_of(open_model).score([request], 1)[0] for request in requests]
    for batch_size in (2, 4, 32):
        scorer = scorer_of(open_model)
        assert apart(scorer.score(requests, batch_size), alone) <= TOLERANCE
        assert apart(scorer.score(requests[::-1], batch_size)[::-1], alone) <= TOLERANCE
    monkeypatch.setattr(scoring, "PASS_TOKENS", 60)
    monkeypatch.setattr(scoring, "LOGIT_PLACES", 3)
    monkeypatch.setattr(scoring, "PASS_TILES", 1)
    assert apart(scorer_of(open_model).score(requests, 32), alone) <= TOLERANCE


def test_a_prompt_and_its_pictures_are_run_once_for_all_that_may_follow(
    open_model: VisionLanguageModel, prompts: list[Example], picture: Callable[..., Image.Image]
) -> None:
    rows: list[tuple[int, ...]] = []
    tiles: list[int] = []

    def note_row(module: object, args: tuple[Tensor, ...], kwargs: object) -> None:
        rows.append(tuple(args[0].shape))

    def note_tiles(module: object, args: tuple[Tensor, ...]) -> None:
        tiles.append(len(args[0]))

    hooks = [
        open_model.decoder.register_forward_pre_hook(note_row, with_kwargs=True),
        open_model.encoder.register_forward_pre_hook(note_tiles),
    ]
    scorer = scorer_of(open_model)
    prompt = prompts[0]
    # The same picture as another object, and the same prompt in another request.
    (image,) = prompt.images
    twin = Example(prompt.input_ids.clone(), prompt.loss_mask, (type(image)(**vars(image)),))
    scorer.score([Choices(prompt, ENDS), Choices(twin, (*ENDS[:2], (9, 9)))], batch_size=8)
    num_told = sum(len(end) - 1 for end in ENDS) + 1  # those of (9, 9) that are read
    assert rows == [(1, len(prompt.input_ids) + num_told)] and tiles == [4]
    scorer.score([Choices(prompt, ENDS[:1])], batch_size=8)
    assert tiles == [4] and rows[1:] == [(1, len(prompt.input_ids))]
    for hook in hooks:
        hook.remove()


def test_much_that_follows_a_short_prompt_is_put_into_rows_of_its_own(
    open_model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else texts by themselves, which all follow the token that starts a text, were one row."""
    shapes: list[tuple[int, ...]] = []

    def note(module: object, args: tuple[Tensor, ...], kwargs: object) -> None:
        shapes.append(tuple(args[0].shape))

    hook = open_model.decoder.register_forward_pre_hook(note, with_kwargs=True)
    start = Example(torch.tensor([3]), torch.zeros(1, dtype=torch.bool), ())
    texts = [tuple(range(first, first + 20)) for first in range(5, 45, 5)]
    alone = [scorer_of(open_model).score([Choices(start, (text,))], 1)[0] for text in texts]
    shapes.clear()
    monkeypatch.setattr(scoring, "ROW_TOKENS", 50)
    requests = [Choices(start, (text,)) for text in texts]
    assert apart(scorer_of(open_model).score(requests, 4), alone) <= TOLERANCE
    assert shapes == [(4, 39)]  # two texts a row, without the last token of each
    hook.remove()


def test_what_greedy_generation_writes_is_greedy_and_as_likely_as_it_says(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    engine = Engine(open_model, (), (), EngineConfig(max_tokens=160))
    prompts = [prompts[0], prompts[1], prompts[3]]
    sampling = SamplingConfig(logprobs=True)
    numbers = [engine.submit(Request.of(prompt, sampling, 8)) for prompt in prompts]
    events = [event for _ in range(12) for event in engine.step()]
    for number, prompt in zip(numbers, prompts, strict=True):
        told = [e for e in events if e.request_id == number]
        written = tuple(event.token for event in told if event.token is not None)
        other = (*written[:-1], (written[-1] + 1) % 256)
        likelihood, changed = scorer_of(open_model).score([Choices(prompt, (written, other))], 1)[0]
        assert len(written) == 8 and likelihood.is_greedy and not changed.is_greedy
        assert changed.greedy == (True,) * 7 + (False,)
        # The engine runs one token at a time: see its tests' tolerance.
        assert [e.logprob for e in told] == pytest.approx(likelihood.token_logprobs, abs=5e-5)


def test_stretched_positions_are_those_of_writing_token_by_token(
    tiny_config: VLMConfig, processor: Processor, prompts: list[Example]
) -> None:
    """Beyond the trained context `dynamic` RoPE depends on the length so far."""
    scaling = RopeScaling(kind="dynamic", factor=4.0, original_max_positions=16)
    decoder = tiny_config.decoder.model_copy(update={"rope_scaling": scaling})
    torch.manual_seed(0)
    config = tiny_config.model_copy(update={"decoder": decoder})
    model = VisionLanguageModel(config, processor.tokenizer.image_id).requires_grad_(False)
    engine = Engine(model, (), (), EngineConfig(max_tokens=160))
    engine.submit(Request.of(prompts[1], SamplingConfig(logprobs=True), 8))
    events = [event for _ in range(12) for event in engine.step()]
    written = tuple(event.token for event in events if event.token is not None)
    likelihood = scorer_of(model).score([Choices(prompts[1], ((1, 2, 3), written))], 1)[0][1]
    assert len(prompts[1].input_ids) > 16
    assert [e.logprob for e in events] == pytest.approx(likelihood.token_logprobs, abs=5e-5)


def test_what_cannot_be_scored_is_refused(
    open_model: VisionLanguageModel, processor: Processor, prompts: list[Example]
) -> None:
    def refused(prompt: Example, *ends: tuple[int, ...]) -> str:
        with pytest.raises(ValueError) as refusal:
            scorer_of(open_model).score([Choices(prompt, ends)], 1)
        return str(refusal.value)

    prompt = prompts[0]
    num_tokens = len(prompt.input_ids)
    fits = 256 - num_tokens + 1  # the last one is not read
    assert scorer_of(open_model).score([Choices(prompt, ((5,) * fits,))], 1)
    too_long = refused(prompt, (5,), (5,) * (fits + 1))
    assert "are 257 without the last; the model has 256 positions" in too_long
    assert "need a token" in refused(prompt, (5,), ())
    assert "never writes the id 300" in refused(prompt, (5, 300))
    image_id = processor.tokenizer.image_id
    assert f"never writes the id {image_id}" in refused(prompt, (5, image_id))
    without = Example(prompt.input_ids, prompt.loss_mask, ())
    assert "1 image tokens and 0 images" in refused(without, (5,))
    assert scorer_of(open_model).score([], 4) == []
    assert scorer_of(open_model).score([Choices(prompt, ())], 4) == [[]]
    open_model.decoder.lm_head.weight[5] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        scorer_of(open_model).score([Choices(prompt, ((5,),))], 1)
