"""Transformer blocks of the vision encoder.

Axes: `T` tiles (of all images, one after the other), `N` tokens of a tile, `H` heads, `D` width.
Where padding tiles are attended to, the first two axes are images and all tokens of an image.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.arrangement import Arrangement, attend_in_groups
from encoders.config import VisionConfig

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        # https://github.com/openai/CLIP/blob/main/clip/model.py
        "quick_gelu": lambda hidden: hidden * torch.sigmoid(1.702 * hidden),
    }
)


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

    def forward(self, hidden: Tensor, tiles: Arrangement | None) -> Tensor:
        """Return (T, N, D); `tiles` says who attends to whom, None keeps to each tile."""
        query = self.q_proj(hidden).unflatten(-1, (self.num_heads, -1))  # (T, N, H, D/H)
        key = self.k_proj(hidden).unflatten(-1, (self.num_heads, -1))
        value = self.v_proj(hidden).unflatten(-1, (self.num_heads, -1))
        if tiles is None:
            attended = attend_in_groups(query, key, value, len(query))
        else:
            attended = tiles.attend(query, key, value)
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

    def forward(self, hidden: Tensor, tiles: Arrangement | None) -> Tensor:
        """Return (T, N, D); `tiles` as in `VisionAttention`."""
        branch = self.self_attn(self.input_layernorm(hidden), tiles)
        hidden = hidden + (self.gate_attn.tanh() * branch if self.gated else branch)
        branch = self.fc2(self.activation(self.fc1(self.post_attention_layernorm(hidden))))
        return hidden + (self.gate_ffn.tanh() * branch if self.gated else branch)
