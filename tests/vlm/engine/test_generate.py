"""Generation: the cache changes nothing, rows do not know of each other, rows end."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from vlm.chat.processor import Processor
from vlm.engine.generate import Generation
from vlm.engine.sampling import SamplingConfig
from vlm.inputs import Example, stack_examples
from vlm.model import VisionLanguageModel

GREEDY = SamplingConfig()
NUM_NEW = 12
# One token at a time goes through other matrix kernels than a whole row, which add in another
# order: float32 rounding over 9 layers, in logits of around 1.
TOLERANCE = {"rtol": 0.0, "atol": 5e-5}


@pytest.fixture
def prompts(processor: Processor, picture: Callable[..., Image.Image]) -> list[Example]:
    """Of unequal lengths, with one image, none, two in two turns, and two side by side."""

    def prompt(*turns: str, sizes: Sequence[tuple[int, int]] = ()) -> Example:
        messages = []
        for number, turn in enumerate(turns):
            parts: list[dict[str, Any]] = []
            for text in turn.split("<image>"):
                parts += [{"type": "text", "text": text}, {"type": "image"}]
            kept = [part for part in parts[:-1] if part.get("text") != ""]
            messages.append({"role": ("user", "assistant")[number % 2], "content": kept})
        images = [picture(seed, *size) for seed, size in enumerate(sizes)]
        return processor.encode(messages, images, add_generation_prompt=True)

    return [
        prompt("<image>What colour is the large square?", sizes=[(32, 32)]),
        prompt("How many?"),
        prompt("<image>Two?", "Yes.", "And <image>?", sizes=[(16, 16), (32, 16)]),
        prompt("<image><image>Which circle is red?", sizes=[(16, 48), (16, 16)]),
    ]


def start(
    model: VisionLanguageModel,
    processor: Processor,
    prompts: Sequence[Example],
    sampling: SamplingConfig = GREEDY,
    max_new_tokens: int = NUM_NEW,
    **settings: Any,
) -> Generation:
    inputs = stack_examples(prompts, processor.tokenizer.pad_id)
    return Generation(model, inputs, max_new_tokens, sampling, **{"eos_ids": (), **settings})


def run(generation: Generation) -> list[list[int]]:
    """The tokens of each row."""
    rows: list[list[int]] = [[] for _ in generation.remaining]
    while not generation.done:
        for row, token in zip(rows, generation.step(), strict=True):
            if token is not None:
                row.append(token)
    return rows


def recomputed_logits(
    model: VisionLanguageModel, processor: Processor, prompt: Example, tokens: list[int]
) -> Tensor:
    """The next token's logits after a prompt and further tokens, without a cache, alone."""
    input_ids = torch.cat([prompt.input_ids, torch.tensor(tokens, dtype=torch.int64)])
    row = Example(input_ids, torch.zeros(len(input_ids), dtype=torch.bool), prompt.images)
    inputs = stack_examples([row], processor.tokenizer.pad_id)
    return model.decoder.logits(model(inputs)[0, -1])


@pytest.mark.parametrize("visibility", ["latest", "all_previous"])
def test_cached_decoding_equals_full_recomputation(
    open_model: VisionLanguageModel,
    processor: Processor,
    prompts: list[Example],
    visibility: str,
) -> None:
    open_model.config = open_model.config.model_copy(update={"image_visibility": visibility})
    # A written `<|image|>` would be an image that the row does not have.
    suppressed = [processor.tokenizer.image_id]
    generation = start(open_model, processor, prompts, suppressed_ids=suppressed)
    written: list[list[int]] = [[] for _ in prompts]
    while not generation.done:
        for row, prompt in enumerate(prompts):
            expected = recomputed_logits(open_model, processor, prompt, written[row])
            torch.testing.assert_close(generation.logits[row], expected, **TOLERANCE)
        for row, token in zip(written, generation.step(), strict=True):
            assert token is not None
            row.append(token)
    assert [len(row) for row in written] == [NUM_NEW] * len(prompts)
    assert len({tuple(row) for row in written}) == len(prompts)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingConfig(temperature=1, top_p=0.9, seed=5)])
def test_answers_do_not_depend_on_batch_mates(
    open_model: VisionLanguageModel,
    processor: Processor,
    prompts: list[Example],
    sampling: SamplingConfig,
) -> None:
    together = run(start(open_model, processor, prompts, sampling))
    backwards = run(start(open_model, processor, prompts[::-1], sampling))[::-1]
    alone = [run(start(open_model, processor, [prompt], sampling))[0] for prompt in prompts]
    assert together == backwards == alone


def test_the_answer_depends_on_the_picture(
    open_model: VisionLanguageModel,
    processor: Processor,
    prompts: list[Example],
    picture: Callable[..., Image.Image],
) -> None:
    prompt = prompts[0]
    images = [processor.tile(picture(seed, 32, 32)) for seed in range(3)]
    seeing = [Example(prompt.input_ids, prompt.loss_mask, (image,)) for image in images]
    answers = run(start(open_model, processor, seeing))
    assert len(set(map(tuple, answers))) == len(images)


def test_a_row_ends_at_its_end_token_and_the_others_go_on(
    open_model: VisionLanguageModel, processor: Processor, prompts: list[Example]
) -> None:
    free = run(start(open_model, processor, prompts))
    end = free[0][4]
    ended = run(start(open_model, processor, prompts, eos_ids=[end]))
    for before, after in zip(free, ended, strict=True):
        assert after == (before[: before.index(end) + 1] if end in before else before)
    assert len(ended[0]) <= 5 < max(map(len, ended))


def test_a_finished_row_writes_no_more_and_changes_no_other(
    open_model: VisionLanguageModel, processor: Processor, prompts: list[Example]
) -> None:
    free = run(start(open_model, processor, prompts))
    generation = start(open_model, processor, prompts)
    first = generation.step()
    generation.finish(1)
    rest = run(generation)
    assert rest[1] == []
    for row in (0, 2, 3):
        assert [first[row], *rest[row]] == free[row]


def test_suppressed_tokens_are_never_written(
    open_model: VisionLanguageModel, processor: Processor, prompts: list[Example]
) -> None:
    free = {token for row in run(start(open_model, processor, prompts)) for token in row}
    rows = run(start(open_model, processor, prompts, suppressed_ids=free))
    assert free.isdisjoint(token for row in rows for token in row)


def test_the_positions_of_the_model_are_used_up_and_not_exceeded(
    open_model: VisionLanguageModel, processor: Processor, prompts: list[Example]
) -> None:
    longest = max(len(prompt.input_ids) for prompt in prompts)
    limit = open_model.config.decoder.max_positions
    room = limit - longest
    rows = run(start(open_model, processor, prompts, max_new_tokens=room))
    assert [len(row) for row in rows] == [room] * len(prompts)
    with pytest.raises(ValueError, match=f"a prompt of {longest} tokens and {room + 1} new"):
        start(open_model, processor, prompts, max_new_tokens=room + 1)
