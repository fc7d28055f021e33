"""Rows become a batch: padding on the right, every image object once, in its row's order."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from encoders.tiling import TiledImage, tile_picture
from vlm.inputs import EncodedImage, Example, stack_examples, stack_images

PAD = 9


@pytest.fixture
def images(picture: Callable[..., Image.Image]) -> list[TiledImage]:
    """Of 1, 2 and 4 tiles."""
    sizes = [(16, 16), (32, 16), (32, 32)]
    return [tile_picture(picture(seed, *size), 16, 4) for seed, size in enumerate(sizes)]


def example(num_tokens: int, *images: TiledImage) -> Example:
    input_ids = torch.arange(1, num_tokens + 1)
    return Example(input_ids, torch.zeros(num_tokens, dtype=torch.bool), images)


def test_rows_are_padded_on_the_right(images: list[TiledImage]) -> None:
    inputs = stack_examples([example(2, images[0]), example(4), example(1)], PAD)
    assert inputs.input_ids.tolist() == [[1, 2, PAD, PAD], [1, 2, 3, 4], [1, PAD, PAD, PAD]]
    assert inputs.lengths.tolist() == [2, 4, 1]
    assert inputs.images is not None and inputs.images.num_images.tolist() == [1, 0, 0]


def test_tiles_are_joined_without_padding(images: list[TiledImage]) -> None:
    stacked = stack_images([[images[2], images[0]], [], [images[1]]])
    assert stacked is not None
    expected = torch.cat([images[2].tiles, images[0].tiles, images[1].tiles])
    assert torch.equal(stacked.pixels, expected)
    assert stacked.num_tiles.tolist() == [4, 1, 2]
    assert stacked.aspect_ratio_ids.tolist() == [6, 1, 2]
    assert stacked.num_images.tolist() == [2, 0, 1]
    assert stacked.image_index.tolist() == [0, 1, 2]


def test_an_image_that_several_rows_show_stands_there_once(images: list[TiledImage]) -> None:
    one, two, _ = images
    stacked = stack_images([[one], [two, one], [two]])
    assert stacked is not None
    assert torch.equal(stacked.pixels, torch.cat([one.tiles, two.tiles]))
    assert stacked.num_images.tolist() == [1, 2, 1]
    assert stacked.image_index.tolist() == [0, 1, 0, 1]


def test_without_images_there_are_no_image_inputs() -> None:
    assert stack_images([[], []]) is None
    inputs = stack_examples([example(2), example(3)], PAD)
    assert inputs.images is None
    assert inputs.to(torch.device("meta")).images is None


def test_a_moved_batch_moves_every_tensor(images: list[TiledImage]) -> None:
    inputs = stack_examples([example(2, *images)], PAD)
    moved = inputs.to(torch.device("meta"))
    assert moved.images is not None
    fields = vars(moved.images)
    assert fields.pop("features") is None
    tensors = [moved.input_ids, moved.lengths, *fields.values()]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 7


def test_encoded_images_are_stacked_and_moved_in_place_of_pixels(images: list[TiledImage]) -> None:
    encoded = [EncodedImage(torch.rand(image.num_tiles, 5, 8), 1) for image in images]
    stacked = stack_images([encoded[:2], [encoded[0]]])
    assert stacked is not None and stacked.pixels is None and stacked.features is not None
    assert torch.equal(stacked.features, torch.cat([image.features for image in encoded[:2]]))
    assert stacked.num_tiles.tolist() == [image.num_tiles for image in images[:2]]
    assert stacked.image_index.tolist() == [0, 1, 0]
    moved = stacked.to(torch.device("meta"))
    assert moved.features is not None and moved.features.device.type == "meta"
    with pytest.raises(ValueError, match="not both"):
        stack_images([[images[0], encoded[0]]])
