"""Documents packed into one row are computed as if each stood alone."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from encoders.tiling import TiledImage
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.inputs import Example, stack_documents, stack_examples
from vlm.model import VisionLanguageModel

Picture = Callable[..., Image.Image]
# Matrices of other sizes add in another order: float32 rounding over 9 layers, in logits up to 4.
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def chat(*images_and_words: str) -> list[dict[str, Any]]:
    """A turn for each argument: `i` is an image, the words follow."""
    messages: list[dict[str, Any]] = []
    for turn in images_and_words:
        marks, _, words = turn.partition(" ")
        parts: list[dict[str, str]] = [{"type": "image"} for mark in marks if mark == "i"]
        parts.append({"type": "text", "text": words})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": "It is blue."})
    return messages


TEXT = chat("- How many red circles?")
ONE = chat("i What colour is it?")
TWO = chat("ii Is it large?")
LATER = chat("- Hello.", "i Describe the image.", "- Is it?")
MANY = chat("i Yes?", "ii How many?", "- Two?", "i What?")


@pytest.fixture
def images(processor: Processor, picture: Picture) -> list[TiledImage]:
    """Of 1, 2, 4, 3 and 1 tiles."""
    sizes = [(16, 16), (32, 16), (32, 32), (16, 48), (12, 16)]
    return [processor.tile(picture(seed, *size)) for seed, size in enumerate(sizes)]


@pytest.fixture
def rows(processor: Processor, images: list[TiledImage]) -> list[list[Example]]:
    """Three rows of 4, 3 and 1 documents; two documents of one row share a picture, two of two."""
    encode = processor.encode
    return [
        [
            encode(TEXT),
            encode(ONE, [images[0]]),
            encode(MANY, [images[1], images[2], images[0], images[3]]),
            encode(TEXT),
        ],
        [encode(TWO, [images[3], images[4]]), encode(ONE, [images[2]]), encode(LATER, [images[2]])],
        [encode(MANY, images[1:])],
    ]


def open_with(
    config: VLMConfig, processor: Processor, vision: dict[str, Any], decoder: dict[str, Any]
) -> VisionLanguageModel:
    """A model of the tiny configuration with changes; every gate open, cross-attention strong."""
    plain = config.model_dump()
    plain["vision"] |= vision
    plain["decoder"] |= decoder
    torch.manual_seed(0)
    model = VisionLanguageModel(VLMConfig.model_validate(plain), processor.tokenizer.image_id)
    for name, parameter in model.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            torch.nn.init.ones_(parameter)
        elif name.endswith("cross_attn.o_proj.weight"):
            parameter.data.mul_(20)
    return model.requires_grad_(False).eval()


def packed_logits(
    model: VisionLanguageModel, processor: Processor, rows: Sequence[Sequence[Example]]
) -> list[Tensor]:
    """Logits (tokens, V) of every document."""
    hidden = model(stack_documents(rows, processor.tokenizer.pad_id))
    found: list[Tensor] = []
    for row, states in zip(rows, hidden, strict=True):
        sizes = [len(document.input_ids) for document in row]
        found += states[: sum(sizes)].split(sizes)
    return [model.decoder.logits(states) for states in found]


def alone(model: VisionLanguageModel, processor: Processor, document: Example) -> Tensor:
    inputs = stack_examples([document], processor.tokenizer.pad_id)
    return model.decoder.logits(model(inputs)[0])


MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grouped queries": ({}, {}),
    "a head of keys for every head of queries": ({}, {"num_kv_heads": 4}),
    "local layers over whole images": ({"local_attention": "image"}, {}),
    "Llama 3.2's padding tiles": ({"local_attention": "image", "padding_tiles": "attend"}, {}),
    "positions that stretch with the document": (
        {},
        {"rope_scaling": {"kind": "dynamic", "factor": 4.0, "original_max_positions": 24}},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("visibility", ["latest", "all_previous"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_packed_document_has_the_logits_that_it_has_alone(
    kind: str,
    visibility: str,
    tiny_config: VLMConfig,
    processor: Processor,
    rows: list[list[Example]],
) -> None:
    config = tiny_config.model_copy(update={"image_visibility": visibility})
    model = open_with(config, processor, *MODELS[kind])
    documents = [document for row in rows for document in row]
    found = packed_logits(model, processor, rows)
    for document, logits in zip(documents, found, strict=True):
        torch.testing.assert_close(logits, alone(model, processor, document), **TOLERANCE)


@torch.no_grad()
def test_nothing_of_a_document_reaches_another(
    open_model: VisionLanguageModel,
    processor: Processor,
    rows: list[list[Example]],
    images: list[TiledImage],
) -> None:
    """To the bit: the same shapes go through the same kernels."""
    documents = rows[0]
    before = packed_logits(open_model, processor, [documents])
    picture = processor.encode(ONE, [images[4]])  # as many tiles as the one it replaces
    words = Example(documents[2].input_ids.roll(3), documents[2].loss_mask, documents[2].images)
    for place, other in ((1, picture), (2, words)):
        changed = [other if index == place else d for index, d in enumerate(documents)]
        after = packed_logits(open_model, processor, [changed])
        for index, (first, second) in enumerate(zip(before, after, strict=True)):
            assert torch.equal(first, second) == (index != place)


def test_rows_without_a_document_or_with_an_empty_one_are_refused() -> None:
    empty = torch.tensor([], dtype=torch.int64)
    for row in ([], [Example(empty, empty.bool(), ())]):
        with pytest.raises(ValueError, match="every row needs a document"):
            stack_documents([row], 0)
