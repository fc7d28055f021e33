"""Gated position embeddings of tiles and patches, as in Llama 3.2 Vision.

Axes: `T` tiles (of all images, one after the other), `N` tokens of a tile, `D` width.
Each tile is told where it lies by two integers: the `aspect_ratio_id` of its image's canvas
(1-based; row 0 of the tables stands for "no image" in Llama 3.2's checkpoints) and its index on
that canvas.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.config import VisionConfig
from encoders.tiling import supported_canvases

# A new encoder tells places apart from the first step on, and goes on to do so when the patches'
# content has grown: patch positions start larger than that content, and half open to the canvas.
# (Llama 3.2's gate started closed, on top of an encoder that knew single tiles.)
POSITION_STD = 2.0
START_GATE = 0.5


def num_aspect_ratio_rows(max_num_tiles: int) -> int:
    """Rows of an aspect-ratio table: the supported canvases and the row for "no image"."""
    return len(supported_canvases(max_num_tiles)) + 1


class TilePositionEmbedding(nn.Module):
    """Add a vector for the canvas and the tile's place on it, behind a tanh gate (0 at start)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.max_num_tiles = config.max_num_tiles
        rows = num_aspect_ratio_rows(config.max_num_tiles)
        self.embedding = nn.Embedding(rows, config.max_num_tiles * config.hidden_size)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, aspect_ratio_ids: Tensor, tile_index: Tensor) -> Tensor:
        """Return `hidden` (T, N, D) plus each tile's vector.

        Args:
            aspect_ratio_ids: (T,) int64, of the image that the tile belongs to.
            tile_index: (T,) int64, the tile's index on its canvas.
        """
        return hidden + self.offsets(aspect_ratio_ids, tile_index).unsqueeze(1)

    def offsets(self, aspect_ratio_ids: Tensor, tile_index: Tensor) -> Tensor:
        """Return each tile's vector, (T, D); arguments as above."""
        table = self.embedding.weight.view(-1, self.embedding.embedding_dim // self.max_num_tiles)
        # The backward pass of an embedding adds in one order, that of indexing in any.
        vectors = F.embedding(aspect_ratio_ids * self.max_num_tiles + tile_index, table)
        return self.gate.tanh() * vectors


class PatchPositionEmbedding(nn.Module):
    """Add a vector for the token's place in its tile, blended with one for its place on the canvas.

    With the gate at 0 every tile gets the same embeddings; opening it moves the weight to the table
    that knows the canvas.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.max_num_tiles = config.max_num_tiles
        rows = num_aspect_ratio_rows(config.max_num_tiles)
        width = config.hidden_size
        self.embedding = nn.Parameter(POSITION_STD * torch.randn(config.num_tokens, width))
        self.tile_embedding = nn.Embedding(rows, config.max_num_tiles * config.num_tokens * width)
        nn.init.normal_(self.tile_embedding.weight, std=POSITION_STD)
        self.gate = nn.Parameter(torch.full((1,), START_GATE))

    def forward(self, hidden: Tensor, aspect_ratio_ids: Tensor, tile_index: Tensor) -> Tensor:
        """Return `hidden` (T, N, D) plus each token's vector; arguments as above."""
        gate = self.gate.tanh()
        num_tokens, width = self.embedding.shape
        table = self.tile_embedding.weight.view(-1, num_tokens * width)
        on_canvas = F.embedding(aspect_ratio_ids * self.max_num_tiles + tile_index, table)
        hidden = hidden + (1 - gate) * self.embedding
        return hidden + gate * on_canvas.view(-1, num_tokens, width)  # (T, N, D)
