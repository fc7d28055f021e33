"""Who attends to whom: tiles in groups, and padding as under Llama 3.2's mask."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from transformers.models.mllama.modeling_mllama import _prepare_aspect_ratio_attention_mask

from encoders.arrangement import PaddedImages, TileGroups, attend_in_groups
from encoders.config import VisionConfig
from vlm.config import VLMConfig

NUM_TILES = (2, 1, 4, 1, 3)
MAX_TILES, NUM_TOKENS, HEADS, SIZE = 4, 5, 2, 4
ALIGNED = 8  # 5 tokens and 3 for alignment


@pytest.fixture
def padded() -> PaddedImages:
    return PaddedImages(NUM_TILES, MAX_TILES, NUM_TOKENS, torch.device("cpu"))


def in_tile_order(hidden: Tensor) -> Tensor:
    """(images, L, ...) with all alignment tokens last to transformers' order, tile by tile."""
    split = MAX_TILES * NUM_TOKENS
    tokens = hidden[:, :split].unflatten(1, (MAX_TILES, NUM_TOKENS))
    alignment = hidden[:, split:].unflatten(1, (MAX_TILES, ALIGNED - NUM_TOKENS))
    return torch.cat([tokens, alignment], dim=2).flatten(1, 2)


def test_two_dense_calls_equal_attention_under_transformers_mask(padded: PaddedImages) -> None:
    shape = len(NUM_TILES), MAX_TILES * ALIGNED, HEADS, SIZE
    query, key, value = torch.randn(3, *shape).unbind(0)
    counts = torch.tensor(sorted(NUM_TILES)).unsqueeze(1)
    mask = _prepare_aspect_ratio_attention_mask(
        (torch.arange(MAX_TILES) < counts).long(), NUM_TOKENS, ALIGNED, torch.float32
    )
    expected = F.scaled_dot_product_attention(
        *(in_tile_order(tensor).transpose(1, 2) for tensor in (query, key, value)), mask
    )
    attended = in_tile_order(padded.attend(query, key, value)).transpose(1, 2)
    # The same sums of at most 32 weighted values of around 1, in another order.
    torch.testing.assert_close(attended, expected, rtol=0.0, atol=2e-6)


def test_tiles_come_out_as_they_went_in(padded: PaddedImages) -> None:
    tiles = torch.randn(sum(NUM_TILES), NUM_TOKENS, 3)
    hidden = padded.to_layers(padded.fill(tiles))
    assert hidden.shape == (len(NUM_TILES), MAX_TILES * ALIGNED, 3)
    assert torch.equal(padded.to_tiles(hidden), tiles)
    # Everything else is empty.
    assert hidden.count_nonzero() == tiles.count_nonzero()


def test_a_slots_vector_reaches_its_tokens_and_its_alignment_tokens(padded: PaddedImages) -> None:
    vectors = torch.randn(len(NUM_TILES) * MAX_TILES, 3)
    spread = in_tile_order(padded.spread(vectors)).unflatten(1, (MAX_TILES, ALIGNED))
    expected = vectors.view(len(NUM_TILES), MAX_TILES, 1, 3).expand_as(spread)
    assert torch.equal(spread, expected)


def test_padding_tiles_need_attention_over_the_image(tiny_config: VLMConfig) -> None:
    vision = {**tiny_config.vision.model_dump(), "padding_tiles": "attend"}
    with pytest.raises(ValidationError, match="needs local_attention 'image'"):
        VisionConfig.model_validate(vision)
    VisionConfig.model_validate({**vision, "local_attention": "image"})


@pytest.mark.parametrize("num_tiles", [(2, 1, 4, 1, 3), (1, 1, 2, 4), (3, 3), (2,)])
def test_groups_attend_within_each_image_and_keep_the_order(num_tiles: tuple[int, ...]) -> None:
    groups = TileGroups(num_tiles, torch.device("cpu"))
    tiles = torch.randn(sum(num_tiles), NUM_TOKENS, HEADS, SIZE)
    slots = groups.fill(tiles)
    assert torch.equal(groups.to_tiles(slots), tiles)
    attended = groups.to_tiles(groups.attend(slots, slots, slots))
    alone = [attend_in_groups(image, image, image, 1) for image in tiles.split(num_tiles)]
    # The same sums, of images by themselves.
    torch.testing.assert_close(attended, torch.cat(alone), rtol=0, atol=2e-6)
    places = [(image, tile) for image, n in enumerate(num_tiles) for tile in range(n)]
    held = torch.stack([groups.image_index, groups.tile_index], dim=1)
    assert [tuple(place) for place in groups.to_tiles(held).tolist()] == places
