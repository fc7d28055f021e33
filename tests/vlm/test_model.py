"""Who influences whom in the whole model: gates, pictures, batch-mates and padding."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from encoders.tiling import TiledImage
from vlm.chat.processor import Processor
from vlm.inputs import Example, ModelInputs, stack_examples
from vlm.model import VisionLanguageModel, row_positions

Picture = Callable[..., Image.Image]
IMAGE = {"type": "image"}
# Batches of other sizes go through other matrix kernels, which add in another order: float32
# rounding over 9 layers, in logits of around 1.
TOLERANCE = {"rtol": 0.0, "atol": 5e-5}
# A change of picture or place moves logits by more than this: far above the tolerance.
EFFECT = 5e-3


def user(*parts: str | dict[str, str]) -> dict[str, Any]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": content}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


ONE_IMAGE = [user(IMAGE, "What colour is it?"), assistant("Blue.")]
TEXT_ONLY = [user("Is a square large? How many?"), assistant("Two circles, red and blue.")]
TWO_TURNS = [
    user(IMAGE, "How many circles?"),
    assistant("Two."),
    user("And here?", IMAGE, "Describe."),
    assistant("A red one."),
]
ADJACENT = [user(IMAGE, IMAGE, "Which is larger?"), assistant("The second.")]
LATER = [user("Hello."), assistant("Yes?"), user(IMAGE, "What is it?"), assistant("A square.")]


@pytest.fixture
def images(processor: Processor, picture: Picture) -> list[TiledImage]:
    """Of 1, 2, 4, 3 and 1 tiles."""
    sizes = [(16, 16), (32, 16), (32, 32), (16, 48), (12, 16)]
    return [processor.tile(picture(seed, *size)) for seed, size in enumerate(sizes)]


def stack(processor: Processor, *rows: Example) -> ModelInputs:
    return stack_examples(rows, processor.tokenizer.pad_id)


def row_logits(
    model: VisionLanguageModel, processor: Processor, rows: Sequence[Example]
) -> list[Tensor]:
    """Logits (length, vocabulary) of each row of one batch."""
    logits = model.decoder.logits(model(stack(processor, *rows)))
    return [logits[i, : len(row.input_ids)] for i, row in enumerate(rows)]


def alone(model: VisionLanguageModel, processor: Processor, row: Example) -> Tensor:
    return row_logits(model, processor, [row])[0]


def moved(before: Tensor, after: Tensor) -> Tensor:
    """The largest change of each token's logits, (S,)."""
    return (before - after).abs().amax(dim=-1)


@torch.no_grad()
def test_closed_gates_leave_text_logits_unchanged(
    tiny_model: VisionLanguageModel, processor: Processor, images: list[TiledImage]
) -> None:
    inputs = stack(
        processor,
        processor.encode(TWO_TURNS, images[:2]),
        processor.encode(TEXT_ONLY),
        processor.encode(ONE_IMAGE, images[2:3]),
    )
    blind = ModelInputs(inputs.input_ids, inputs.lengths, None)
    assert torch.equal(tiny_model(inputs), tiny_model(blind))


@pytest.mark.parametrize("visibility", ["latest", "all_previous"])
@pytest.mark.parametrize("changed", [0, 1])
def test_changing_a_picture_never_changes_earlier_tokens(
    open_model: VisionLanguageModel,
    processor: Processor,
    images: list[TiledImage],
    visibility: str,
    changed: int,
) -> None:
    open_model.config = open_model.config.model_copy(update={"image_visibility": visibility})
    shown = [images[1], images[2]]
    before = processor.encode(TWO_TURNS, shown)
    # Other pixels, another canvas and another number of tiles.
    shown[changed] = images[3]
    after = processor.encode(TWO_TURNS, shown)
    image_at = (before.input_ids == processor.tokenizer.image_id).nonzero().flatten().tolist()
    start = image_at[changed]
    first, second = (alone(open_model, processor, row) for row in (before, after))
    torch.testing.assert_close(first[:start], second[:start], **TOLERANCE)
    assert (moved(first[start:], second[start:]) > EFFECT).all()


def test_an_image_in_a_later_turn_leaves_the_turns_before_it_as_text(
    open_model: VisionLanguageModel, processor: Processor, images: list[TiledImage]
) -> None:
    row = processor.encode(LATER, images[:1])
    start = row.input_ids.tolist().index(processor.tokenizer.image_id)
    seeing = alone(open_model, processor, row)
    blind = open_model.decoder.logits(
        open_model(ModelInputs(row.input_ids[None], torch.tensor([len(row.input_ids)]), None))
    )[0]
    # The same shapes throughout, and cross-attention adds exactly nothing before the image.
    assert torch.equal(seeing[:start], blind[:start])
    assert (moved(seeing[start:], blind[start:]) > EFFECT).all()


def test_a_row_depends_neither_on_batch_mates_nor_on_padding(
    open_model: VisionLanguageModel, processor: Processor, images: list[TiledImage]
) -> None:
    rows = [
        processor.encode(ONE_IMAGE, images[:1]),
        processor.encode(TEXT_ONLY),
        processor.encode(TWO_TURNS, images[1:3]),
        processor.encode(ADJACENT, [images[3], images[0]]),
        processor.encode(LATER, images[4:]),
    ]
    expected = [alone(open_model, processor, row) for row in rows]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 0], [3, 1]):
        together = row_logits(open_model, processor, [rows[i] for i in order])
        for i, logits in zip(order, together, strict=True):
            torch.testing.assert_close(logits, expected[i], **TOLERANCE)


def test_what_stands_in_the_padding_does_not_matter(
    open_model: VisionLanguageModel, processor: Processor, images: list[TiledImage]
) -> None:
    rows = [processor.encode(ONE_IMAGE, images[:1]), processor.encode(TWO_TURNS, images[1:3])]
    inputs = stack(processor, *rows)
    padding = torch.arange(inputs.input_ids.shape[1]) >= inputs.lengths.unsqueeze(1)
    other = ModelInputs(inputs.input_ids.masked_fill(padding, 7), inputs.lengths, inputs.images)
    assert padding.any()
    assert torch.equal(open_model(inputs)[~padding], open_model(other)[~padding])


def test_text_only_rows_get_exactly_nothing_from_cross_attention(
    open_model: VisionLanguageModel, processor: Processor, images: list[TiledImage]
) -> None:
    mixed = stack(processor, processor.encode(TEXT_ONLY), processor.encode(TWO_TURNS, images[1:3]))
    blind = ModelInputs(mixed.input_ids, mixed.lengths, None)
    seeing, unseeing = open_model(mixed), open_model(blind)
    # Batches of one shape go through the same kernels, so this is exact.
    assert torch.equal(seeing[0], unseeing[0])
    assert not torch.equal(seeing[1], unseeing[1])


def test_rows_that_share_an_image_object_equal_rows_with_their_own(
    open_model: VisionLanguageModel, processor: Processor, picture: Picture
) -> None:
    shared, other = processor.tile(picture(0, 32, 16)), processor.tile(picture(1))
    again, once_more = processor.tile(picture(0, 32, 16)), processor.tile(picture(0, 32, 16))
    sharing = [
        processor.encode(ONE_IMAGE, [shared]),
        processor.encode(TWO_TURNS, [other, shared]),
        processor.encode(LATER, [shared]),
    ]
    owning = [
        processor.encode(ONE_IMAGE, [shared]),
        processor.encode(TWO_TURNS, [other, again]),
        processor.encode(LATER, [once_more]),
    ]
    batch, full_batch = stack(processor, *sharing), stack(processor, *owning)
    assert batch.images is not None and full_batch.images is not None
    assert (len(batch.images.pixels), len(full_batch.images.pixels)) == (3, 7)
    for ours, theirs in zip(
        row_logits(open_model, processor, sharing),
        row_logits(open_model, processor, owning),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_image_visibility_decides_which_images_a_token_reads(
    open_model: VisionLanguageModel, processor: Processor, images: list[TiledImage]
) -> None:
    chat = [*ADJACENT, *ONE_IMAGE]
    inputs = stack(processor, processor.encode(chat, images[:3]))
    at = (inputs.input_ids[0] == processor.tokenizer.image_id).nonzero().flatten().tolist()
    num_tokens = [count * open_model.config.vision.num_tokens for count in (1, 2, 4)]
    seen = {"latest": [(), (0,), (0, 1), (2,)], "all_previous": [(), (0,), (0, 1), (0, 1, 2)]}
    for visibility, expected in seen.items():
        open_model.config = open_model.config.model_copy(update={"image_visibility": visibility})
        context = open_model.image_context(inputs, row_positions(inputs.input_ids))
        by_image = context.mask[0].split(num_tokens, dim=-1)
        bounds = [0, *at, inputs.input_ids.shape[1]]
        for start, end, visible in zip(bounds[:-1], bounds[1:], expected, strict=True):
            for image, mask in enumerate(by_image):
                assert mask[start:end].eq(image in visible).all(), (visibility, start, image)


def test_every_parameter_of_an_open_model_learns(
    open_model: VisionLanguageModel, processor: Processor, images: list[TiledImage]
) -> None:
    open_model.requires_grad_(True)
    row = processor.encode(TWO_TURNS, images[1:3])
    alone(open_model, processor, row).logsumexp(-1).sum().backward()
    parameters = open_model.named_parameters()
    idle = [name for name, p in parameters if p.grad is None or not p.grad.any()]
    assert idle == []
