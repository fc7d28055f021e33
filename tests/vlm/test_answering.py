"""One engine behind the API: kept between calls, shared by streams and threads, let go of."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vlm
from vlm.chat.processor import Processor
from vlm.model import VisionLanguageModel

Picture = Callable[..., Image.Image]
SHORT: dict[str, Any] = {"max_tokens": 8}


@pytest.fixture
def model(open_model: VisionLanguageModel, processor: Processor, tmp_path: Path) -> vlm.Model:
    return vlm.Model(open_model, processor, tmp_path)


def asked(text: str, image: Image.Image | None = None) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        parts.insert(0, {"type": "image", "image": image})
    return [{"role": "user", "content": parts}]


def calls_of(module: torch.nn.Module) -> list[int]:
    """The tokens of each call of a module from here on."""
    sizes: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1]))
    return sizes


def test_a_picture_is_encoded_once_over_calls(model: vlm.Model, picture: Picture) -> None:
    calls = calls_of(model.network.encoder)
    for question in ("How many?", "What colour is it?", "Where is the circle?"):
        model.ask(picture(0), question, **SHORT)
    assert len(calls) == 1


def test_a_conversation_goes_on_where_it_was(model: vlm.Model, picture: Picture) -> None:
    messages = asked("Describe the image, and say what colour each of the shapes is.", picture(0))
    answer = model.chat(messages, **SHORT).text
    messages += [{"role": "assistant", "content": answer}, *asked("Two?")]
    prompt = model.processor.encode(
        [
            {"role": "user", "content": [{"type": "image"}, messages[0]["content"][1]]},
            *messages[1:],
        ],
        [picture(0)],
        add_generation_prompt=True,
    )
    sizes = calls_of(model.network.decoder.norm)
    model.chat(messages, **SHORT)
    assert sizes[0] < len(prompt.input_ids) / 2


def test_interleaved_streams_write_what_each_writes_alone(
    model: vlm.Model, picture: Picture
) -> None:
    first, second = asked("How many?", picture(0)), asked("What colour is it?", picture(1))
    alone = [list(model.stream(messages, **SHORT)) for messages in (first, second)]
    streams = [model.stream(messages, **SHORT) for messages in (first, second)]
    pieces: list[list[str]] = [[next(streams[0])], [next(streams[1])]]
    pieces[1] += streams[1]
    pieces[0] += streams[0]
    assert ["".join(some) for some in pieces] == ["".join(some) for some in alone]


def test_a_stream_that_is_dropped_frees_its_slot(model: vlm.Model, picture: Picture) -> None:
    stream = model.stream(asked("How many?", picture(0)), max_tokens=100)
    next(stream)
    session = model.answering._session
    assert session is not None and session.engine.num_active == 1
    stream.close()
    assert session.engine.num_active == 0
    assert model.ask(picture(0), "Two?", **SHORT)


def test_threads_get_the_answers_of_serial_calls(model: vlm.Model, picture: Picture) -> None:
    questions = [(picture(seed % 3), f"How many {word}?") for seed, word in enumerate("abcdefgh")]
    serial = [model.ask(image, question, **SHORT) for image, question in questions]
    with ThreadPoolExecutor(8) as pool:
        asked_at_once = list(pool.map(lambda pair: model.ask(*pair, **SHORT), questions))
    assert asked_at_once == serial and len(set(serial)) >= 3


def test_choices_differ_and_a_seed_reproduces_them(model: vlm.Model, picture: Picture) -> None:
    messages = asked("How many?", picture(0))
    settings = {**SHORT, "temperature": 1.0, "seed": 3}
    replies = model.choices(messages, 3, **settings)
    assert replies == model.choices(messages, 3, **settings)
    assert len({reply.text for reply in replies}) == 3
    assert replies[1] == model.chat(messages, **{**settings, "seed": 4})


def test_log_probabilities_come_with_the_reply_if_asked_for(
    model: vlm.Model, picture: Picture
) -> None:
    messages = asked("How many?", picture(0))
    assert model.chat(messages, **SHORT).logprobs == ()
    reply = model.chat(messages, **SHORT, logprobs=True, top_logprobs=2)
    assert len(reply.logprobs) == reply.usage.completion_tokens
    for told in reply.logprobs:
        assert told.top[0] == (told.token_id, told.logprob) and len(told.top) == 2


def test_what_fails_in_the_network_is_an_error_of_ours(model: vlm.Model, picture: Picture) -> None:
    model.network.decoder.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="could not be generated: the network's logits are not"):
        model.ask(picture(0), "How many?", **SHORT)
