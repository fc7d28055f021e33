"""The recomputed cross-attention is the model's own, and lands on the right pixels."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from encoders.config import VisionConfig
from encoders.tiling import tile_picture
from vlm.attention_maps import (
    Placement,
    answer_attention,
    attention_probabilities,
    cross_attention_inputs,
    image_attention,
)
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.decoder.stack import CrossAttentionBlock
from vlm.inputs import Example, stack_examples
from vlm.model import VisionLanguageModel

VISION = VisionConfig.model_validate(
    {
        "tile_size_px": 16,
        "patch_size_px": 8,
        "max_num_tiles": 4,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "num_local_layers": 1,
        "num_global_layers": 1,
        "intermediate_layers": [0],
    }
)
ANSWER = (5, 6, 7, 8)


def prompt_of(processor: Processor, *pictures: Image.Image) -> Example:
    parts = [{"type": "image"} for _ in pictures]
    content = [*parts, {"type": "text", "text": "How many?"}]
    messages = [{"role": "user", "content": content}]
    return processor.encode(messages, pictures, add_generation_prompt=True)


def cross_blocks(model: VisionLanguageModel) -> dict[int, CrossAttentionBlock]:
    layers = enumerate(model.decoder.layers)
    return {index: layer for index, layer in layers if isinstance(layer, CrossAttentionBlock)}


def test_what_enters_each_block_is_what_the_model_computes(
    open_model: VisionLanguageModel, processor: Processor, picture: Callable[..., Image.Image]
) -> None:
    inputs = stack_examples([prompt_of(processor, picture(1, 40, 30))], pad_id=0)
    seen: dict[int, Tensor] = {}
    for index, block in cross_blocks(open_model).items():
        block.register_forward_pre_hook(
            lambda _, arguments, index=index: seen.update({index: arguments[0]})
        )
    open_model(inputs)
    own = dict(seen)
    entering, _ = cross_attention_inputs(open_model, inputs)
    assert list(entering) == list(own) == [3, 8]
    assert all(torch.equal(entering[index], own[index]) for index in own)


def test_values_weighted_by_the_probabilities_are_the_layers_output(
    open_model: VisionLanguageModel, processor: Processor, picture: Callable[..., Image.Image]
) -> None:
    """Fused attention sums in another order: float32 rounding, 1e-5 of values near 1."""
    inputs = stack_examples([prompt_of(processor, picture(1, 40, 30), picture(2))], pad_id=0)
    entering, images = cross_attention_inputs(open_model, inputs)
    for index, block in cross_blocks(open_model).items():
        layer, hidden = block.cross_attn, block.input_layernorm(entering[index])
        stored = layer.project_images(images.tokens)
        found = attention_probabilities(layer, hidden, stored.keys, images.mask)  # (B, H, S, L)
        values = stored.values.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1)
        summed = layer.o_proj((found @ values).transpose(1, 2).flatten(2))
        own = layer(hidden, stored, images.mask.unsqueeze(1))
        torch.testing.assert_close(summed, own, rtol=1e-5, atol=1e-5)


def test_probabilities_sum_to_one_or_to_nothing_where_no_image_is_seen(
    open_model: VisionLanguageModel, processor: Processor, picture: Callable[..., Image.Image]
) -> None:
    inputs = stack_examples([prompt_of(processor, picture(1, 40, 30))], pad_id=0)
    entering, images = cross_attention_inputs(open_model, inputs)
    block = cross_blocks(open_model)[3]
    hidden = block.input_layernorm(entering[3])
    keys = block.cross_attn.project_images(images.tokens).keys
    sums = attention_probabilities(block.cross_attn, hidden, keys, images.mask).sum(-1)
    expected = images.mask.any(-1).float()[:, None].expand_as(sums)
    assert 0 < expected.mean() < 1  # the prompt's first tokens see no image
    torch.testing.assert_close(sums, expected)


def test_an_answers_attention_is_that_of_the_places_where_its_tokens_are_chosen(
    open_model: VisionLanguageModel, processor: Processor, picture: Callable[..., Image.Image]
) -> None:
    prompt = prompt_of(processor, picture(1, 40, 30))
    weights = answer_attention(open_model, prompt, ANSWER)
    ids = torch.cat([prompt.input_ids, torch.tensor(ANSWER)])
    inputs = stack_examples([Example(ids, ids > 0, prompt.images)], pad_id=0)
    entering, images = cross_attention_inputs(open_model, inputs)
    for index, block in cross_blocks(open_model).items():
        keys = block.cross_attn.project_images(images.tokens).keys
        hidden = block.input_layernorm(entering[index])
        every = attention_probabilities(block.cross_attn, hidden, keys, images.mask)[0].mean(0)
        assert weights[index].shape == (4, 4 * VISION.num_tokens)
        torch.testing.assert_close(weights[index], every[-5:-1])
    first = answer_attention(open_model, prompt, ANSWER[:1])
    torch.testing.assert_close(first[3], weights[3][:1])


def test_shares_of_an_images_patches_and_tiles_add_up(
    open_model: VisionLanguageModel,
    tiny_config: VLMConfig,
    processor: Processor,
    picture: Callable[..., Image.Image],
) -> None:
    """Images side by side are seen together: their shares make one whole."""
    prompt = prompt_of(processor, picture(1, 40, 30), picture(2, 32, 16))
    weights = answer_attention(open_model, prompt, ANSWER)
    parts = [
        image_attention(weights, [3, 8], prompt.images, number, tiny_config.vision)
        for number in range(2)
    ]
    assert [part.patches.shape for part in parts] == [(4, 4, 4), (4, 2, 4)]
    assert [part.tiles.shape for part in parts] == [(4, 4), (4, 2)]
    whole = sum(part.patches.sum((1, 2)) + part.prefix.sum(1) for part in parts)
    torch.testing.assert_close(whole, torch.ones(4))
    for part in parts:
        in_tiles = part.patches.sum((1, 2)) + part.prefix.sum(1)
        torch.testing.assert_close(part.tiles.sum(1), in_tiles)


def look_at(model: VisionLanguageModel, tokens: Tensor, target: int, strength: float) -> float:
    """Set weights so that every token that sees `tokens` (L, D) attends to one; return how much.

    Queries point the same way: the stream's first channel is large and positive, and nothing else
    reaches them. Keys point that way for the target, and the opposite way for all others.
    """
    wanted = -torch.ones(len(tokens))
    wanted[target] = 1
    direction = torch.linalg.lstsq(tokens.double(), wanted.double()).solution.float()
    model.decoder.embed_tokens.weight.data[:, 0] = 50
    for block in cross_blocks(model).values():
        layer = block.cross_attn
        block.input_layernorm.weight.data.zero_()[0] = 1
        size = layer.q_norm.weight.shape[0]
        layer.q_proj.weight.data.zero_().view(layer.num_heads, size, -1)[:, 0, 0] = 1
        layer.k_proj.weight.data.zero_().view(layer.num_kv_heads, size, -1)[:, 0] = direction
        layer.q_norm.weight.data.fill_(strength)
    score = strength * math.sqrt(size)
    return 1 / (1 + (len(tokens) - 1) * math.exp(-2 * score))


@pytest.mark.parametrize(("tile", "row", "column"), [(1, 0, 1), (2, 1, 0)])
def test_a_model_that_looks_at_one_patch_is_seen_to(
    open_model: VisionLanguageModel,
    tiny_config: VLMConfig,
    processor: Processor,
    picture: Callable[..., Image.Image],
    tile: int,
    row: int,
    column: int,
) -> None:
    """32 x 32 px are four tiles of 2 x 2 patches of 8 px; a token's RMS norm has an epsilon."""
    prompt = prompt_of(processor, picture(3, 32, 32))
    inputs = stack_examples([prompt], pad_id=0)
    assert inputs.images is not None
    tokens = open_model.image_tokens(inputs.images).flatten(0, 1)
    target = tile * 5 + 1 + row * 2 + column  # a class token stands first
    expected = look_at(open_model, tokens, target, strength=0.6)
    weights = answer_attention(open_model, prompt, ANSWER)
    attention = image_attention(weights, [3], prompt.images, 0, tiny_config.vision)
    place = 2 * (tile // 2) + row, 2 * (tile % 2) + column
    assert 0.5 < expected < 0.95
    torch.testing.assert_close(
        attention.patches[:, *place], torch.full((4,), expected), rtol=1e-3, atol=0
    )
    drawn = Placement.of(32, 32, tiny_config.vision).on_picture(attention.patches[0], 32, 32)
    bright = np.argwhere((drawn == drawn.max()).numpy())
    assert bright.min(0).tolist() == [place[0] * 8, place[1] * 8]
    assert bright.max(0).tolist() == [place[0] * 8 + 7, place[1] * 8 + 7]


def test_padding_is_left_out() -> None:
    """40 x 30 px lie as 32 x 24 on two by two tiles: the last row of patches is padding."""
    placement = Placement.of(30, 40, VISION)
    assert (placement.canvas, placement.placed_px) == ((2, 2), (24, 32))
    rows = torch.arange(4).view(4, 1).expand(4, 4)
    drawn = placement.on_picture(rows, 30, 40)
    assert drawn[:, 0].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    boxes = placement.tile_boxes(30, 40)
    assert boxes == [(0, 0, 20, 20), (20, 0, 40, 20), (0, 20, 20, 30), (20, 20, 40, 30)]


def test_a_tile_of_padding_alone_has_no_box() -> None:
    placement = Placement((2, 1), (16, 16), 16, 8)
    assert placement.tile_boxes(8, 8) == [(0, 0, 8, 8), None]


@given(st.integers(1, 90), st.integers(1, 90))
def test_tiles_cover_the_picture_once(height_px: int, width_px: int) -> None:
    placement = Placement.of(height_px, width_px, VISION)
    boxes = [box for box in placement.tile_boxes(height_px, width_px) if box is not None]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    assert area == pytest.approx(height_px * width_px)


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (30, 90), (16, 16), (7, 9), (61, 83)])
def test_a_patch_lights_up_where_its_pixels_come_from(size: tuple[int, int]) -> None:
    """Painting what a patch is said to cover makes that patch the brightest of the cut picture."""
    height_px, width_px = size
    placement = Placement.of(height_px, width_px, VISION)
    rows, columns = (2 * tiles for tiles in placement.canvas)
    numbers = torch.arange(rows * columns).view(rows, columns)
    covered = placement.on_picture(numbers, height_px, width_px).numpy()
    assert set(np.unique(covered)) == {
        row * columns + column
        for row in range(math.ceil(placement.placed_px[0] / 8))
        for column in range(math.ceil(placement.placed_px[1] / 8))
    }
    for number in np.unique(covered):
        painted = Image.fromarray(np.where(covered == number, 255, 0).astype(np.uint8))
        tiled = tile_picture(painted.convert("RGB"), 16, 4)
        shape = (*placement.canvas, 16, 16)
        canvas = tiled.tiles[:, 0].float().view(shape).transpose(1, 2)
        means = canvas.reshape(rows, 8, columns, 8).mean((1, 3))
        assert int(means.argmax()) == number


def test_what_cannot_be_looked_at_is_refused(
    open_model: VisionLanguageModel, processor: Processor, picture: Callable[..., Image.Image]
) -> None:
    with pytest.raises(ValueError, match="no image"):
        answer_attention(open_model, prompt_of(processor), ANSWER)
    with pytest.raises(ValueError, match="no tokens"):
        answer_attention(open_model, prompt_of(processor, picture(1)), [])
