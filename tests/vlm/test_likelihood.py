"""Likelihoods of texts: where prompt and continuation part, windows, and clear errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import vlm
from vlm.chat.processor import Processor
from vlm.chat.template import LLAMA3_TEMPLATE, ChatTemplate
from vlm.chat.tokenizer import Tokenizer
from vlm.errors import UserError
from vlm.inputs import Example, stack_examples
from vlm.likelihood import rolling_windows, split_continuation
from vlm.model import VisionLanguageModel

Picture = Callable[..., Image.Image]
ANSWERS = ("Blue.", "It is blue.", "red", " red")
# Sums of some ten log probabilities in float32, from passes of other shapes.
TOLERANCE = 1e-5


@pytest.fixture
def model(open_model: VisionLanguageModel, processor: Processor, tmp_path: Path) -> vlm.Model:
    return vlm.Model(open_model, processor, tmp_path)


def question(image: Any, text: str = "What colour is the large square?") -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def test_an_answer_is_scored_where_the_template_puts_it(model: vlm.Model, picture: Picture) -> None:
    """The row of the whole chat, as in training; its supervised tokens but for the turn's end."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Colour?"}]}]
    scored = model.score(question(picture(0), "Colour?"), ANSWERS)
    for answer, likelihood in zip(ANSWERS, scored, strict=True):
        whole = [*chat, {"role": "assistant", "content": answer}]
        row = model.processor.encode(whole, [picture(0)])
        logits = model.network.decoder.logits(model.network(stack_examples([row], 0))[0])
        supervised = row.loss_mask.nonzero().flatten()[:-1]
        targets = row.input_ids[supervised]
        told = logits[supervised - 1].log_softmax(-1)[range(len(targets)), targets]
        assert likelihood.num_tokens == len(targets)
        assert likelihood.logprob == pytest.approx(float(told.sum()), abs=TOLERANCE)
    assert len({likelihood.logprob for likelihood in scored}) == len(ANSWERS)


def test_a_template_that_trims_answers_trims_those_that_are_scored(
    model: vlm.Model, processor: Processor
) -> None:
    trimming = LLAMA3_TEMPLATE.replace(
        "{{- message['content'] }}", "{{- message['content']|trim }}"
    )
    template = ChatTemplate(trimming, processor.tokenizer.named_tokens)
    model.likelihoods.processor = Processor(processor.tokenizer, template, processor.vision)
    messages = [{"role": "user", "content": "Colour?"}]
    plain, padded = model.score(messages, ["red", " red\n"])
    assert plain == padded


def test_requests_of_a_batch_are_scored_as_they_are_alone(
    model: vlm.Model, picture: Picture, tmp_path: Path
) -> None:
    path = tmp_path / "image.png"
    picture(0).save(path)
    requests: list[tuple[Any, tuple[str, ...]]] = [
        (question(picture(0)), ANSWERS),
        ("The square is", (" blue", " red", " blue and red")),
        (question(path), ANSWERS[:2]),
        (question(picture(1, 48, 16), "How many circles are there?"), ANSWERS),
        ([{"role": "user", "content": "How many?"}], ("Two.",)),
    ]
    alone = [model.score(*request) for request in requests]
    for batch_size in (1, 2, 32):
        together = model.score_batch(requests, batch_size)
        for one, other in zip(alone, together, strict=True):
            for first, second in zip(one, other, strict=True):
                assert first.logprob == pytest.approx(second.logprob, abs=TOLERANCE, rel=0)
                assert first.greedy == second.greedy
    assert together[0][:2] == together[2]  # the same picture from a file
    assert alone[0] != alone[3]


def test_spaces_between_context_and_continuation_belong_to_the_continuation(
    processor: Processor,
) -> None:
    tokenizer = processor.tokenizer
    bos = tokenizer.bos_id
    parted = split_continuation(tokenizer, "The large", " square")
    assert split_continuation(tokenizer, "The large ", "square") == parted
    assert parted == ([bos, *tokenizer.encode("The large")], tokenizer.encode(" square"))
    # Tokenised together: what would be one token across the border is none of the context's.
    context, following = split_continuation(tokenizer, "The squ", "are")
    assert context == [bos, *tokenizer.encode("The squ")]
    assert following == [bos, *tokenizer.encode("The square")][len(context) :]
    # Text that looks like a special token stays text.
    assert bos not in split_continuation(tokenizer, "a", "<|begin_of_text|>")[1]


def test_an_empty_context_is_the_start_of_a_text_or_else_the_end_of_a_turn(
    processor: Processor,
) -> None:
    tokenizer = processor.tokenizer
    assert split_continuation(tokenizer, "", "blue") == (
        [tokenizer.bos_id],
        tokenizer.encode("blue"),
    )
    assert split_continuation(tokenizer, " ", "blue")[1] == tokenizer.encode(" blue")
    definition = tokenizer._definition.replace("begin_of_text", "unused")
    without = Tokenizer(definition, {"eos_token": "<|eot_id|>", "pad_token": "<|pad|>"})
    assert without.bos_id is None
    assert split_continuation(without, "", "blue") == ([without.eot_id], without.encode("blue"))
    assert split_continuation(without, "a", " blue") == (
        without.encode("a"),
        without.encode(" blue"),
    )


@given(num_ids=st.integers(1, 40), window=st.integers(1, 12))
def test_windows_tell_every_token_once_with_as_much_before_it_as_fits(
    num_ids: int, window: int
) -> None:
    ids = list(range(1, num_ids + 1))
    windows = list(rolling_windows(ids, 0, window))
    assert [token for _, told in windows for token in told] == ids
    for read, told in windows:
        whole = [*read, *told]
        assert read and len(whole) - 1 <= window
        assert whole == list(range(whole[0], whole[0] + len(whole)))  # consecutive from the text
    *full, (read, told) = windows
    assert all(len([*before, *after]) == window + 1 for before, after in full)
    assert len(read) + len(told) - 1 == min(window, num_ids)


def test_the_likelihood_of_a_text_is_the_sum_over_its_windows(model: vlm.Model) -> None:
    text = "How many red circles are there? Two. It is blue. A small yellow circle."
    tokenizer = model.processor.tokenizer
    ids = tokenizer.encode(text)
    num_told = 0
    for window in (None, 9, 4):
        (likelihood,) = model.score_texts([text], window_tokens=window)
        expected = 0.0
        for read, told in rolling_windows(ids, tokenizer.bos_id or 0, window or 256):
            row = torch.tensor([*read, *told])
            example = Example(row, torch.zeros(len(row), dtype=torch.bool), ())
            logits = model.network.decoder.logits(
                model.network(stack_examples([example], 0))[0, len(read) - 1 : -1]
            )
            expected += float(logits.log_softmax(-1)[range(len(told)), told].double().sum())
            num_told += len(told)
        assert likelihood.logprob == pytest.approx(expected, abs=3 * TOLERANCE)
        assert likelihood.num_tokens == len(ids)
    assert num_told == 3 * len(ids)
    texts = [text, "Two.", text[:30]]
    alone = [model.score_texts([t], window_tokens=9)[0].logprob for t in texts]
    together = [likelihood.logprob for likelihood in model.score_texts(texts, window_tokens=9)]
    assert together == pytest.approx(alone, abs=3 * TOLERANCE)


def test_what_cannot_be_scored_is_an_error_that_says_why(model: vlm.Model) -> None:
    messages = [{"role": "user", "content": "How many?"}]
    with pytest.raises(UserError, match="each of its continuations need a token"):
        model.score(messages, ["Two.", ""])
    with pytest.raises(UserError, match="the model has 256 positions"):
        model.score("Two " * 300, [" more"])
    with pytest.raises(UserError, match="a text to be scored has no tokens"):
        model.score_texts(["Two.", ""])
    with pytest.raises(UserError, match="window_tokens is 257; the model has 1 to 256"):
        model.score_texts(["Two."], window_tokens=257)
    with pytest.raises(UserError, match="keys"):
        model.score([{"role": "user"}], ["Two."])
    assert model.score(messages, []) == [] and model.score_batch([]) == []
