"""Samples to rows: whose words a row holds, which of them are supervised, what is refused."""

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.config import DataConfig
from data.encode import (
    ChatEncoder,
    PairEncoder,
    Supervision,
    question_answers,
    single_turns,
    without_images,
)
from data.schema import RawSample, Sample
from data.shape_samples import png_bytes
from data.shapes import SceneConfig, make_scene
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.inputs import Example

IMAGE = {"type": "image"}
TURNS = (
    ("How many red circles are there?", "two", "count"),
    ("What colour is the large square?", "blue", "colour"),
    ("Is a green triangle left of the circle?", "yes", "relation"),
)
CAPTIONS = ("A small yellow circle.", "A red square below it.")


def picture(seed: int = 0) -> bytes:
    return png_bytes(make_scene(random.Random(seed), SceneConfig(tile_size_px=24)))


def raw_sample(
    turns: tuple[tuple[str, str, str], ...] = TURNS, images: int = 1, system: str | None = None
) -> RawSample:
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": [{"type": "text", "text": system}]})
    for index, (question, answer, _) in enumerate(turns):
        front = [IMAGE] * images if index == 0 else []
        content = [*front, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    kinds = [{"type": kind} for _, _, kind in turns]
    sample = Sample.parse({"messages": messages, "turns": kinds})
    return RawSample("one", sample, [picture(index) for index in range(images)])


def chat_encoder(
    processor: Processor, supervision: Supervision = "assistant", **settings: Any
) -> ChatEncoder:
    settings = {"train": ["."], "batch_samples": 1, "max_tokens": 500, **settings}
    return ChatEncoder(processor, DataConfig.model_validate(settings), supervision)


def words(processor: Processor, row: Example) -> str:
    return processor.tokenizer.decode(row.input_ids.tolist())


def supervised(processor: Processor, row: Example) -> str:
    ids = row.input_ids[row.loss_mask].tolist()
    return processor.tokenizer.decode(ids, skip_special=False)


def test_a_whole_chat_is_one_row_with_every_answer_supervised(processor: Processor) -> None:
    (row,) = chat_encoder(processor)(raw_sample(), random.Random(0)).examples
    assert all(question in words(processor, row) for question, _, _ in TURNS)
    assert supervised(processor, row) == "two<|eot_id|>blue<|eot_id|>yes<|eot_id|>"


def test_each_split_turn_sees_the_shared_picture_and_its_own_words_only(
    processor: Processor,
) -> None:
    rows = chat_encoder(processor, split_turns=True)(raw_sample(), random.Random(0)).examples
    assert len(rows) == len(TURNS)
    assert all(row.images[0] is rows[0].images[0] and len(row.images) == 1 for row in rows)
    for row, (question, answer, _) in zip(rows, TURNS, strict=True):
        assert supervised(processor, row) == f"{answer}<|eot_id|>"
        others = [text for text, _, _ in TURNS if text != question]
        text = words(processor, row)
        assert question in text and not any(other in text for other in others)
        assert (row.input_ids == processor.tokenizer.image_id).sum() == 1


def test_split_turns_keep_the_system_message_and_show_every_picture_first() -> None:
    sample = raw_sample(images=2, system="Be brief.").sample
    chats = single_turns(sample.messages)
    assert [[message.role for message in chat] for chat in chats] == [
        ["system", "user", "assistant"]
    ] * 3
    assert all(chat[0].text == "Be brief." for chat in chats)
    assert [[part.type for part in chat[1].content] for chat in chats] == [
        ["image", "image", "text"]
    ] * 3


def test_a_text_only_chat_splits_into_rows_without_pictures(processor: Processor) -> None:
    encoder = chat_encoder(processor, split_turns=True)
    rows = encoder(raw_sample(images=0), random.Random(0)).examples
    assert [row.images for row in rows] == [(), (), ()]


def test_max_turns_draws_by_the_generator_and_draws_anew_by_another(processor: Processor) -> None:
    encoder = chat_encoder(processor, split_turns=True, max_turns=2)

    def drawn(seed: int) -> list[str]:
        rows = encoder(raw_sample(), random.Random(seed)).examples
        return [supervised(processor, row) for row in rows]

    assert drawn(1) == drawn(1)
    draws = [drawn(seed) for seed in range(12)]
    assert all(len(set(draw)) == 2 for draw in draws)
    assert {answer for draw in draws for answer in draw} == {
        f"{answer}<|eot_id|>" for _, answer, _ in TURNS
    }


def test_max_turns_above_the_number_of_turns_keeps_all_in_order(processor: Processor) -> None:
    encoder = chat_encoder(processor, split_turns=True, max_turns=9)
    rows = encoder(raw_sample(), random.Random(0)).examples
    assert [supervised(processor, row) for row in rows] == [f"{a}<|eot_id|>" for _, a, _ in TURNS]


def test_text_training_supervises_everything_and_leaves_the_pictures_out(
    processor: Processor,
) -> None:
    encoder = chat_encoder(processor, supervision="all")
    (row,) = encoder(raw_sample(images=2), random.Random(0)).examples
    assert row.loss_mask.all() and len(row.loss_mask) == len(row.input_ids)
    assert row.images == ()
    (plain,) = encoder(raw_sample(images=0), random.Random(0)).examples
    assert row.input_ids.equal(plain.input_ids)
    turns = chat_encoder(processor, "all", split_turns=True)(raw_sample(), random.Random(0))
    assert [len(example.images) for example in turns.examples] == [0, 0, 0]


def test_a_message_that_only_shows_a_picture_is_left_empty_in_text_training(
    processor: Processor,
) -> None:
    messages = raw_sample(TURNS[:1]).sample.messages
    silent = messages[0].model_copy(update={"content": messages[0].content[:1]})
    chat = without_images((silent, *messages[1:]))
    assert [message.content for message in chat] == [(), messages[1].content]
    sample = Sample(messages=(silent, *messages[1:]))
    encoder = chat_encoder(processor, supervision="all")
    (row,) = encoder(RawSample("one", sample, [picture()]), random.Random(0)).examples
    assert "two" in words(processor, row)


def test_rows_count_for_what_they_add_to_a_batch(processor: Processor) -> None:
    sample = chat_encoder(processor, split_turns=True)(raw_sample(), random.Random(0))
    assert sample.row_tokens == tuple(len(row.input_ids) for row in sample.examples)
    # Three rows share the picture, whose tiles count once.
    assert sample.num_tiles == len(sample.examples[0].images[0].tiles)


def test_a_row_longer_than_max_tokens_is_refused_with_both_counts(processor: Processor) -> None:
    (row,) = chat_encoder(processor)(raw_sample(), random.Random(0)).examples
    size = len(row.input_ids)
    chat_encoder(processor, max_tokens=size)(raw_sample(), random.Random(0))
    with pytest.raises(UserError, match=f"{size} tokens, more than max_tokens {size - 1}"):
        chat_encoder(processor, max_tokens=size - 1)(raw_sample(), random.Random(0))


def test_an_unreadable_picture_is_a_reject_and_no_crash(processor: Processor) -> None:
    broken = RawSample("one", raw_sample().sample, [picture()[:60]])
    for encode in (chat_encoder(processor), PairEncoder(processor, 40)):
        with pytest.raises(UserError):
            encode(broken, random.Random(0))


def test_a_pair_is_the_first_picture_and_one_of_the_captions(processor: Processor) -> None:
    captions = tuple(("Describe the image.", text, "caption") for text in CAPTIONS)
    raw = raw_sample((*TURNS[:1], *captions), images=2)
    encoder = PairEncoder(processor, 200)
    pairs = [encoder(raw, random.Random(seed)) for seed in range(12)]
    texts = [processor.tokenizer.decode(pair.text_ids.tolist()) for pair in pairs]
    assert set(texts) == set(CAPTIONS)
    assert texts[3] == processor.tokenizer.decode(encoder(raw, random.Random(3)).text_ids.tolist())
    single = encoder(raw_sample(captions, images=1), random.Random(0))
    assert all(pair.image.tiles.equal(single.image.tiles) for pair in pairs)


def test_a_long_caption_is_cut_and_still_ends(processor: Processor) -> None:
    raw = raw_sample((("Describe the image.", CAPTIONS[0] * 9, "caption"),))
    ids = PairEncoder(processor, 12)(raw, random.Random(0)).text_ids.tolist()
    whole = processor.tokenizer.encode(CAPTIONS[0] * 9)
    assert ids == [*whole[:11], processor.tokenizer.eot_id]


def test_without_captions_a_pair_holds_whole_questions_and_answers_as_many_as_fit(
    processor: Processor,
) -> None:
    tokenizer = processor.tokenizer
    pieces = [f"{question} {answer}" for question, answer, _ in TURNS]
    sizes = sorted(len(tokenizer.encode(piece)) for piece in pieces)
    room_for_two = sizes[-1] + sizes[-2] + 1
    encoder = PairEncoder(processor, room_for_two)
    texts = set()
    for seed in range(12):
        ids = encoder(raw_sample(), random.Random(seed)).text_ids.tolist()
        assert ids[-1] == tokenizer.eot_id and len(ids) <= room_for_two
        texts.add(tokenizer.decode(ids))
    assert texts == {a + b for a in pieces for b in pieces if a != b}


def test_a_question_that_does_not_fit_leaves_room_for_others(processor: Processor) -> None:
    turns = (("Why " * 40, "because", "why"), TURNS[0])
    short = len(processor.tokenizer.encode("How many red circles are there? two"))
    for seed in range(4):  # in either order
        encoder = PairEncoder(processor, short + 1)
        assert len(encoder(raw_sample(turns), random.Random(seed)).text_ids) == short + 1
    with pytest.raises(UserError, match=f"no question and answer fits into max_tokens {short}"):
        PairEncoder(processor, short)(raw_sample(turns), random.Random(0))


def test_a_text_only_sample_cannot_be_contrasted(processor: Processor) -> None:
    with pytest.raises(UserError, match="no picture to contrast"):
        PairEncoder(processor, 40)(raw_sample(images=0), random.Random(0))


def test_question_answers_name_what_was_asked_and_its_type() -> None:
    assert question_answers(raw_sample(system="Be brief.").sample) == list(TURNS)
    untyped = Sample.parse(raw_sample().sample.model_dump(exclude={"turns"}))
    assert [kind for _, _, kind in question_answers(untyped)] == [None] * 3


def test_drafts_are_laid_out_as_the_full_picture_with_nearly_its_pixels(
    processor: Processor,
) -> None:
    """A JPEG of 8 times its size on the canvas: decoded at an eighth, unless draft is off."""
    buffer = io.BytesIO()
    ramp = np.linspace(0, 255, 301).astype(np.uint8)[None, :, None].repeat(280, 0).repeat(3, 2)
    Image.fromarray(ramp).save(buffer, "JPEG", quality=95)
    raw = raw_sample(TURNS)
    raw = RawSample(raw.key, raw.sample, [buffer.getvalue()])
    draft, exact = (
        chat_encoder(processor, draft=draft)(raw, random.Random(0)).examples[0].images[0]
        for draft in (True, False)
    )
    pair = PairEncoder(processor, 40, draft=True)(raw, random.Random(0)).image
    assert torch.equal(pair.tiles, draft.tiles) and draft.canvas == exact.canvas
    apart = (draft.tiles.int() - exact.tiles.int()).abs().float()
    # The ramp rises 9 steps a pixel of the canvas; a reduced pixel may end up a third of one off.
    assert 0 < apart.mean() < 2 and apart.max() <= 10
