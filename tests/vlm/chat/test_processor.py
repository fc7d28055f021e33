"""Chats to rows: what is supervised, where images stand, agreement with transformers."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from data.schema import Sample
from encoders.config import VisionConfig
from vlm.chat.processor import Processor
from vlm.chat.template import LLAMA3_TEMPLATE, ChatTemplate
from vlm.errors import UserError
from vlm.inputs import Example

VISION = VisionConfig(
    tile_size_px=16,
    patch_size_px=8,
    max_num_tiles=4,
    hidden_size=8,
    intermediate_size=8,
    num_heads=1,
    num_local_layers=1,
    num_global_layers=0,
    intermediate_layers=(),
)
IMAGE = {"type": "image"}
PICTURE = Image.new("RGB", (16, 16), "red")
WIDE = Image.new("RGB", (32, 16), "blue")

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA31 = LLAMA3_TEMPLATE.replace("message['content'] }}", "message['content'] | trim }}")


def message(role: str, *parts: str | dict[str, str]) -> dict[str, Any]:
    return {
        "role": role,
        "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts],
    }


CHATS: dict[str, tuple[list[dict[str, Any]], int]] = {
    "caption": ([message("user", IMAGE, "Describe."), message("assistant", "A red square.")], 1),
    "text only": ([message("user", "1 + 1?"), message("assistant", "2, or\n\n10 (binary).\n")], 0),
    "system and turns": (
        [
            message("system", "Be brief."),
            message("user", IMAGE, "Colour?"),
            message("assistant", "red"),
            message("user", "Sure?"),
            message("assistant", " Yes! "),
        ],
        1,
    ),
    "images in later turns": (
        [
            message("user", "Hello."),
            message("assistant", "Hi."),
            message("user", IMAGE, "and", IMAGE, "differ?"),
            message("assistant", "yes <|eot_id|> they do <|image|>"),
            message("user", IMAGE),
            message("assistant", "\n\nnaïve 日本 🙂"),
        ],
        3,
    ),
}


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.train(["What colour is it? It is red.\n\nYes, 12345."] * 9, VISION, 300)


@pytest.fixture(params=CHATS)
def chat(request: pytest.FixtureRequest) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    messages, num_images = CHATS[request.param]
    return messages, [PICTURE] * num_images


def chatml_folder(processor: Processor, folder: Path, template: str = CHATML) -> Path:
    """A foreign folder: other special tokens, the template in the config."""
    processor.tokenizer.save(folder)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    content = json.loads(backend.to_str())
    content["added_tokens"] = []
    backend = Backend.from_str(json.dumps(content))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def supervised_runs(processor: Processor, example: Example) -> list[str]:
    """The text of each run of supervised tokens, special tokens shown."""
    runs: list[list[int]] = []
    before = False
    pairs = zip(example.input_ids.tolist(), example.loss_mask.tolist(), strict=True)
    for token, supervised in pairs:
        if supervised and not before:
            runs.append([])
        if supervised:
            runs[-1].append(token)
        before = supervised
    return [processor.tokenizer.decode(run, skip_special=False) for run in runs]


def words(messages: list[dict[str, Any]], role: str) -> list[str]:
    return [m["content"][0]["text"] for m in messages if m["role"] == role]


def test_supervised_are_exactly_the_assistants_words_and_the_ends_of_its_turns(
    processor: Processor, chat: tuple[list[dict[str, Any]], list[Image.Image]]
) -> None:
    messages, images = chat
    example = processor.encode(messages, images)
    expected = [text + "<|eot_id|>" for text in words(messages, "assistant")]
    assert supervised_runs(processor, example) == expected
    assert example.input_ids.dtype == torch.int64 and example.loss_mask.dtype == torch.bool


def test_each_image_part_is_one_image_token_whatever_the_texts_say(
    processor: Processor, chat: tuple[list[dict[str, Any]], list[Image.Image]]
) -> None:
    messages, images = chat
    example = processor.encode(messages, images)
    tokenizer = processor.tokenizer
    ids = example.input_ids.tolist()
    assert ids.count(tokenizer.image_id) == len(images) == len(example.images)
    assert ids.count(tokenizer.eot_id) == len(messages)
    assert ids.count(tokenizer.bos_id) == 1 and ids[0] == tokenizer.bos_id


def test_a_prompt_is_the_beginning_of_the_answered_chat(
    processor: Processor, chat: tuple[list[dict[str, Any]], list[Image.Image]]
) -> None:
    messages, _ = chat
    for k, one in enumerate(messages):
        if one["role"] != "assistant":
            continue
        num_images = sum(p == IMAGE for m in messages[:k] for p in m["content"])
        images = [PICTURE] * num_images
        prompt = processor.encode(messages[:k], images, add_generation_prompt=True)
        answered = processor.encode(messages[: k + 1], images)
        num_tokens = len(prompt.input_ids)
        assert torch.equal(answered.input_ids[:num_tokens], prompt.input_ids)
        assert torch.equal(answered.loss_mask[:num_tokens], prompt.loss_mask)
        assert answered.loss_mask[num_tokens:].all() and num_tokens < len(answered.input_ids)


def test_the_row_is_llama3s_form(processor: Processor) -> None:
    messages = [message("user", IMAGE, "Colour?"), message("assistant", "red")]
    text = processor.tokenizer.decode(
        processor.encode(messages, [WIDE]).input_ids.tolist(), skip_special=False
    )
    assert text == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>Colour?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nred<|eot_id|>"
    )


def test_pictures_are_tiled_in_the_order_of_their_parts(processor: Processor) -> None:
    messages = [message("user", IMAGE, IMAGE, "Which is wider?")]
    images = processor.encode(messages, [PICTURE, WIDE]).images
    assert [image.canvas for image in images] == [(1, 1), (1, 2)]
    assert images[0].tiles[0, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("template", [LLAMA3_TEMPLATE, LLAMA31, CHATML])
@pytest.mark.parametrize("generation", [False, True])
def test_plain_text_equals_transformers(
    processor: Processor, tmp_path: Path, template: str, generation: bool
) -> None:
    if template == CHATML:
        processor = Processor.from_folder(chatml_folder(processor, tmp_path / "a"), VISION)
    else:
        named = ChatTemplate(template, processor.tokenizer.named_tokens)
        processor = Processor(processor.tokenizer, named, VISION)
    processor.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["What colour?", "1234 ", " \n\n x", "...\n", "", "é 日本 🙂\n\n"]
    if template != CHATML:  # its header ends in one newline, which a second would join
        texts.append("\n\n\nIt's")
    for first in texts:
        for second in texts:
            messages = [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": first},
                {"role": "assistant", "content": second},
            ]
            expected = theirs.apply_chat_template(
                messages, add_generation_prompt=generation, return_dict=False
            )
            ours = processor.encode(messages, add_generation_prompt=generation)
            assert ours.input_ids.tolist() == expected, (first, second)


def test_a_foreign_folder_brings_its_own_form(processor: Processor, tmp_path: Path) -> None:
    foreign = Processor.from_folder(chatml_folder(processor, tmp_path), VISION)
    messages = [message("user", "a", IMAGE, "b"), message("assistant", "c <|im_end|>")]
    example = foreign.encode(messages, [PICTURE])
    text = foreign.tokenizer.decode(example.input_ids.tolist(), skip_special=False)
    assert text == (
        "<|im_start|>user\na<|image|>b<|im_end|>\n<|im_start|>assistant\nc <|im_end|><|im_end|>\n"
    )
    assert supervised_runs(foreign, example) == ["c <|im_end|><|im_end|>"]
    assert (example.input_ids == foreign.tokenizer.eot_id).sum() == 2


def test_trimmed_words_are_supervised_as_they_stand(processor: Processor) -> None:
    trimming = Processor(processor.tokenizer, ChatTemplate(LLAMA31), VISION)
    messages = [message("user", "?"), {"role": "assistant", "content": " two\n"}]
    assert supervised_runs(trimming, trimming.encode(messages)) == ["two<|eot_id|>"]


def test_a_template_that_never_ends_the_assistants_turn_is_refused(
    processor: Processor, tmp_path: Path
) -> None:
    folder = chatml_folder(processor, tmp_path, CHATML.replace("<|im_end|>", ""))
    endless = Processor.from_folder(folder, VISION)
    assert len(endless.encode([message("user", "Hello.")]).input_ids) > 0
    with pytest.raises(UserError, match=r"nothing that ends a turn.*<\|im_end\|>"):
        endless.encode([message("user", "Hello."), message("assistant", "Hi.")])


def test_adjacent_texts_are_one_text(processor: Processor) -> None:
    parts = processor.encode([message("user", "What co", "lour?", IMAGE, "x", "y")], [PICTURE])
    whole = processor.encode([message("user", "What colour?", IMAGE, "xy")], [PICTURE])
    assert torch.equal(parts.input_ids, whole.input_ids)


def test_samples_and_plain_content_read_like_parts(
    processor: Processor, chat: tuple[list[dict[str, Any]], list[Image.Image]]
) -> None:
    messages, images = chat
    expected = processor.encode(messages, images)
    sample = Sample.parse({"messages": messages})
    assert torch.equal(processor.encode(sample.messages, images).input_ids, expected.input_ids)
    plain = [
        m if IMAGE in m["content"] else {"role": m["role"], "content": m["content"][0]["text"]}
        for m in messages
    ]
    assert torch.equal(processor.encode(plain, images).input_ids, expected.input_ids)


def test_saved_and_pickled_processors_encode_alike(
    processor: Processor,
    chat: tuple[list[dict[str, Any]], list[Image.Image]],
    tmp_path: Path,
) -> None:
    messages, images = chat
    expected = processor.encode(messages, images)
    processor.save(tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for other in (
        Processor.from_folder(tmp_path, VISION),
        pickle.loads(pickle.dumps(processor)),  # what spawned loader workers get
    ):
        example = other.encode(messages, images)
        assert torch.equal(example.input_ids, expected.input_ids)
        assert torch.equal(example.loss_mask, expected.loss_mask)


@pytest.mark.parametrize(
    ("messages", "images", "complaint"),
    [
        ([], [], "no messages"),
        ([message("user", IMAGE, "?")], [], "1 image parts and comes with 0 pictures"),
        ([message("user", "?")], [PICTURE, PICTURE], "0 image parts and comes with 2 pictures"),
        ([message("robot", "?")], [], r"messages\[0\] has the role 'robot'; there are system"),
        ([{"content": "?"}], [], "the role None"),
        ([{"role": "user"}], [], r"the content of messages\[0\] is a NoneType"),
        ([message("user", {"type": "video"})], [], r"messages\[0\] has a part that is neither"),
        ([message("user", {"type": "text"})], [], r"messages\[0\] has a part that is neither"),
        ([{"role": "user", "content": ["?"]}], [], r"messages\[0\] has a part that is neither"),
        ([message("user", IMAGE)], [Image.new("L", (8, 8))], "mode is L, needed: RGB"),
    ],
)
def test_a_malformed_chat_is_one_line(
    processor: Processor, messages: Any, images: list[Image.Image], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        processor.encode(messages, images)
