"""The vision encoder against transformers' MllamaVisionModel, on images of different tile counts.

Both hold the same weights and get the same pixels. transformers computes `max_num_tiles` tiles for
every image and fills each tile's tokens up to a multiple of 8; with `attend` we compute the same,
with `drop` the tiles of the pictures alone.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, MllamaVisionConfig, MllamaVisionModel

from encoders.config import VisionConfig
from encoders.tiling import supported_canvases
from encoders.vit import VisionEncoder
from eval.speed.harness import Row, time_in_turn, time_row
from vlm.errors import UserError
from vlm.weights.mllama_names import mllama_name

PaddingTiles = Literal["drop", "attend"]

# Shapes by name. `small` is the 11B's encoder in miniature: four local layers to a global one, five
# intermediate states, four tiles, MLPs four times as wide. `tiny` is for tests.
SIZES: dict[str, dict[str, object]] = {
    "tiny": {
        "tile_size_px": 28,
        "patch_size_px": 14,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "num_local_layers": 2,
        "num_global_layers": 1,
        "intermediate_layers": (1,),
    },
    "small": {
        "tile_size_px": 224,
        "patch_size_px": 14,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_heads": 6,
        "num_local_layers": 8,
        "num_global_layers": 2,
        "intermediate_layers": (1, 2, 4, 6, 7),
    },
    "11b": {
        "tile_size_px": 560,
        "patch_size_px": 14,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_heads": 16,
        "num_local_layers": 32,
        "num_global_layers": 8,
        "intermediate_layers": (3, 7, 15, 23, 30),
    },
}
MAX_NUM_TILES = 4
# A token's features may differ by this share of their length. The sums run in another order, which
# costs a few roundings in each layer: 2^-24 each in float32, 2^-11 in float16, 2^-8 in bfloat16.
TOLERANCES = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 1e-1}
MASKED_PADDING = "vlmmasked_padding"


def parse_tile_mix(text: str) -> tuple[int, ...]:
    """Read "1,1,2,4": the tiles of each image.

    Raises:
        UserError: it is no list of counts that an image can have.
    """
    words = [word.strip() for word in text.split(",")]
    allowed = {str(count): count for count in range(1, MAX_NUM_TILES + 1)}
    if any(word not in allowed for word in words):
        raise UserError(
            f"--tile-mix is {text!r}, needed: the tiles of each image, 1 to {MAX_NUM_TILES}, "
            "separated by commas, as in 1,1,2,4"
        )
    return tuple(allowed[word] for word in words)


class Comparison:
    """Both encoders with the same weights, and a batch of images as each of them wants it."""

    def __init__(
        self,
        size: str,
        num_tiles: Sequence[int],
        padding_tiles: PaddingTiles,
        device: torch.device,
        dtype: str,
    ) -> None:
        self.padding_tiles, self.dtype = padding_tiles, dtype
        shape = {**SIZES[size], "max_num_tiles": MAX_NUM_TILES, "local_attention": "image"}
        config = VisionConfig.model_validate({**shape, "padding_tiles": padding_tiles})
        torch.manual_seed(0)
        self.ours = VisionEncoder(config).requires_grad_(False).eval()
        for name, parameter in self.ours.named_parameters():
            if "gate" in name.rpartition(".")[2]:  # a closed gate would hide what lies behind it
                nn.init.constant_(parameter, 0.5)
        self.peer: Any = transformers_twin(self.ours)  # its methods are not all annotated
        self.ours.to(device, getattr(torch, dtype))
        self.peer.to(device, getattr(torch, dtype))

        px = config.tile_size_px
        canvas_ids = [supported_canvases(MAX_NUM_TILES).index((1, n)) + 1 for n in num_tiles]
        tiles = torch.randint(0, 256, (sum(num_tiles), 3, px, px), dtype=torch.uint8)
        self.pixels = tiles.to(device)
        self.num_tiles = torch.tensor(num_tiles, device=device)
        self.aspect_ratio_ids = torch.tensor(canvas_ids, device=device)
        places = torch.arange(MAX_NUM_TILES, device=device)
        self.tile_mask = places < self.num_tiles.unsqueeze(1)  # (images, max_num_tiles)
        mean = torch.tensor(config.image_mean, device=device).view(3, 1, 1)
        std = torch.tensor(config.image_std, device=device).view(3, 1, 1)
        normalised = (self.pixels.float() / 255 - mean) / std
        self.padded_pixels = normalised.new_zeros(len(num_tiles), MAX_NUM_TILES, 3, px, px)
        self.padded_pixels[self.tile_mask] = normalised
        self.padded_pixels = self.padded_pixels.to(getattr(torch, dtype)).unsqueeze(1)

    def run_ours(self) -> Tensor:
        """Our features: (T, N, width)."""
        features: Tensor = self.ours(self.pixels, self.num_tiles, self.aspect_ratio_ids)
        return features

    def run_peer(self) -> Tensor:
        """The peer's features: (images, 1, max_num_tiles, N, width)."""
        features: Tensor = self.peer(
            self.padded_pixels, self.aspect_ratio_ids.unsqueeze(1), self.tile_mask.unsqueeze(1)
        ).last_hidden_state
        return features

    def check(self) -> str:
        """Say in one line how closely the answers agree.

        transformers lets the picture's tokens see those that fill the tiles and the canvas. `drop`
        has none, so it is compared with transformers after masking them there, which asks for the
        same weights in the same places; that masked model is not what is timed.

        Raises:
            RuntimeError: the answers differ.
        """
        masked = self.padding_tiles == "drop"
        if masked:
            AttentionInterface.register(MASKED_PADDING, masked_padding)
            self.peer.set_attn_implementation(MASKED_PADDING)
        theirs = self.run_peer()[:, 0][self.tile_mask].float()
        self.peer.set_attn_implementation("sdpa")
        apart = (self.run_ours().float() - theirs).norm(dim=-1) / theirs.norm(dim=-1)
        worst, allowed = apart.max().item(), TOLERANCES[self.dtype]
        peer = "transformers with its padding masked" if masked else "transformers"
        line = f"{self.padding_tiles}: a token differs from {peer} by at most {worst:.1e}"
        if not worst <= allowed:
            raise RuntimeError(f"the answers differ. {line} of its length, allowed: {allowed:.0e}")
        return f"{line} of its length (allowed: {allowed:.0e})"


def compare_with_transformers(
    size: str,
    num_tiles: Sequence[int],
    padding_tiles: PaddingTiles,
    device: torch.device,
    dtype: str,
    repeats: int,
) -> tuple[Row, str]:
    """Measure both encoders on a batch of images with `num_tiles` tiles each.

    Returns:
        the row, and a line that says how closely the answers agree.
    """
    with torch.inference_mode():
        comparison = Comparison(size, num_tiles, padding_tiles, device, dtype)
        agreement = comparison.check()
        seconds = time_in_turn(comparison.run_ours, comparison.run_peer, device, repeats)
    mix = ",".join(map(str, num_tiles))
    setting = f"{size} {mix} {padding_tiles} {dtype} {device.type}"
    return time_row("encode", setting, *seconds), agreement


def transformers_twin(ours: VisionEncoder) -> nn.Module:
    """Return transformers' encoder of the same shape, which holds copies of the same weights."""
    config = ours.config
    with torch.device("meta"):
        peer: Any = MllamaVisionModel(
            MllamaVisionConfig(
                image_size=config.tile_size_px,
                patch_size=config.patch_size_px,
                max_num_tiles=config.max_num_tiles,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                attention_heads=config.num_heads,
                num_hidden_layers=config.num_local_layers,
                num_global_layers=config.num_global_layers,
                # transformers names a state by the layer that it leaves, we by the one it enters
                intermediate_layers_indices=[i - 1 for i in config.intermediate_layers],
                vision_output_dim=config.output_size,
                norm_eps=config.norm_eps,
            )
        )
    state = {}
    for name, tensor in ours.state_dict().items():
        theirs = mllama_name(f"encoder.{name}")
        assert theirs is not None, name
        state[theirs.removeprefix("vision_model.")] = tensor.clone()
    peer.load_state_dict(state, assign=True)
    peer.set_attn_implementation("sdpa")
    twin: nn.Module = peer.requires_grad_(False).eval()
    return twin


def masked_padding(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention that no padding is seen by; the mask's diagonal is 0 for the picture's tokens."""
    real = attention_mask.diagonal(dim1=-2, dim2=-1) == 0  # (images, 1, tokens)
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=real.unsqueeze(-2), scale=scaling
    )
    return attended.transpose(1, 2).contiguous(), None
