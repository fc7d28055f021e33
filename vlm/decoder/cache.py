"""Keys and values kept between calls of the decoder: preallocated for text, made once for images.

Axes: `B` rows of a call, `S` their new tokens, `H` key/value heads, `P` text positions, `L` image
tokens, `d` head width.
"""

from collections.abc import Mapping
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
    """Keys and values of every self-attention layer for up to `max_tokens` positions a slot.

    Slots may be at different positions: a token's keys are written at its own position, and a query
    sees the positions up to its own, so what padding wrote behind a row's end is overwritten before
    it can be seen. There is one more position than can be read, for rows that write nothing that
    matters.

    layers: of each layer the keys and then the values, (2, slots, H, positions, d).
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_slots: int,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.max_tokens = max_tokens
        # Heads before positions: reading all of a head is what every step does.
        shape = (2, num_slots, config.num_kv_heads, max_tokens + 1, config.head_size)
        self.layers = {
            layer: torch.zeros(shape, device=device, dtype=dtype)
            for layer in range(config.num_layers)
            if layer not in config.cross_attention_layers
        }

    def rows(self, first: int, end: int, num_tokens: int, at_end: bool = False) -> "CacheRows":
        """Consecutive slots whose queries see at most the first `num_tokens` positions.

        Args:
            at_end: there is one slot, and its new tokens are the last of these positions.
        """
        slots = torch.arange(first, end, device=next(iter(self.layers.values())).device)
        return CacheRows(self, slots, num_tokens, at_end, slice(first, end))

    def chosen(self, slots: Tensor, num_tokens: int | None) -> "CacheRows":
        """Any slots (B,) int64; with None for `num_tokens`, rows that start at position 0."""
        return CacheRows(self, slots, num_tokens)


class CacheRows:
    """The slots that one call of the decoder writes to and reads from, one for each of its rows.

    Args:
        num_tokens: the positions that queries may see; None where every row starts at position 0,
            so that what a call writes is all that it reads.
        at_end: there is one slot, and its new tokens are the last of these positions: then they are
            written as a piece, and a single one needs no mask.
        consecutive: the slots as a slice if they lie side by side: then they are read in place.
    """

    def __init__(
        self,
        cache: TextCache,
        slots: Tensor,
        num_tokens: int | None,
        at_end: bool = False,
        consecutive: slice | None = None,
    ) -> None:
        self.cache, self.num_tokens, self.at_end = cache, num_tokens, at_end
        self._slots = slots
        self._rows = slots.unsqueeze(1)  # (B, 1)
        self._consecutive = consecutive

    def mask(self, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores of new tokens at positions (B, S): 0 or -inf.

        Returns:
            (B, 1, S, num_tokens); None where attention is causal over the rows given, or where a
            single token sees every position.
        """
        if self.num_tokens is None or (self.at_end and positions.shape[1] == 1):
            return None
        seen = torch.arange(self.num_tokens, device=positions.device) <= positions.unsqueeze(-1)
        mask = torch.zeros(seen.shape, dtype=dtype, device=positions.device)
        return mask.masked_fill_(~seen, -torch.inf).unsqueeze(1)

    def write(self, layer: int, positions: Tensor, keys: Tensor, values: Tensor) -> KeyValues:
        """Store (B, S, H, d) keys and values at (B, S) positions; return what queries may see."""
        stored_keys, stored_values = self.cache.layers[layer]
        if self.at_end:
            assert self.num_tokens is not None and self._consecutive is not None
            row, start = self._consecutive.start, self.num_tokens - keys.shape[1]
            stored_keys[row, :, start : self.num_tokens] = keys[0].transpose(0, 1)
            stored_values[row, :, start : self.num_tokens] = values[0].transpose(0, 1)
        else:
            stored_keys[self._rows, :, positions] = keys.to(stored_keys.dtype)
            stored_values[self._rows, :, positions] = values.to(stored_values.dtype)
        if self.num_tokens is None:
            return KeyValues(keys.transpose(1, 2), values.transpose(1, 2))
        rows = self._slots if self._consecutive is None else self._consecutive
        seen = slice(self.num_tokens)
        return KeyValues(stored_keys[rows, :, seen], stored_values[rows, :, seen])


@dataclass(frozen=True)
class ImageGroup:
    """Rows of a call that see the same images.

    layers: keys and values (1, H, L, d) of each cross-attention layer.
    mask: (rows, S, L) bool, which image tokens each text token sees; None: all of them.
    """

    num_rows: int
    layers: Mapping[int, KeyValues]
    mask: Tensor | None


@dataclass(frozen=True)
class GroupedKeyValues:
    """What one cross-attention layer reads of `KeptImages`."""

    images: "KeptImages"
    layer: int

    @property
    def sees(self) -> Tensor | None:
        """(B, S, 1) bool, which tokens of those rows see an image; None: all of them."""
        return self.images.sees

    def rows(self, hidden: Tensor) -> Tensor:
        """The rows (B, S, D) that see images, group by group."""
        return hidden if self.images.rows is None else hidden[self.images.rows]

    def replace(self, hidden: Tensor, seeing: Tensor) -> Tensor:
        """All rows (B, S, D), those that see images being replaced."""
        if self.images.rows is None:
            return seeing
        return hidden.index_copy(0, self.images.rows, seeing)


@dataclass(frozen=True)
class KeptImages:
    """What rows see of images whose keys and values were made before.

    Rows that see the same images are a group and share them; nothing is copied.

    rows: int64, the rows of the groups, one group after the other; None where these are all the
        rows in their order. A row of no group sees nothing.
    sees: (B, S, 1) bool, which tokens of those rows see an image; None: all of them.
    """

    groups: tuple[ImageGroup, ...]
    rows: Tensor | None
    sees: Tensor | None
    mask: None = None  # each group has its own

    def of_layer(self, layer: int) -> GroupedKeyValues:
        """What the cross-attention layer of this index reads."""
        return GroupedKeyValues(self, layer)
