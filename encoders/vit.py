"""The tiled vision encoder: local layers within a tile, gated global layers over an image.

Axes: `T` tiles (of all images, one after the other), `N` tokens of a tile (class token, if there
is one, then patches row by row), `D` width. Architecture: Llama 3.2 Vision
(https://arxiv.org/abs/2407.21783, section 7.2). `encoders.arrangement` says where tiles stand and
whether there are empty ones.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from encoders.arrangement import Arrangement, PaddedImages, TileGroups
from encoders.blocks import VisionBlock
from encoders.config import VisionConfig
from encoders.positions import PatchPositionEmbedding, TilePositionEmbedding
from encoders.towers import TimmTower


class VisionEncoder(nn.Module):
    """Turn the tiles of any number of images into token features."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        if config.tower is not None:
            self.tower = TimmTower(config)
        else:
            self._make_embeddings(config)
        self.post_tile_embedding = TilePositionEmbedding(config)
        self.local_layers = nn.ModuleList(
            VisionBlock(config, gated=False)
            for _ in range(config.num_local_layers if config.tower is None else 0)
        )
        self.global_layers = nn.ModuleList(
            VisionBlock(config, gated=True) for _ in range(config.num_global_layers)
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw every weight matrix anew, preserving variance; tile gates stay closed.

        A tower keeps what its library drew.
        """
        own = [module for name, module in self.named_modules() if not name.startswith("tower")]
        for module in own:
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, TilePositionEmbedding):
                nn.init.normal_(module.embedding.weight, std=0.02)
        # Residual branches start small so that depth does not scale the stream up (GPT-2, 2.3).
        depth = len(self.local_layers) + len(self.global_layers)
        for block in [*self.local_layers, *self.global_layers]:
            block.self_attn.o_proj.weight.data.div_(math.sqrt(2 * depth))
            block.fc2.weight.data.div_(math.sqrt(2 * depth))

    def forward(self, pixels: Tensor, num_tiles: Tensor, aspect_ratio_ids: Tensor) -> Tensor:
        """Encode all tiles of a batch of images.

        Args:
            pixels: (T, 3, tile_size_px, tile_size_px) uint8; or floating, of the same range, where
                their gradient is wanted.
            num_tiles: (images,) int64, tiles of each image; sums to T.
            aspect_ratio_ids: (images,) int64, 1-based ids of the images' canvases.
        Returns:
            (T, N, output_size): the final state, then each intermediate state interleaved
            channel by channel, the layout of Llama 3.2's checkpoints.
        """
        tiles = self._arrange(num_tiles.tolist(), pixels.device)
        canvas, place = aspect_ratio_ids[tiles.image_index], tiles.tile_index  # (slots,)

        if self.config.tower is not None:
            hidden, states = self.tower(self._normalise(pixels), self.config.intermediate_layers)
        else:
            hidden, states = self._local_states(pixels, tiles, canvas, place)
        hidden = hidden + tiles.spread(self.post_tile_embedding.offsets(canvas, place))
        for layer in self.global_layers:
            hidden = layer(hidden, tiles)

        final = tiles.to_tiles(hidden)  # (T, N, D)
        if not states:
            return final
        chosen = [states[index] for index in self.config.intermediate_layers]
        interleaved = torch.stack(chosen, dim=-1).flatten(2)
        return torch.cat([final, interleaved], dim=-1)  # (T, N, output_size)

    def _local_states(
        self, pixels: Tensor, tiles: Arrangement, canvas: Tensor, place: Tensor
    ) -> tuple[Tensor, Mapping[int, Tensor]]:
        """Return the normalised state after the local layers, and states that enter them (T, N, D).

        Args:
            canvas, place: (slots,) int64, aspect-ratio id and tile index of each slot.
        """
        patches = self.patch_embedding(self._normalise(pixels)).flatten(2).transpose(1, 2)
        hidden = self.pre_tile_embedding(tiles.fill(patches), canvas, place)  # (slots, patches, D)
        if self.config.num_prefix_tokens:
            class_token = self.class_embedding.expand(len(hidden), 1, -1)
            hidden = torch.cat([class_token.to(hidden.dtype), hidden], dim=1)  # (slots, N, D)
        hidden = self.patch_position_embedding(hidden, canvas, place)
        hidden = tiles.to_layers(self.layernorm_pre(hidden))

        chosen = self.config.intermediate_layers
        seen = tiles if self.config.local_attention == "image" else None
        states: dict[int, Tensor] = {}
        for index, layer in enumerate(self.local_layers):
            if index in chosen:
                states[index] = tiles.to_tiles(hidden)
            hidden = layer(hidden, seen)
        if len(self.local_layers) in chosen:
            states[len(self.local_layers)] = tiles.to_tiles(hidden)
        return self.layernorm_post(hidden), states

    def _make_embeddings(self, config: VisionConfig) -> None:
        """Make what stands before and after our own local layers."""
        width, patch = config.hidden_size, config.patch_size_px
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=config.patch_bias)
        if config.num_prefix_tokens:
            self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.pre_tile_embedding = TilePositionEmbedding(config)
        self.patch_position_embedding = PatchPositionEmbedding(config)
        self.layernorm_pre: nn.Module = nn.Identity()
        if config.pre_norm:
            self.layernorm_pre = nn.LayerNorm(width, eps=config.outer_norm_eps)
        self.layernorm_post = nn.LayerNorm(width, eps=config.outer_norm_eps)

    def _arrange(self, num_tiles: Sequence[int], device: torch.device) -> Arrangement:
        if self.config.padding_tiles == "drop":
            return TileGroups(num_tiles, device)
        return PaddedImages(num_tiles, self.config.max_num_tiles, self.config.num_tokens, device)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (0..255) to the weights' dtype, normalised by the configured statistics."""
        mean = torch.tensor(self.config.image_mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.config.image_std, device=pixels.device).view(3, 1, 1)
        return ((pixels.float() / 255 - mean) / std).to(self.post_tile_embedding.gate.dtype)
