"""The vision encoder: who influences whom, and what stands where in its output."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from torch import Tensor

from encoders.config import VisionConfig
from encoders.tiling import TiledImage, tile_picture
from encoders.vit import VisionEncoder
from vlm.config import VLMConfig

# Batches of other sizes go through other matrix kernels, which add in another order: float32
# rounding over a few layers whose values are around 1.
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}
# Sizes whose canvases are 1x1, 1x2, 2x2, 3x1 and once more 1x2.
SIZES_PX = ((16, 16), (32, 16), (32, 32), (16, 48), (30, 14))


@pytest.fixture
def config(tiny_config: VLMConfig) -> VisionConfig:
    return tiny_config.vision


@pytest.fixture
def images(picture: Callable[..., Image.Image]) -> list[TiledImage]:
    sizes = enumerate(SIZES_PX)
    return [tile_picture(picture(seed, *size), 16, 4) for seed, size in sizes]


def make_encoder(config: VisionConfig, **changes: object) -> VisionEncoder:
    """Random weights with open position gates, so that canvas and tile index matter."""
    torch.manual_seed(0)
    encoder = VisionEncoder(VisionConfig.model_validate({**config.model_dump(), **changes}))
    for name, parameter in encoder.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(parameter)
    return encoder.requires_grad_(False)


def encode(encoder: VisionEncoder, images: list[TiledImage]) -> list[Tensor]:
    """The features of each image, (its tiles, N, output_size)."""
    num_tiles = [len(image.tiles) for image in images]
    features = encoder(
        torch.cat([image.tiles for image in images]),
        torch.tensor(num_tiles),
        torch.tensor([image.aspect_ratio_id for image in images]),
    )
    return list(features.split(num_tiles))


@pytest.mark.parametrize(
    ("local_attention", "padding_tiles"),
    [("tile", "drop"), ("image", "drop"), ("image", "attend")],
)
def test_an_images_features_do_not_depend_on_the_other_images(
    config: VisionConfig, images: list[TiledImage], local_attention: str, padding_tiles: str
) -> None:
    encoder = make_encoder(config, local_attention=local_attention, padding_tiles=padding_tiles)
    together = encode(encoder, images)
    backwards = encode(encoder, images[::-1])[::-1]
    for image, features, other in zip(images, together, backwards, strict=True):
        alone = encode(encoder, [image])[0]
        assert alone.shape == (len(image.tiles), config.num_tokens, config.output_size)
        torch.testing.assert_close(features, alone, **TOLERANCE)
        torch.testing.assert_close(other, alone, **TOLERANCE)


def test_padding_tiles_change_the_features(config: VisionConfig, images: list[TiledImage]) -> None:
    dropping = make_encoder(config, local_attention="image")
    attending = make_encoder(config, local_attention="image", padding_tiles="attend")
    for image in images:
        moved = encode(dropping, [image])[0] - encode(attending, [image])[0]
        # Alignment tokens are there in full images too, fewer and weaker.
        assert moved.abs().amax() > (0.1 if len(image.tiles) < 4 else 1e-3)


@pytest.mark.parametrize("local_attention", ["tile", "image"])
def test_local_layers_see_the_tile_or_the_image_and_global_layers_the_image(
    config: VisionConfig, images: list[TiledImage], local_attention: str
) -> None:
    encoder = make_encoder(config, local_attention=local_attention)
    pair = images[1]
    changed = TiledImage(pair.tiles.clone(), pair.aspect_ratio_id, pair.canvas)
    changed.tiles[1] = 255 - changed.tiles[1]
    width = config.hidden_size
    before, after = encode(encoder, [pair])[0][0], encode(encoder, [changed])[0][0]
    assert not torch.equal(before[:, :width], after[:, :width])
    local_states_equal = torch.equal(before[:, width:], after[:, width:])
    assert local_states_equal == (local_attention == "tile")


def test_without_global_layers_a_tile_is_encoded_alone(
    config: VisionConfig, images: list[TiledImage]
) -> None:
    encoder = make_encoder(config, num_global_layers=0)
    image = images[2]
    changed = TiledImage(image.tiles.clone(), image.aspect_ratio_id, image.canvas)
    changed.tiles[3] = 0
    before, after = encode(encoder, [image])[0], encode(encoder, [changed])[0]
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


def test_the_output_is_the_final_state_and_the_entering_states_interleaved(
    config: VisionConfig, images: list[TiledImage]
) -> None:
    encoder = make_encoder(config, intermediate_layers=(3, 0))
    states: dict[int, Tensor] = {}
    final: list[Tensor] = []
    for index, layer in enumerate(encoder.local_layers):
        layer.register_forward_pre_hook(
            lambda _, arguments, index=index: states.__setitem__(index, arguments[0])
        )
    encoder.layernorm_post.register_forward_pre_hook(
        lambda _, arguments: states.__setitem__(3, arguments[0])
    )
    encoder.global_layers[-1].register_forward_hook(lambda *call: final.append(call[2]))
    # Sorted by tile count, as the layers have them.
    features = torch.cat(encode(encoder, sorted(images, key=lambda image: len(image.tiles))))
    width = config.hidden_size
    assert torch.equal(features[..., :width], final[0])
    interleaved = features[..., width:].unflatten(-1, (width, 2))
    # Index 3 is the state after the last of three local layers.
    assert torch.equal(interleaved[..., 0], states[3])
    assert torch.equal(interleaved[..., 1], states[0])


def test_without_intermediate_layers_the_output_is_the_final_state(
    config: VisionConfig, images: list[TiledImage]
) -> None:
    width = config.hidden_size
    with_states = torch.cat(encode(make_encoder(config), images))
    final = torch.cat(encode(make_encoder(config, intermediate_layers=()), images))
    assert torch.equal(final, with_states[..., :width])


def test_the_same_picture_on_another_canvas_has_other_features(
    config: VisionConfig, images: list[TiledImage]
) -> None:
    encoder = make_encoder(config)
    wide = images[1]
    tall = TiledImage(wide.tiles, 5, (2, 1))
    assert not torch.allclose(encode(encoder, [wide])[0], encode(encoder, [tall])[0], atol=1e-2)


def test_pixels_are_normalised_by_the_configured_statistics(config: VisionConfig) -> None:
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)
    encoder = make_encoder(config, image_mean=mean, image_std=std)
    seen: list[Tensor] = []
    encoder.patch_embedding.register_forward_pre_hook(lambda _, call: seen.append(call[0]))
    image = TiledImage(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8), 1, (1, 1))
    encode(encoder, [image])
    expected = torch.tensor([1.0, 3.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    torch.testing.assert_close(seen[0], expected)


def test_every_parameter_of_an_open_encoder_learns(
    config: VisionConfig, images: list[TiledImage]
) -> None:
    encoder = make_encoder(config, intermediate_layers=(1,)).requires_grad_(True)
    torch.cat(encode(encoder, images)).pow(2).sum().backward()
    idle = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
