"""A model of timm in place of the local layers: its face, and what it refuses."""

from typing import Any

import pytest
import torch

from encoders.config import VisionConfig
from encoders.vit import VisionEncoder
from vlm.config import VLMConfig


def test_a_towers_module_may_be_named_without_a_folder_and_must_have_the_said_shape() -> None:
    fields: dict[str, Any] = {
        **{"tile_size_px": 32, "patch_size_px": 8, "max_num_tiles": 4, "hidden_size": 16},
        **{"intermediate_size": 32, "num_heads": 2, "num_local_layers": 3, "num_global_layers": 1},
        **{"num_prefix_tokens": 5, "intermediate_layers": (3, 1)},
        "tower": {
            "name": "vit_small_patch14_reg4_dinov2",
            "arguments": {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2},
        },
    }
    encoder = VisionEncoder(VisionConfig.model_validate(fields)).requires_grad_(False)
    ones = torch.ones(2, dtype=torch.int64)
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = encoder(pixels, ones, ones)
    assert features.shape == (2, 21, 48)
    states = features[..., 16:].unflatten(-1, (16, 2))
    # Without a norm of its own, the state after the last layer becomes the final one by timm's.
    last = encoder.tower.trunk.norm(states[..., 0])
    bare = VisionConfig.model_validate({**fields, "num_global_layers": 0})
    alone = VisionEncoder(bare).requires_grad_(False)
    alone.tower.load_state_dict(encoder.tower.state_dict())
    torch.testing.assert_close(alone(pixels, ones, ones)[..., :16], last, rtol=0, atol=2e-5)
    wrong = VisionConfig.model_validate({**fields, "num_prefix_tokens": 1, "num_local_layers": 4})
    with pytest.raises(ValueError, match=r"num_local_layers is 4, needed: 3; num_prefix_tokens is"):
        VisionEncoder(wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_prefix_tokens": 2}, "without a tower there is one at most, the class token"),
        ({"tower": {"name": "x"}, "local_attention": "image"}, "needs local_attention 'tile'"),
        ({"tower": {"name": "x"}, "intermediate_layers": (0, 1)}, "take 0 out of intermediate_la"),
    ],
)
def test_what_an_encoder_cannot_be_is_refused(
    change: dict[str, Any], message: str, tiny_config: VLMConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        VisionConfig.model_validate({**tiny_config.vision.model_dump(), **change})
