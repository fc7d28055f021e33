"""Self-attention over text and cross-attention to image tokens, both grouped-query.

Through SDPA, or flex_attention where a mask comes in blocks.

Axes: `B` batch, `S` text length, `L` image tokens of a row, `H` heads, `d` head width, `D` width.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.decoder.cache import CacheRows, GroupedKeyValues, KeyValues
from vlm.decoder.config import DecoderConfig
from vlm.decoder.documents import attend_in_blocks
from vlm.decoder.layers import RMSNorm
from vlm.decoder.rope import rotate

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


class SelfAttention(nn.Module):
    """Causal grouped-query self-attention with rotary positions.

    With `qk_norm`, queries and keys are RMS-normalised before they are rotated.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        size, kv_size = _projected_sizes(config)
        bias = config.attention_bias is not None
        self.q_proj = nn.Linear(config.hidden_size, size, bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias)
        self.o_proj = nn.Linear(size, config.hidden_size, config.attention_bias == "qkvo")
        self.q_norm = _head_norm(config) if config.qk_norm else nn.Identity()
        self.k_norm = _head_norm(config) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        mask: "Tensor | BlockMask | None",
        cache: CacheRows | None,
    ) -> Tensor:
        """Return (B, S, D).

        Args:
            rotary: cosines and sines (B, S, 1, d) of `positions` (B, S).
            mask: (B, 1, S, P) over the cache's positions, added to the scores; without a cache, who
                may attend to whom in rows of several documents, (B, 1, S, S) bool or in blocks;
                None where attention is causal over the rows given, or a single token sees all.
        """
        query = self.q_norm(self.q_proj(hidden).unflatten(-1, (self.num_heads, -1)))
        key = self.k_norm(self.k_proj(hidden).unflatten(-1, (self.num_kv_heads, -1)))
        query, key = rotate(query, rotary), rotate(key, rotary)  # (B, S, H, d)
        value = self.v_proj(hidden).unflatten(-1, (self.num_kv_heads, -1))
        if cache is None:
            stored = KeyValues(key.transpose(1, 2), value.transpose(1, 2))
        else:
            stored = cache.write(self.layer, positions, key, value)
        is_causal = mask is None and query.shape[1] > 1
        return self.o_proj(_attend(query, stored, mask, is_causal))


class CrossAttention(nn.Module):
    """Grouped-query attention from text to image tokens, queries and keys RMS-normalised."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        size, kv_size = _projected_sizes(config)
        self.q_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(size, config.hidden_size, bias=False)
        self.q_norm = _head_norm(config)
        self.k_norm = _head_norm(config)

    def project_images(self, image_tokens: Tensor) -> KeyValues:
        """Return the keys and values (B, H, L, d) of image tokens (B, L, D)."""
        key = self.k_norm(self.k_proj(image_tokens).unflatten(-1, (self.num_kv_heads, -1)))
        value = self.v_proj(image_tokens).unflatten(-1, (self.num_kv_heads, -1))
        return KeyValues(key.transpose(1, 2), value.transpose(1, 2))

    def forward(
        self, hidden: Tensor, images: KeyValues | GroupedKeyValues, mask: Tensor | None
    ) -> Tensor:
        """Return (B, S, D); `mask` (B, 1, S, L) bool. Rows that see nothing attend to zeros.

        Rows of groups come group by group, and each group has its own mask.
        """
        query = self.q_norm(self.q_proj(hidden).unflatten(-1, (self.num_heads, -1)))
        if isinstance(images, KeyValues):
            return self.o_proj(_attend(query, images, mask, is_causal=False))
        return self.o_proj(_attend_in_groups(query, images))


def _projected_sizes(config: DecoderConfig) -> tuple[int, int]:
    """Widths of all query heads and of all key (or value) heads together."""
    return config.num_heads * config.head_size, config.num_kv_heads * config.head_size


def _head_norm(config: DecoderConfig) -> RMSNorm:
    return RMSNorm(config.head_size, config.norm_eps)


def _attend(
    query: Tensor, stored: KeyValues, mask: "Tensor | BlockMask | None", is_causal: bool
) -> Tensor:
    """Return (B, S, H * d) from queries (B, S, H, d)."""
    if query.shape[1] == 1 and not is_causal and isinstance(mask, Tensor | None):
        return _attend_one(query, stored, mask)
    if mask is not None and not isinstance(mask, Tensor):
        attended = attend_in_blocks(query.transpose(1, 2), stored.keys, stored.values, mask)
        return attended.transpose(1, 2).flatten(2)
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        stored.keys,
        stored.values,
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=query.shape[2] != stored.keys.shape[1],
    )  # (B, H, S, d)
    return attended.transpose(1, 2).flatten(2)


def _attend_one(query: Tensor, stored: KeyValues, mask: Tensor | None) -> Tensor:
    """`_attend` of a single token a row.

    The heads that share keys and values are taken for tokens that do, so that none is repeated.
    """
    num_rows, _, _, size = query.shape
    shared = query.view(num_rows, stored.keys.shape[1], -1, size)  # (B, key heads, sharers, d)
    attended = F.scaled_dot_product_attention(shared, stored.keys, stored.values, attn_mask=mask)
    return attended.flatten(1).unsqueeze(1)


def _attend_in_groups(query: Tensor, images: GroupedKeyValues) -> Tensor:
    """Return (B, S, H * d) of queries (B, S, H, d) that come group by group."""
    attended, first = [], 0
    for group in images.images.groups:
        rows = query[first : first + group.num_rows]
        first += group.num_rows
        stored = group.layers[images.layer]
        if group.mask is None and query.shape[1] == 1:
            # Several rows of one token see the same: as tokens of one row they share a product.
            attended.append(_attend(rows.transpose(0, 1), stored, None, False).transpose(0, 1))
            continue
        expanded = KeyValues(
            stored.keys.expand(group.num_rows, -1, -1, -1),
            stored.values.expand(group.num_rows, -1, -1, -1),
        )
        mask = None if group.mask is None else group.mask.unsqueeze(1)
        attended.append(_attend(rows, expanded, mask, is_causal=False))
    return attended[0] if len(attended) == 1 else torch.cat(attended)
