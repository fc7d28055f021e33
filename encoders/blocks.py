"""Transformer blocks of the vision encoder, and attention over ragged groups of tiles.

Axes: `T` tiles (of all images, one after the other), `N` tokens of a tile, `H` heads, `D` width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.config import VisionConfig

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        # https://github.com/openai/CLIP/blob/main/clip/model.py
        "quick_gelu": lambda hidden: hidden * torch.sigmoid(1.702 * hidden),
    }
)


class TileGroups:
    """Which tiles attend to each other: the images of a batch, grouped by their tile count.

    Images of equal count form one dense attention call, so no tile is padded, nothing is masked,
    and an image's result cannot depend on the others. There are at most `max_num_tiles` groups.
    """

    def __init__(self, num_tiles: Sequence[int], device: torch.device) -> None:
        """Args: num_tiles: tiles of each image, in the order of the flat tile axis."""
        starts: dict[int, list[int]] = {}
        start = 0
        for count in num_tiles:
            starts.setdefault(count, []).append(start)
            start += count
        # (images of this count, count) int64 indices into the flat tile axis
        self.members = [
            torch.tensor(first, device=device).unsqueeze(1) + torch.arange(count, device=device)
            for count, first in sorted(starts.items())
        ]
        self.single_group = len(self.members) == 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scaled dot-product attention within each image; all tensors (T, N, H, D/H)."""
        if self.single_group:
            return _attend_group(query, key, value, len(self.members[0]))
        output = torch.empty_like(query)
        for members in self.members:
            rows = members.flatten()
            group = _attend_group(query[rows], key[rows], value[rows], len(members))
            output = output.index_copy(0, rows, group)
        return output


class VisionAttention(nn.Module):
    """Bidirectional multi-head self-attention."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.o_proj = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor, groups: TileGroups | None) -> Tensor:
        """Return (T, N, D); `groups` None keeps attention within each tile."""
        query = self.q_proj(hidden).unflatten(-1, (self.num_heads, -1))  # (T, N, H, D/H)
        key = self.k_proj(hidden).unflatten(-1, (self.num_heads, -1))
        value = self.v_proj(hidden).unflatten(-1, (self.num_heads, -1))
        if groups is None:
            attended = _attend_group(query, key, value, len(query))
        else:
            attended = groups.attend(query, key, value)
        return self.o_proj(attended.flatten(2))


class VisionBlock(nn.Module):
    """Pre-norm transformer block; `gated` scales both residual branches by tanh gates.

    The gates start at pi/4, as in Llama 3.2 Vision.
    """

    def __init__(self, config: VisionConfig, gated: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = VisionAttention(config)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.input_layernorm = nn.LayerNorm(width, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=config.norm_eps)
        self.activation = ACTIVATIONS[config.activation]
        self.gated = gated
        if gated:
            self.gate_attn = nn.Parameter(torch.full((1,), math.pi / 4))
            self.gate_ffn = nn.Parameter(torch.full((1,), math.pi / 4))

    def forward(self, hidden: Tensor, groups: TileGroups | None) -> Tensor:
        """Return (T, N, D); `groups` as in `VisionAttention`."""
        branch = self.self_attn(self.input_layernorm(hidden), groups)
        hidden = hidden + (self.gate_attn.tanh() * branch if self.gated else branch)
        branch = self.fc2(self.activation(self.fc1(self.post_attention_layernorm(hidden))))
        return hidden + (self.gate_ffn.tanh() * branch if self.gated else branch)


def _attend_group(query: Tensor, key: Tensor, value: Tensor, num_groups: int) -> Tensor:
    """Attend within `num_groups` equal runs of the tile axis; (T, N, H, d) in and out."""

    def heads_first(tensor: Tensor) -> Tensor:
        return tensor.reshape(num_groups, -1, *tensor.shape[2:]).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        heads_first(query), heads_first(key), heads_first(value)
    )  # (groups, H, tokens, d)
    return attended.transpose(1, 2).reshape(query.shape)
