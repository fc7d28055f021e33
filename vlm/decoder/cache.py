"""Keys and values kept between decoding steps: preallocated for text, computed once for images.

Axes: `B` batch, `H` key/value heads, `P` text positions, `L` image tokens, `d` head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.decoder.config import DecoderConfig


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of one layer, each (B, H, tokens, d)."""

    keys: Tensor
    values: Tensor


class TextCache:
    """Keys and values of every self-attention layer for up to `max_tokens` positions a row.

    Rows may be at different positions: a token's keys are written at its own position, and a query
    sees the positions up to its own, so what padding wrote behind a row's end is overwritten
    before it can be seen.
    """

    def __init__(
        self,
        config: DecoderConfig,
        batch_size: int,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.max_tokens = max_tokens
        shape = (batch_size, config.num_kv_heads, max_tokens, config.head_size)
        self._layers = {
            layer: KeyValues(
                torch.zeros(shape, device=device, dtype=dtype),
                torch.zeros(shape, device=device, dtype=dtype),
            )
            for layer in range(config.num_layers)
            if layer not in config.cross_attention_layers
        }

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> KeyValues:
        """Store (B, S, H, d) keys and values at (B, S) positions; return the layer's cache."""
        stored = self._layers[layer]
        rows = torch.arange(len(positions), device=positions.device).unsqueeze(1)
        stored.keys[rows, :, positions] = keys.to(stored.keys.dtype)
        stored.values[rows, :, positions] = values.to(stored.values.dtype)
        return stored
