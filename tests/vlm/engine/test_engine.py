"""The engine: answers are what full recomputation gives, whatever runs beside them."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vlm.chat.processor import Processor
from vlm.engine.engine import Engine, EngineConfig
from vlm.engine.request import Event, Request
from vlm.engine.sampling import SamplingConfig
from vlm.inputs import Example, stack_examples
from vlm.model import VisionLanguageModel

GREEDY = SamplingConfig()
SAMPLED = SamplingConfig(temperature=1, top_p=0.9, seed=5)
NUM_NEW = 12
MAX_TOKENS = 160
# One token at a time goes through other matrix kernels than a whole row, which add in another
# order: float32 rounding over 9 layers, in log probabilities of around 1.
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
        prompt("<image>Is there a circle?", sizes=[(32, 32)]),
    ]


def make_engine(
    model: VisionLanguageModel,
    eos_ids: Sequence[int] = (),
    suppressed_ids: Sequence[int] = (),
    **config: Any,
) -> Engine:
    return Engine(
        model, eos_ids, suppressed_ids, EngineConfig(**{"max_tokens": MAX_TOKENS, **config})
    )


def submit(
    engine: Engine, prompt: Example, sampling: SamplingConfig = GREEDY, num_new: int = NUM_NEW
) -> int:
    return engine.submit(Request.of(prompt, sampling, num_new))


def run(engine: Engine) -> dict[int, list[Event]]:
    """What becomes of every request until all have ended."""
    told: dict[int, list[Event]] = {}
    while engine.num_active or engine.num_waiting:
        for event in engine.step():
            told.setdefault(event.request_id, []).append(event)
    assert engine.step() == []
    return told


def unused_token(prompts: Sequence[Example], answers: Sequence[Sequence[int | None]]) -> int:
    used = {token for prompt in prompts for token in prompt.input_ids.tolist()}
    return max(set(range(300)) - used - {token for row in answers for token in row if token})


def answers(
    model: VisionLanguageModel,
    prompts: Sequence[Example],
    sampling: SamplingConfig = GREEDY,
    **options: Any,
) -> list[list[int | None]]:
    engine = make_engine(model, **options)
    numbers = [submit(engine, prompt, sampling) for prompt in prompts]
    told = run(engine)
    return [[event.token for event in told[number]] for number in numbers]


def recomputed(
    model: VisionLanguageModel, prompt: Example, tokens: list[int], suppressed: Sequence[int]
) -> Tensor:
    """The next token's log probabilities after a prompt and more tokens, without a cache, alone."""
    input_ids = torch.cat([prompt.input_ids, torch.tensor(tokens, dtype=torch.int64)])
    row = Example(input_ids, torch.zeros(len(input_ids), dtype=torch.bool), prompt.images)
    logits = model.decoder.logits(model(stack_examples([row], 0))[0, -1])
    logits[list(suppressed)] = -torch.inf
    return logits.log_softmax(dim=-1)


def extended(prompt: Example, tokens: Sequence[int]) -> Example:
    """A later turn of the same chat: the prompt, what was answered and what is asked then."""
    input_ids = torch.cat([prompt.input_ids, torch.tensor(tokens)])
    return Example(input_ids, torch.zeros(len(input_ids), dtype=torch.bool), prompt.images)


@pytest.fixture
def serial(open_model: VisionLanguageModel, prompts: list[Example]) -> list[list[int | None]]:
    """What each prompt is answered alone."""
    return [answers(open_model, [prompt])[0] for prompt in prompts]


@pytest.mark.parametrize("visibility", ["latest", "all_previous"])
@pytest.mark.parametrize("chunk", [512, 16])
def test_cached_decoding_equals_full_recomputation(
    open_model: VisionLanguageModel,
    processor: Processor,
    prompts: list[Example],
    visibility: str,
    chunk: int,
) -> None:
    open_model.config = open_model.config.model_copy(update={"image_visibility": visibility})
    # A written `<|image|>` would be an image that the row does not have.
    suppressed = [processor.tokenizer.image_id]
    engine = make_engine(open_model, suppressed_ids=suppressed, slots=3, prefill_chunk_tokens=chunk)
    sampling = SamplingConfig(logprobs=True, top_logprobs=5)
    numbers = [submit(engine, prompt, sampling) for prompt in prompts]
    told = run(engine)
    for number, prompt in zip(numbers, prompts, strict=True):
        written: list[int] = []
        for event in told[number]:
            expected = recomputed(open_model, prompt, written, suppressed)
            assert event.token is not None
            assert event.token == int(expected.argmax()) == event.top_logprobs[0][0]
            top = torch.tensor([logprob for _, logprob in event.top_logprobs])
            torch.testing.assert_close(top, expected.topk(5).values, **TOLERANCE)
            assert event.logprob == event.top_logprobs[0][1]
            written.append(event.token)
        assert len(written) == NUM_NEW
        assert told[number][-1].finish_reason == "length"
        assert all(event.finish_reason is None for event in told[number][:-1])
    assert len({tuple(event.token for event in told[number]) for number in numbers}) == 5


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_answers_do_not_depend_on_slots_order_or_chunks(
    open_model: VisionLanguageModel, prompts: list[Example], sampling: SamplingConfig
) -> None:
    alone = [answers(open_model, [prompt], sampling)[0] for prompt in prompts]
    for options in ({"slots": 5}, {"slots": 2}, {"slots": 1}, {"prefill_chunk_tokens": 7}):
        assert answers(open_model, prompts, sampling, **options) == alone
        assert answers(open_model, prompts[::-1], sampling, **options)[::-1] == alone


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_greedy_answers_equal_serial_ones_whatever_joins_and_leaves(
    open_model: VisionLanguageModel,
    prompts: list[Example],
    serial: list[list[int | None]],
    data: st.DataObject,
) -> None:
    """Requests come, are cancelled and end at any step; those that go on are not disturbed."""
    engine = make_engine(
        open_model,
        slots=data.draw(st.integers(1, 4)),
        prefill_chunk_tokens=data.draw(st.sampled_from([5, 40, 512])),
        encode_tiles=data.draw(st.sampled_from([1, 32])),
    )
    shown: dict[int, tuple[int, int]] = {}
    told: dict[int, list[Event]] = {}
    cancelled: set[int] = set()
    for _ in range(data.draw(st.integers(1, 12))):
        for index in data.draw(st.lists(st.integers(0, len(prompts) - 1), max_size=3)):
            num_new = data.draw(st.integers(1, NUM_NEW))
            shown[submit(engine, prompts[index], num_new=num_new)] = index, num_new
        running = [n for n in shown if not (told.get(n) and told[n][-1].finish_reason)]
        if running and data.draw(st.integers(0, 3)) == 0:
            number = data.draw(st.sampled_from(running))
            engine.cancel(number)
            cancelled.add(number)
        for event in engine.step():
            told.setdefault(event.request_id, []).append(event)
    for number, events in run(engine).items():
        told.setdefault(number, []).extend(events)
    assert set(told) == set(shown)
    for number, (index, num_new) in shown.items():
        tokens = [event.token for event in told[number] if event.token is not None]
        if number in cancelled:
            assert told[number][-1].finish_reason == "cancelled"
            assert tokens == serial[index][: len(tokens)]
        else:
            assert tokens == serial[index][:num_new]


def test_the_answer_depends_on_the_picture(
    open_model: VisionLanguageModel,
    processor: Processor,
    prompts: list[Example],
    picture: Callable[..., Image.Image],
) -> None:
    prompt = prompts[0]
    images = [processor.tile(picture(seed, 32, 32)) for seed in range(3)]
    seeing = [Example(prompt.input_ids, prompt.loss_mask, (image,)) for image in images]
    assert len(set(map(tuple, answers(open_model, seeing)))) == len(images)


def test_a_row_ends_at_its_end_token_and_the_others_go_on(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    free = answers(open_model, prompts)
    end = free[0][4]
    assert end is not None
    ended = answers(open_model, prompts, eos_ids=[end])
    stopped = answers(open_model, prompts, SamplingConfig(stop_ids=(end,)))
    for before, after in zip(free, ended, strict=True):
        assert after == (before[: before.index(end) + 1] if end in before else before)
    assert stopped == ended
    assert len(ended[0]) <= 5 < max(map(len, ended))


def test_the_end_token_is_told_with_its_reason(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    end = answers(open_model, prompts[:1])[0][4]
    engine = make_engine(open_model, eos_ids=[end or 0])
    number = submit(engine, prompts[0])
    assert run(engine)[number][-1] == Event(number, end, finish_reason="stop")


def test_suppressed_tokens_are_never_written(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    free = {token for row in answers(open_model, prompts) for token in row if token is not None}
    rows = answers(open_model, prompts, suppressed_ids=sorted(free))
    assert free.isdisjoint(token for row in rows for token in row)


def test_new_requests_may_wait_for_several_free_slots(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    engine = make_engine(open_model, slots=2, min_free_slots=2)
    short, long, third = (
        submit(engine, prompts[i], num_new=n) for i, n in ((0, 1), (1, 3), (2, 1))
    )
    steps = [{event.request_id for event in engine.step()} for _ in range(4)]
    assert steps == [{short, long}, {long}, {long, third}, set()]
    with pytest.raises(ValueError, match="min_free_slots is 3, needed: at most the 2 slots"):
        make_engine(open_model, slots=2, min_free_slots=3)


def test_a_cancelled_request_writes_no_more_and_its_slot_is_free(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    engine = make_engine(open_model, slots=1)
    first, second, third = (submit(engine, prompt) for prompt in prompts[:3])
    engine.step()
    assert (engine.num_active, engine.num_waiting) == (1, 2)
    engine.cancel(first)
    engine.cancel(second)
    assert (engine.num_active, engine.num_waiting) == (0, 1)
    events = engine.step()
    assert [event.request_id for event in events] == [first, second, third]
    assert [event.finish_reason for event in events] == ["cancelled", "cancelled", None]
    told = run(engine)
    assert set(told) == {third}
    engine.cancel(third)
    engine.cancel(10**6)
    assert engine.step() == []


def count_calls(module: torch.nn.Module) -> list[int]:
    """The tokens or tiles of each call of a module from here on."""
    sizes: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[:2].numel()))
    return sizes


def test_a_picture_is_encoded_once_for_all_requests_that_show_it(
    open_model: VisionLanguageModel, processor: Processor, picture: Callable[..., Image.Image]
) -> None:
    def asked(text: str, image: Image.Image) -> Example:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return processor.encode([{"role": "user", "content": content}], [image], True)

    calls = count_calls(open_model.encoder)
    engine = make_engine(open_model, slots=2)
    for text in ("How many?", "What colour is the square?"):  # two objects with one content
        submit(engine, asked(text, picture(0, 32, 32)))
    run(engine)
    submit(engine, asked("And where?", picture(0, 32, 32)))
    run(engine)
    assert len(calls) == 1
    submit(engine, asked("How many?", picture(1, 32, 32)))
    run(engine)
    assert len(calls) == 2 and len(engine.images) == 2


def test_a_picture_that_was_dropped_is_encoded_again(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    calls = count_calls(open_model.encoder)
    engine = make_engine(open_model, slots=1)
    engine.images.max_bytes = 1
    numbers = [submit(engine, prompt) for prompt in (prompts[0], prompts[1], prompts[0])]
    told = run(engine)
    tokens = [[event.token for event in told[number]] for number in numbers]
    assert tokens[0] == tokens[2] and len(engine.images) == 0
    assert len(calls) == 2


def test_a_later_turn_computes_its_new_tokens_only(
    open_model: VisionLanguageModel, processor: Processor, prompts: list[Example]
) -> None:
    image_id = processor.tokenizer.image_id
    engine = make_engine(open_model, suppressed_ids=[image_id])
    first = submit(engine, prompts[2])
    told = run(engine)
    written = [event.token for event in told[first] if event.token is not None]
    later = extended(prompts[2], [*written, 70, 71, 72])
    sizes = count_calls(open_model.decoder.embed_tokens)
    second = submit(engine, later, num_new=4)
    again = run(engine)
    # The answer's last token was told and never read.
    assert sizes == [4, 1, 1, 1]
    expected = answers(open_model, [later], suppressed_ids=[image_id])[0][:4]
    assert [event.token for event in again[second]] == expected


def test_a_chat_with_another_picture_is_not_continued(
    open_model: VisionLanguageModel,
    processor: Processor,
    prompts: list[Example],
    picture: Callable[..., Image.Image],
) -> None:
    engine = make_engine(open_model)
    submit(engine, prompts[0])
    run(engine)
    other = Example(
        prompts[0].input_ids, prompts[0].loss_mask, (processor.tile(picture(9, 32, 32)),)
    )
    number = submit(engine, other)
    tokens = [event.token for event in run(engine)[number]]
    assert tokens == answers(open_model, [other])[0] != answers(open_model, [prompts[0]])[0]


def test_a_long_prompt_does_not_hold_up_a_running_answer(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    engine = make_engine(open_model, prefill_chunk_tokens=8)
    short = submit(engine, prompts[1], num_new=40)
    while not any(event.request_id == short for event in engine.step()):
        pass
    sizes = count_calls(open_model.decoder.embed_tokens)
    long = submit(engine, prompts[2])
    num_chunks = -(-len(prompts[2].input_ids) // 8)
    for _ in range(num_chunks - 1):
        assert [event.request_id for event in engine.step()] == [short]
    assert {event.request_id for event in engine.step()} == {short, long}
    assert max(sizes) == 8


def test_a_failing_request_takes_no_other_with_it(
    open_model: VisionLanguageModel, prompts: list[Example], caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers(open_model, prompts)
    poison = unused_token(prompts, expected)
    bad = Example(torch.tensor([1, poison, 5]), torch.zeros(3, dtype=torch.bool), ())

    def fail(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if (inputs[0] == poison).any():
            raise RuntimeError("no kernel for this token")

    hook = open_model.decoder.embed_tokens.register_forward_pre_hook(fail)
    engine = make_engine(open_model)
    with caplog.at_level(logging.CRITICAL):
        numbers = [submit(engine, prompt) for prompt in (*prompts[:2], bad, *prompts[2:])]
        told = run(engine)
    hook.remove()
    (event,) = told.pop(numbers.pop(2))
    assert event.finish_reason == "error" and event.error is not None
    assert "no kernel for this token" in event.error
    assert [[e.token for e in told[number]] for number in numbers] == expected


def test_weights_that_give_no_number_fail_the_request_that_meets_them(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    expected = answers(open_model, prompts[:2])
    unused = unused_token(prompts, expected)
    open_model.decoder.embed_tokens.weight.data[unused] = torch.nan
    bad = Example(torch.tensor([1, unused, 5]), torch.zeros(3, dtype=torch.bool), ())
    engine = make_engine(open_model)
    numbers = [submit(engine, prompt) for prompt in (prompts[0], bad, prompts[1])]
    told = run(engine)
    assert [e.error for e in told.pop(numbers.pop(1))] == ["the network's logits are not finite"]
    assert [[e.token for e in told[number]] for number in numbers] == expected
    # Its slot is as good as new: what it left behind a shorter row would spoil that row.
    engine = make_engine(open_model, slots=2)
    long = Example(torch.full((120,), unused), torch.zeros(120, dtype=torch.bool), ())
    for prompt in (long, long):
        submit(engine, prompt)
    run(engine)
    numbers = [submit(engine, prompt) for prompt in prompts[:2]]
    told = run(engine)
    assert [[e.token for e in told[number]] for number in numbers] == expected


def test_the_positions_of_a_slot_are_used_up_and_not_exceeded(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    limit = open_model.config.decoder.max_positions
    engine = make_engine(open_model, max_tokens=limit, slots=2)
    room = 10
    long = extended(prompts[0], [70] * (limit - room - len(prompts[0].input_ids)))
    full = submit(engine, long, num_new=room)
    beside = submit(engine, prompts[1])
    told = run(engine)
    assert len(told[full]) == room
    assert [e.token for e in told[beside]] == answers(open_model, [prompts[1]])[0]
    complaint = f"a prompt of {limit - room} tokens and {room + 1} new ones exceed the model's"
    with pytest.raises(ValueError, match=complaint):
        submit(engine, long, num_new=room + 1)
    with pytest.raises(ValueError, match="the model has 256 positions"):
        make_engine(open_model, max_tokens=limit + 1)


@pytest.mark.parametrize(
    ("ids", "num_new", "complaint"),
    [
        ([], 1, "needs a token in its prompt"),
        ([1, 2], 0, "at least one new one"),
        ([1, 300], 1, "run from 1 to 300, the model's from 0 to 299"),
        ([1, -1], 1, "run from -1 to 1"),
    ],
)
def test_impossible_requests_are_refused(
    open_model: VisionLanguageModel, ids: list[int], num_new: int, complaint: str
) -> None:
    prompt = Example(torch.tensor(ids, dtype=torch.int64), torch.zeros(len(ids)), ())
    with pytest.raises(ValueError, match=complaint):
        make_engine(open_model).submit(Request(prompt, GREEDY, num_new))


def test_images_tokens_and_keys_must_be_as_many(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    engine = make_engine(open_model)
    with pytest.raises(ValueError, match="1 images and 0 image keys"):
        engine.submit(Request(prompts[0], GREEDY, 1))
    blind = Example(prompts[0].input_ids, prompts[0].loss_mask, ())
    with pytest.raises(ValueError, match="1 image tokens and 0 images"):
        engine.submit(Request(blind, GREEDY, 1))
