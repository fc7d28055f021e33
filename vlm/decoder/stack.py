"""The decoder stack: Llama blocks, every fifth a gated cross-attention block.

Axes: `B` batch, `S` text length, `L` image tokens of a row, `D` width. Layers are numbered in the
full stack. Architecture: https://arxiv.org/abs/2407.21783, sections 3.2 and 7.3.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.decoder.attention import CrossAttention, SelfAttention
from vlm.decoder.cache import CacheRows, GroupedKeyValues, KeptImages, KeyValues
from vlm.decoder.config import DecoderConfig
from vlm.decoder.layers import RMSNorm, SwiGLU
from vlm.decoder.rope import rotary_table

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class ImageContext:
    """What a batch of text rows sees of its images.

    tokens: (B, L, D) projected image tokens, or their keys and values per cross-attention layer.
    mask: (B, S, L) bool, which image tokens each text token sees.
    """

    tokens: Tensor | dict[int, KeyValues]
    mask: Tensor

    def of_layer(self, layer: int) -> Tensor | KeyValues:
        """What the cross-attention layer of this index reads."""
        return self.tokens if isinstance(self.tokens, Tensor) else self.tokens[layer]


class SelfAttentionBlock(nn.Module):
    """Pre-norm Llama block."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, layer)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        positions: Tensor,
        mask: "Tensor | BlockMask | None",
        cache: CacheRows | None,
    ) -> Tensor:
        """Return (B, S, D); arguments as in `SelfAttention`."""
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn(normed, rotary, positions, mask, cache)
        fed: Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + fed


class CrossAttentionBlock(nn.Module):
    """Cross-attention and MLP, each behind a tanh gate that starts closed.

    A text token that sees no image passes through unchanged: neither branch reaches it.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.cross_attn = CrossAttention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn_gate = nn.Parameter(torch.zeros(1))
        self.mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, hidden: Tensor, images: Tensor | KeyValues | GroupedKeyValues, mask: Tensor | None
    ) -> Tensor:
        """Return (B, S, D).

        Args:
            images: image tokens (B, L, D), or the keys and values made of them.
            mask: (B, S, L) bool; None with groups, which have their own.
        """
        if isinstance(images, GroupedKeyValues):
            seeing = self._read(images.rows(hidden), images, None, images.sees)
            return images.replace(hidden, seeing)
        assert mask is not None
        if isinstance(images, Tensor):
            images = self.cross_attn.project_images(images)
        sees = mask.any(dim=-1, keepdim=True)  # (B, S, 1)
        return self._read(hidden, images, mask.unsqueeze(1), sees)

    def _read(
        self,
        hidden: Tensor,
        images: KeyValues | GroupedKeyValues,
        mask: Tensor | None,
        sees: Tensor | None,
    ) -> Tensor:
        """Both gated branches; `sees` (B, S, 1) bool, or None where every token sees an image."""
        attn_gate, mlp_gate = self.attn_gate.tanh(), self.mlp_gate.tanh()
        branch = self.cross_attn(self.input_layernorm(hidden), images, mask)
        hidden = hidden + (attn_gate if sees is None else sees * attn_gate) * branch
        branch = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + (mlp_gate if sees is None else sees * mlp_gate) * branch


class Decoder(nn.Module):
    """Token ids and image tokens to hidden states; `logits` maps those to the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.num_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            CrossAttentionBlock(config)
            if layer in config.cross_attention_layers
            else SelfAttentionBlock(config, layer)
            for layer in range(config.num_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw every weight anew; residual outputs shrink with depth (GPT-2, section 2.3).

        Embeddings start at unit variance, so that a token is not drowned by what the first layers
        add to it; where they are the output layer too they start small, for even logits.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            if parameter.dim() < 2:
                continue
            std = parameter.shape[1] ** -0.5
            if name == "embed_tokens.weight" and not self.config.tie_embeddings:
                std = 1.0
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.config.num_layers)
            nn.init.normal_(parameter, std=std)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        images: ImageContext | KeptImages | None,
        cache: CacheRows | None = None,
        lengths: Tensor | None = None,
        mask: "Tensor | BlockMask | None" = None,
    ) -> Tensor:
        """Return normalised hidden states (B, S, D).

        Args:
            input_ids: (B, S) int64. Rows shorter than S are padded on the right; what stands at
                padding is undefined and never reaches real tokens.
            positions: (B, S) int64, consecutive in each document of a row.
            images: None when no row has an image; cross-attention layers are then skipped.
            cache: text keys and values of earlier positions; this call's are added to it.
            lengths: int64, tokens of each row without padding, (B,), or of each token's document,
                (B, S); None where rows are single documents without padding.
            mask: who may attend to whom in rows of several documents (vlm/decoder/documents.py);
                None where every row is one. Such rows cannot be cached.
        """
        hidden = self.embed_tokens(input_ids)  # (B, S, D)
        rotary = rotary_table(self.config, positions, hidden.dtype, lengths)
        if cache is not None:
            assert mask is None
            mask = cache.mask(positions, hidden.dtype)
        for index, layer in enumerate(self.layers):
            if isinstance(layer, SelfAttentionBlock):
                hidden = layer(hidden, rotary, positions, mask, cache)
            elif images is not None:
                hidden = layer(hidden, images.of_layer(index), images.mask)
        return self.norm(hidden)

    def project_images(self, image_tokens: Tensor) -> dict[int, KeyValues]:
        """Compute once what every cross-attention layer reads of image tokens (B, L, D)."""
        projected: dict[int, KeyValues] = {}
        for index in self.config.cross_attention_layers:
            layer = self.layers[index]
            assert isinstance(layer, CrossAttentionBlock)
            projected[index] = layer.cross_attn.project_images(image_tokens)
        return projected

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (..., vocab_size) logits of hidden states (..., D)."""
        if self.config.tie_embeddings:
            return F.linear(hidden, self.output_weight)
        logits: Tensor = self.lm_head(hidden)
        return logits

    @property
    def output_weight(self) -> Tensor:
        """The matrix (vocab_size, D) that is all of `logits`."""
        if self.config.tie_embeddings:
            return self.embed_tokens.weight[: self.config.vocab_size]
        assert isinstance(self.lm_head, nn.Linear)  # not something put around it
        return self.lm_head.weight
