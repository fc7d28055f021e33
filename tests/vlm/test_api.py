"""The public API on a tiny saved model: answers, streams, stop strings, and clear errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vlm
from vlm.api import DTYPES
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder
from vlm.weights.tensors import WEIGHTS_FILE

Picture = Callable[..., Image.Image]
QUESTION = "What colour is the large square?"
SHORT: dict[str, Any] = {"max_tokens": 8}
SAMPLED: dict[str, Any] = {"max_tokens": 24, "temperature": 1.0, "seed": 0}


def save(
    folder: Path,
    network: VisionLanguageModel,
    processor: Processor,
    components: tuple[str, ...] = ("encoder", "projector", "decoder"),
) -> Path:
    config = FolderConfig(format=FORMAT, stage="align", components=components, model=network.config)
    modules = {name: network.get_submodule(name) for name in components}
    save_folder(folder, config, modules, processor, {})
    return folder


@pytest.fixture
def folder(tmp_path: Path, open_model: VisionLanguageModel, processor: Processor) -> Path:
    return save(tmp_path / "model", open_model, processor)


@pytest.fixture
def model(open_model: VisionLanguageModel, processor: Processor, tmp_path: Path) -> vlm.Model:
    return vlm.Model(open_model, processor, tmp_path)


@pytest.fixture
def messages(picture: Picture) -> list[dict[str, Any]]:
    """Two images in two turns, the second wider."""
    return [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture(0)},
                {"type": "text", "text": "How many circles?"},
            ],
        },
        {"role": "assistant", "content": "Two."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And here?"},
                {"type": "image", "image": picture(1, 32, 16)},
            ],
        },
    ]


def always_write(model: vlm.Model, *tokens: int) -> None:
    """Make the first token or, where its logit is negative, the second the most likely one."""
    rows = model.network.decoder.lm_head.weight.data
    torch.manual_seed(0)
    direction = 50 * torch.randn(rows.shape[1])
    rows[tokens[0]], rows[tokens[1]] = direction, -direction


def test_a_loaded_model_answers_like_the_saved_one(
    folder: Path, model: vlm.Model, messages: list[dict[str, Any]]
) -> None:
    loaded = vlm.load(str(folder), device="cpu")
    saved = model.network.state_dict()
    assert saved.keys() == loaded.network.state_dict().keys()
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, saved[name]) and not tensor.requires_grad, name
    assert loaded.chat(messages, **SHORT) == model.chat(messages, **SHORT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_loads_and_answers_in_every_dtype(
    folder: Path, dtype: str, picture: Picture
) -> None:
    model = vlm.load(folder, device="cpu", dtype=dtype)
    assert {p.dtype for p in model.network.parameters()} == {DTYPES[dtype]}
    assert model.ask(picture(0), QUESTION, **SHORT)


def test_paths_pictures_and_bytes_are_the_same_image(
    model: vlm.Model, picture: Picture, tmp_path: Path
) -> None:
    image = picture(3)
    path = tmp_path / "image.png"
    image.save(path)
    expected = model.ask(image, QUESTION, **SHORT)
    for source in (path, str(path), path.read_bytes(), [image]):
        assert model.ask(source, QUESTION, **SHORT) == expected
    assert model.ask(picture(4), QUESTION, **SHORT) != expected


def test_ask_takes_one_image_several_or_none(model: vlm.Model, picture: Picture) -> None:
    first, second = picture(0), picture(1, 32, 16)
    answers = {
        model.ask(images, QUESTION, **SHORT) for images in ([], first, [second], [first, second])
    }
    assert len(answers) == 4


def test_images_belong_to_their_turns(model: vlm.Model, messages: list[dict[str, Any]]) -> None:
    before = model.chat(messages, **SHORT)
    first, second = messages[0]["content"][0], messages[2]["content"][1]
    first["image"], second["image"] = second["image"], first["image"]
    assert model.chat(messages, **SHORT) != before


def test_a_caption_answers_the_training_prompt(model: vlm.Model, picture: Picture) -> None:
    asked = model.ask(picture(0), "Describe the image.", **SHORT)
    assert model.caption(picture(0), **SHORT) == asked


def test_ask_is_a_chat_of_one_message(model: vlm.Model, picture: Picture) -> None:
    image = picture(0)
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    reply = model.chat([{"role": "user", "content": content}], **SHORT)
    assert reply.text == model.ask(image, QUESTION, **SHORT)


def test_answers_of_a_batch_are_those_of_its_requests(model: vlm.Model, picture: Picture) -> None:
    shared = picture(0)
    requests = [
        ([shared], QUESTION),
        ([], "Two?"),
        ([picture(1, 32, 32), shared], "Which is red?"),
        ([shared], "How many circles are there? Describe the image."),
        ([picture(2, 16, 48)], QUESTION),
    ]
    expected = [model.ask(images, question, **SHORT) for images, question in requests]
    assert len(set(expected)) == len(requests)
    for batch_size in (1, 2, 32):
        assert model.answer_batch(requests, batch_size=batch_size, **SHORT) == expected
    assert model.answer_batch([]) == []


def test_a_seed_reproduces_an_answer_and_another_differs(
    model: vlm.Model, messages: list[dict[str, Any]]
) -> None:
    first, again = (model.chat(messages, **SAMPLED) for _ in range(2))
    assert first == again
    assert model.chat(messages, **{**SAMPLED, "seed": 1}).text != first.text


def test_max_tokens_cuts_and_says_so(model: vlm.Model, messages: list[dict[str, Any]]) -> None:
    reply = model.chat(messages, max_tokens=5)
    assert reply.finish_reason == "length" and reply.usage.completion_tokens == 5
    prompt_tokens = reply.usage.prompt_tokens
    pictures = [part["image"] for m in messages for part in m["content"] if "image" in part]
    example = model.processor.encode(
        [messages[0], messages[1], messages[2]], pictures, add_generation_prompt=True
    )
    assert prompt_tokens == len(example.input_ids)


def test_the_end_of_the_turn_stops_and_is_not_shown(
    model: vlm.Model, messages: list[dict[str, Any]]
) -> None:
    tokenizer = model.processor.tokenizer
    always_write(model, tokenizer.eot_id, tokenizer.special_id("<|end_of_text|>"))
    reply = model.chat(messages, **SHORT)
    assert (reply.text, reply.finish_reason) == ("", "stop")
    assert reply.usage.completion_tokens == 1


def test_images_and_padding_are_never_written(
    model: vlm.Model, messages: list[dict[str, Any]]
) -> None:
    tokenizer = model.processor.tokenizer
    expected = model.chat(messages, **SHORT)
    always_write(model, tokenizer.image_id, tokenizer.pad_id)
    assert expected.text and model.chat(messages, **SHORT) == expected


def test_stop_strings_cut_the_answer_before_the_first_of_them(
    model: vlm.Model, messages: list[dict[str, Any]]
) -> None:
    free = model.chat(messages, **SAMPLED).text
    stops = free[6:8], free[11:13]
    cut = min(free.index(stop) for stop in stops)
    reply = model.chat(messages, **SAMPLED, stop=stops)
    assert (reply.text, reply.finish_reason) == (free[:cut].strip(), "stop")
    assert reply.usage.completion_tokens < SAMPLED["max_tokens"]


@pytest.mark.parametrize("seed", range(4))
def test_streamed_pieces_join_to_the_chats_text(
    model: vlm.Model, messages: list[dict[str, Any]], seed: int
) -> None:
    settings = {**SAMPLED, "seed": seed}
    free = model.chat(messages, **settings).text
    for stop in ((), (free[5:8],), (free[9], "no such text"), (free[-3:],)):
        pieces = list(model.stream(messages, **settings, stop=stop))
        assert "".join(pieces) == model.chat(messages, **settings, stop=stop).text
        assert "" not in pieces
        if not stop:
            assert len(pieces) > 5


class Script(torch.nn.Module):
    """An output layer that writes given tokens, whatever the hidden states."""

    def __init__(self, tokens: list[int], vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.vocab_size = iter(tokens), vocab_size

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*hidden.shape[:-1], self.vocab_size)
        logits[..., next(self.tokens)] = 1
        return logits


@pytest.mark.parametrize(
    ("written", "stop", "expected"),
    [
        ("  two red circles \n\n", (), "two red circles"),
        ("a🙂é b", (), "a🙂é b"),
        ("two\n\nUser: three", ("\n\nUser",), "two"),
        ("two\n\nUse: three", ("\n\nUser",), "two\n\nUse: three"),
        ("two \nUser", ("\nUser",), "two"),
        ("aé and more", ("aé",), ""),
        ("xaé and more", ("aé", "nope"), "x"),
        ("aab", ("ab",), "a"),
    ],
)
def test_chat_and_stream_hold_back_what_is_not_certain(
    model: vlm.Model, written: str, stop: tuple[str, ...], expected: str
) -> None:
    tokenizer = model.processor.tokenizer
    # Byte by byte: characters of several bytes and stop strings are then unfinished at times.
    letters = [tokenizer.encode(letter) for letter in written]
    tokens = [token for letter in letters for token in letter] + [tokenizer.eot_id] * 2
    question = [{"role": "user", "content": QUESTION}]
    model.network.decoder.lm_head = Script(tokens, 300)
    assert model.chat(question, stop=stop).text == expected
    model.network.decoder.lm_head = Script(tokens, 300)
    assert "".join(model.stream(question, stop=stop)) == expected


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"temprature": 1}, "unknown setting 'temprature'; there are temperature, top_p"),
        ({"temperature": -1}, "setting temperature is -1: "),
        ({"top_p": 2}, "setting top_p is 2: "),
        ({"max_tokens": 0}, "setting max_tokens is 0: "),
        ({"seed": -1}, "setting seed is -1: "),
        ({"stop": ("",)}, r"setting stop\.0 is '': "),
        ({"stop": "word"}, "setting stop is 'word': "),
        ({"max_tokens": 1000}, r"1000 new ones exceed the model's 256 positions; shorten"),
    ],
)
def test_wrong_settings_are_one_clear_line(
    model: vlm.Model, picture: Picture, settings: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        model.ask(picture(0), QUESTION, **settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=complaint):
        list(model.stream([{"role": "user", "content": QUESTION}], **settings))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "no messages"),
        ("How many?", r"messages\[0\] is a str, needed: role and content"),
        ([None], r"messages\[0\] is a NoneType"),
        ([{"role": "user"}], r"messages\[0\] has the keys \['role'\]"),
        ([{"role": "user", "content": "?", "name": "x"}], "has the keys"),
        ([{"role": "robot", "content": "?"}], "the role 'robot'"),
        ([{"role": "user", "content": None}], r"content of messages\[0\] is a NoneType"),
        ([{"role": "user", "content": {"type": "text"}}], r"messages\[0\] is a dict"),
        ([{"role": "user", "content": ["?"]}], r"messages\[0\] has a part that is neither"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "a part that is neither"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part that is neither"),
        ([{"role": "user", "content": [{"type": "video"}]}], "a part that is neither"),
        (
            [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": [{"type": "image", "image": "gone.jpg"}]},
            ],
            "gone.jpg",
        ),
    ],
)
def test_malformed_messages_are_one_clear_line(
    model: vlm.Model, messages: Any, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        model.chat(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere.jpg", Path("nowhere.jpg")])
def test_a_missing_image_is_named(model: vlm.Model, source: str | Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jpg"):
        model.ask(source, QUESTION)


def test_bytes_that_are_no_picture_are_refused(model: vlm.Model) -> None:
    with pytest.raises(UserError, match="not a picture"):
        model.ask(b"some bytes", QUESTION)


def test_a_folder_of_one_component_is_no_model(
    tmp_path: Path, open_model: VisionLanguageModel, processor: Processor
) -> None:
    save(tmp_path, open_model, processor, components=("encoder",))
    with pytest.raises(UserError, match=r"has no projector and no decoder; load the folder of an"):
        vlm.load(tmp_path)


def test_folders_that_do_not_hold_what_they_claim_are_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    name = "decoder.layers.3.attn_gate"
    save_file({**tensors, name: torch.zeros(2)}, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"layers\.3\.attn_gate is \[2\], needed: \[1\]"):
        vlm.load(folder, device="cpu")
    save_file({k: v for k, v in tensors.items() if k != name}, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"layers\.3\.attn_gate is missing"):
        vlm.load(folder, device="cpu")
    (folder / WEIGHTS_FILE).write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        vlm.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'; there are auto, cpu"),
        ({"dtype": "int8"}, "unknown dtype 'int8'; there are auto, float32"),
    ],
)
def test_unknown_devices_and_dtypes_are_named(
    folder: Path, settings: dict[str, str], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        vlm.load(folder, **settings)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a model folder: there is no such folder"):
        vlm.load(tmp_path / "nowhere")
