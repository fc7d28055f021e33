"""Single tokens on a CPU in float32: what the decoder computes for them, in less time.

A step of one or two rows is bound by reading the weights, one of a few more by products that are
too small for what multiplies them, and both by the number of operations. So projections of one
input are one product, of a kind that suits the number of rows, and whatever else there is takes
fewer operations. docs/results/decode_cpu.md has the figures.

Axes: `B` rows, `H` heads, `G` key/value heads, `P` text positions, `d` head width, `D` width,
`V` vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.decoder.cache import GroupedKeyValues, ImageGroup, TextCache
from vlm.decoder.config import DecoderConfig
from vlm.decoder.layers import RMSNorm, SwiGLU
from vlm.decoder.rope import rotary_table
from vlm.decoder.stack import CrossAttentionBlock, Decoder, SelfAttentionBlock
from vlm.engine.passes import answer_images
from vlm.engine.slots import Slot

# Up to so many rows weights are multiplied from the left, as they lie: twice as fast as `linear`.
# One row is multiplied twice, since a product with a single vector reads at half the speed.
FEW_ROWS = 2
# oneDNN's layout is chosen for so many rows; it serves other numbers too.
PACKED_FOR_ROWS = 8


def can_run(decoder: Decoder) -> bool:
    """Whether a decoder is on the CPU, in float32, and of plain linear layers alone."""
    linear = [layer for layer in decoder.layers.modules() if isinstance(layer, nn.Linear)]
    if not decoder.config.tie_embeddings:
        linear.append(decoder.lm_head)
    return (
        all(type(parameter) is nn.Parameter for parameter in decoder.parameters())
        and all(p.dtype == torch.float32 and p.device.type == "cpu" for p in decoder.parameters())
        and all(type(layer) is nn.Linear for layer in linear)
        and all(isinstance(b, SelfAttentionBlock | CrossAttentionBlock) for b in decoder.layers)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def packed_bytes(decoder: Decoder) -> int:
    """Bytes of the copy that `SingleTokens` may keep of a decoder's weights."""
    matrices = [p for p in decoder.layers.parameters() if p.dim() == 2]
    return decoder.output_weight.nbytes + sum(matrix.nbytes for matrix in matrices)


class SingleTokens:
    """The step that gives every answer its next token. The weights must not change behind it.

    Args:
        packed: for more than two rows, multiply by a second copy of the weights, packed by oneDNN.
    """

    @torch.no_grad()
    def __init__(self, decoder: Decoder, cache: TextCache, packed: bool) -> None:
        self.decoder, self.cache = decoder, cache
        config = decoder.config
        self._blocks: list[_SelfBlock | _CrossBlock] = []
        for layer in decoder.layers:
            if isinstance(layer, SelfAttentionBlock):
                self._blocks.append(_SelfBlock(layer, config, packed))
            else:
                assert isinstance(layer, CrossAttentionBlock)
                self._blocks.append(_CrossBlock(layer, config, packed))
        self._norm = _Norm(decoder.norm)
        self._output = _Product([decoder.output_weight], [], packed)

    def decode(self, slots: Sequence[Slot]) -> Tensor:
        """Run the last token of answers; return the logits (B, V) of the next.

        Every slot between the first and the last of them is computed, as in `Passes.decode`.
        """
        first, end = slots[0].index, slots[-1].index + 1
        ids, places = [0] * (end - first), [self.cache.max_tokens] * (end - first)
        for slot in slots:
            token = slot.running.next_token
            assert token is not None
            ids[slot.index - first], places[slot.index - first] = token, len(slot.tokens)
        hidden = self.decoder.embed_tokens(torch.tensor(ids))  # (B, D)
        text = _Text(self.decoder.config, self.cache, first, places)
        images = answer_images(slots, end - first, hidden.device)
        for index, block in enumerate(self._blocks):
            if isinstance(block, _SelfBlock):
                hidden = block(hidden, text, index)
            elif images is not None:
                hidden = block(hidden, images.of_layer(index))
        if len(slots) < end - first:
            hidden = hidden[[slot.index - first for slot in slots]]
        return self._output(self._norm(hidden))


class _Text:
    """Where the tokens of a step stand in the cache, how they are turned, what they see.

    cos, sin: (B, 1, d); sines are those of a channel's partner, with its sign.
    mask: (B, 1, 1, P), added to the scores; None for one row, which sees all positions.
    """

    def __init__(
        self, config: DecoderConfig, cache: TextCache, first_slot: int, places: Sequence[int]
    ) -> None:
        self.layers = cache.layers
        self.slots = slice(first_slot, first_slot + len(places))
        positions = torch.tensor(places).unsqueeze(1)  # (B, 1)
        free = cache.max_tokens  # where rows without an answer stand
        self.num_tokens = 1 + max(place for place in places if place < free)
        any_layer = next(iter(cache.layers.values()))
        _, num_slots, num_heads, length, _ = any_layer.shape
        # Of each row, its heads' keys and then their values: where they go in a layer, flattened.
        heads = torch.arange(2 * num_slots * num_heads).view(2, num_slots, num_heads)
        rows = heads[:, self.slots].transpose(0, 1).flatten(1)  # (B, 2 G)
        self.index = (rows * length + positions).flatten()
        cos, sin = rotary_table(config, positions, any_layer.dtype)
        half = cos.shape[-1] // 2
        self.cos = cos.squeeze(1)
        self.sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1).squeeze(1)
        self.mask: Tensor | None = None
        if len(places) > 1:
            seen = torch.arange(self.num_tokens) <= positions  # (B, P)
            mask = torch.zeros(seen.shape, dtype=cos.dtype).masked_fill_(~seen, -torch.inf)
            self.mask = mask.unsqueeze(1).unsqueeze(1)

    def write(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, 2 G, d); return all that may be seen, each (B, G, P, d)."""
        stored = self.layers[layer]
        stored.view(-1, stored.shape[-1]).index_copy_(0, self.index, new.flatten(0, 1))
        keys, values = stored[:, self.slots, :, : self.num_tokens]
        return keys, values


class _Norm:
    """An `RMSNorm` of float32, in half the time: its mean of squares from the vector's length."""

    def __init__(self, norm: RMSNorm) -> None:
        self.weight = norm.weight
        self.eps = norm.weight.new_tensor(norm.eps)
        self.share = 1 / len(norm.weight)

    def __call__(self, rows: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        scale = torch.addcmul(self.eps, length, length, value=self.share).rsqrt_()
        return rows.mul(scale).mul_(self.weight)


class _Product:
    """Linear layers of one input as one.

    Args:
        biases: one for each weight, or none.
        packed: keep a copy of the weights for more than a few rows.
        scale: what their results are multiplied by; None: 1.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        packed: bool,
        scale: Tensor | None = None,
    ) -> None:
        self.weights, self.scale = weights, scale
        self.bias = torch.cat(list(biases)) if biases else None
        sizes = [len(weight) for weight in weights]
        self._few = weights[0].new_empty(sum(sizes), FEW_ROWS)
        self._parts = torch.split(self._few, sizes)
        self.packed: Tensor | None = None
        if packed:
            joined = torch.cat(list(weights))
            if scale is not None:
                joined *= scale
            self.packed = torch.ops.mkldnn._reorder_linear_weight(joined, PACKED_FOR_ROWS)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (B, all outputs) of rows (B, inputs), without the scale."""
        if len(rows) > FEW_ROWS and self.packed is not None:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(
                rows, self.packed, self.bias, "none", [], ""
            )
            return out
        product = self._multiply(rows)
        return product.contiguous() if self.bias is None else product + self.bias

    def add_to(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Return `hidden` (B, all outputs) with what the layers make of rows, scaled."""
        if len(rows) > FEW_ROWS and self.packed is not None:
            out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                rows, hidden, self.packed, self.bias, "add"
            )
            return out
        product = self._multiply(rows)
        if self.bias is not None:
            product = product + self.bias
        if self.scale is None:
            return hidden + product
        return torch.addcmul(hidden, product, self.scale)

    def _multiply(self, rows: Tensor) -> Tensor:
        """The products alone, of few rows in memory that the next product uses again."""
        if len(rows) > FEW_ROWS:
            parts = [F.linear(rows, weight) for weight in self.weights]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        # A transposed view of rows: with columns that lie side by side this is a slow product.
        columns = (rows if len(rows) == FEW_ROWS else torch.cat((rows, rows))).t()
        for weight, part in zip(self.weights, self._parts, strict=True):
            torch.mm(weight, columns, out=part)
        return self._few.t()[: len(rows)]


def _product(layers: Sequence[nn.Linear], packed: bool, scale: Tensor | None = None) -> _Product:
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return _Product([layer.weight for layer in layers], biases, packed, scale)


class _FeedForward:
    def __init__(self, norm: RMSNorm, mlp: SwiGLU, packed: bool, gate: Tensor | None) -> None:
        self.norm = _Norm(norm)
        self.gate_up = _product([mlp.gate_proj, mlp.up_proj], packed)
        self.down = _product([mlp.down_proj], packed, gate)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return `hidden` (B, D) with what the layer adds."""
        gate, up = self.gate_up(self.norm(hidden)).chunk(2, dim=-1)
        return self.down.add_to(hidden, F.silu(gate).mul_(up))


class _SelfBlock:
    """A `SelfAttentionBlock`."""

    def __init__(self, block: SelfAttentionBlock, config: DecoderConfig, packed: bool) -> None:
        attention = block.self_attn
        self.norm = _Norm(block.input_layernorm)
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.qkv = _product([attention.q_proj, attention.k_proj, attention.v_proj], packed)
        self.output = _product([attention.o_proj], packed)
        self.mlp = _FeedForward(block.post_attention_layernorm, block.mlp, packed, None)
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.shape = (-1, config.num_heads + 2 * config.num_kv_heads, config.head_size)
        self.qk_norm = config.qk_norm

    def __call__(self, hidden: Tensor, text: _Text, layer: int) -> Tensor:
        """Return (B, D)."""
        heads = self.qkv(self.norm(hidden)).view(self.shape)  # (B, H + 2 G, d)
        query = heads[:, : self.num_heads]
        if self.qk_norm:
            key = heads[:, self.num_heads : -self.num_kv_heads]
            query.copy_(self.q_norm(query))
            key.copy_(self.k_norm(key))
        turned = heads[:, : -self.num_kv_heads]
        partner = turned.roll(self.shape[2] // 2, dims=-1)
        turned.mul_(text.cos).addcmul_(partner, text.sin)
        keys, values = text.write(layer, heads[:, self.num_heads :])
        # The heads that share keys and values are taken for tokens that do.
        shared = query.reshape(len(hidden), self.num_kv_heads, -1, self.shape[2])
        attended = F.scaled_dot_product_attention(shared, keys, values, text.mask)
        return self.mlp(self.output.add_to(hidden, attended.flatten(1)))


class _CrossBlock:
    """A `CrossAttentionBlock`, for rows that see all of their images."""

    def __init__(self, block: CrossAttentionBlock, config: DecoderConfig, packed: bool) -> None:
        self.norm, self.q_norm = _Norm(block.input_layernorm), _Norm(block.cross_attn.q_norm)
        self.query = _product([block.cross_attn.q_proj], packed)
        self.output = _product([block.cross_attn.o_proj], packed, block.attn_gate.tanh())
        self.mlp = _FeedForward(
            block.post_attention_layernorm, block.mlp, packed, block.mlp_gate.tanh()
        )
        self.num_kv_heads = config.num_kv_heads
        self.shape = (-1, config.num_heads, config.head_size)

    def __call__(self, hidden: Tensor, images: GroupedKeyValues) -> Tensor:
        """Return (B, D)."""
        seeing = images.rows(hidden)
        query = self.q_norm(self.query(self.norm(seeing)).view(self.shape))
        attended, first = [], 0
        for group in images.images.groups:
            end = first + group.num_rows
            attended.append(self._attend(query[first:end], group, images.layer))
            first = end
        together = attended[0] if len(attended) == 1 else torch.cat(attended)
        seeing = self.mlp(self.output.add_to(seeing, together))
        return images.replace(hidden, seeing)

    def _attend(self, query: Tensor, group: ImageGroup, layer: int) -> Tensor:
        """Return (rows, H * d) of the queries (rows, H, d) of a group."""
        stored, size = group.layers[layer], self.shape[2]
        if len(query) == 1:
            shared = query.view(1, self.num_kv_heads, -1, size)
            return F.scaled_dot_product_attention(shared, stored.keys, stored.values).flatten(1)
        # Rows that see the same are taken for tokens of one row, as are heads that share keys.
        shared = query.reshape(len(query), self.num_kv_heads, -1, size).transpose(0, 1)
        attended = F.scaled_dot_product_attention(
            shared.reshape(1, self.num_kv_heads, -1, size), stored.keys, stored.values
        )  # (1, G, rows * sharers, d)
        return attended.view(self.num_kv_heads, len(query), -1, size).transpose(0, 1).flatten(1)
