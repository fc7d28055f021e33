"""Floating-point operations of a training step, from the shapes of its model and its batch.

Counted are products of matrices and attention, a multiplication and an addition as two;
docs/flops.md has the formula. A part costs so many operations for each token, patch or pair of
tokens, worked out once; a batch only says how many of those it has.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data.collate import ChatBatch, PairBatch
from encoders.arrangement import TOKEN_ALIGNMENT
from encoders.blocks import VisionBlock
from encoders.config import VisionConfig
from encoders.vit import VisionEncoder
from training.lora import NAME as ADAPTER
from training.memory import blocks_of
from vlm.adapters.layers import MATRIX
from vlm.decoder.stack import CrossAttentionBlock, Decoder
from vlm.inputs import ImageInputs

# Linear layers of self-attention that read its input; `qkv` is timm's.
ENTRIES = ("q_proj", "k_proj", "v_proj", "qkv")
# Those of cross-attention that read the image tokens.
KEYS = ("cross_attn.k_proj", "cross_attn.v_proj")
# An adapter's second matrix reads what its first has made, which learns.
SECOND = f"{MATRIX}B"
# The shape of a gate, whose learning asks for no product of matrices.
GATE = (1,)


@dataclass(frozen=True)
class Flops:
    """Operations of the forward pass, of the backward pass, and of running blocks again for it."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """What the model asks for, however it is computed: without what is computed twice."""
        return self.forward + self.backward

    @property
    def total(self) -> float:
        """What is computed."""
        return self.model + self.recomputed

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.forward + other.forward,
            self.backward + other.backward,
            self.recomputed + other.recomputed,
        )

    def __mul__(self, count: float) -> "Flops":
        return Flops(self.forward * count, self.backward * count, self.recomputed * count)


class StepFlops:
    """The operations of batches, for the components of a stage with its parts frozen.

    Args:
        modules: the components by their names.
        recomputed: blocks that run again in the backward pass.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], recomputed: Collection[nn.Module] = ()
    ) -> None:
        self.costs: dict[str, Flops] = {}
        self.recomputed = {id(block) for block in recomputed}
        encoder, decoder = modules.get("encoder"), modules.get("decoder")
        self.vision: VisionConfig | None = None
        flows = False  # whether what was computed so far has a gradient
        if isinstance(encoder, VisionEncoder):
            self.vision = encoder.config
            flows = self._add_encoder(encoder)
        if "projector" in modules:
            for layer in _linears(modules["projector"]):
                self._add("features", _product(layer, flows))
                flows = flows or _learns(layer)
        if isinstance(decoder, Decoder):
            self._add_decoder(decoder, flows)
        if "contrastive_head" in modules:
            self._add_contrast(modules["contrastive_head"], modules["text_tower"], flows)

    def of(self, batch: Any) -> Flops:
        """The operations of a ChatBatch or a PairBatch, which may lie on the host."""
        counts = self._chat(batch) if isinstance(batch, ChatBatch) else self._pairs(batch)
        total = Flops()
        for unit, cost in self.costs.items():
            total += cost * counts.get(unit, 0.0)
        return total

    def _add(self, unit: str, cost: Flops) -> None:
        self.costs[unit] = self.costs.get(unit, Flops()) + cost

    def _add_encoder(self, encoder: VisionEncoder) -> bool:
        """Add the vision encoder; return whether its features have a gradient."""
        config = encoder.config
        blocks = blocks_of(encoder)
        inside = {id(module) for block in blocks for module in block.modules()}
        flows = False
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                self._add("patches", _product(module, flows=False))
            if id(module) not in inside:
                flows = flows or any(p.requires_grad for p in module.parameters(recurse=False))
        for index, block in enumerate(blocks):
            is_local = index < config.num_local_layers and config.local_attention == "tile"
            entries = [name for name, _ in block.named_modules() if name.endswith(ENTRIES)]
            linear, attention = self._block(block, entries, config.hidden_size, flows)
            self._add("vision_tokens", linear)
            self._add("tile_pairs" if is_local else "picture_pairs", attention)
            flows = flows or _learns(block)
        return flows

    def _add_decoder(self, decoder: Decoder, images_flow: bool) -> None:
        config = decoder.config
        width = config.num_heads * config.head_size
        flows = decoder.embed_tokens.weight.requires_grad
        for block in decoder.layers:
            if isinstance(block, CrossAttentionBlock):
                queries = ["cross_attn.q_proj"]
                linear, attention = self._block(
                    block, queries, width, flows, without=KEYS, beside=images_flow
                )
                self._add("seeing_tokens", linear)
                products = [
                    _product(layer, images_flow or name.endswith(SECOND))
                    for name, layer in _named_linears(block)
                    if name.partition(MATRIX)[0] in KEYS
                ]
                again = self._again(block, sum(p.forward for p in products))
                for product in products:
                    self._add("image_tokens", product)
                self._add("image_tokens", Flops(recomputed=again))
                self._add("seen_pairs", attention)
                # Where nothing is seen the block is not run, and gives no gradient either; that a
                # batch without pictures saves a little more below is left out.
                flows = flows or images_flow or _learns(block)
            else:
                entries = [f"self_attn.{name}" for name in ENTRIES]
                linear, attention = self._block(block, entries, width, flows)
                self._add("text_tokens", linear)
                self._add("text_pairs", attention)
                flows = flows or _learns(block)
        weight = decoder.output_weight
        forward = 2.0 * weight.numel()
        self._add("targets", Flops(forward, forward * (flows + weight.requires_grad)))

    def _add_contrast(self, head: nn.Module, tower: nn.Module, flows: bool) -> None:
        """Add open_clip's text transformer and the products of the two sides' embeddings."""
        projection = head.get_submodule("image_projection")
        self._add("pairs", _product(projection, flows))
        text: Any = tower
        width = text.transformer.width
        for block in text.transformer.resblocks:
            for linear in _linears(block):
                self._add("text_tokens", _product(linear, flows=True))
            joined = 2.0 * block.attn.in_proj_weight.numel()  # queries, keys and values at once
            self._add("text_tokens", Flops(joined, 2 * joined))
            self._add("text_pairs", Flops(4.0 * width, 8.0 * width))
        size = 2.0 * text.text_projection.numel()
        self._add("pairs", Flops(size, 2 * size))
        # CLIP's loss multiplies once for each direction.
        directions = 1 if dict(head.named_parameters()).get("bias") is not None else 2
        compared = 2.0 * directions * text.text_projection.shape[1]
        self._add("compared", Flops(compared, 2 * compared))

    def _block(
        self,
        block: nn.Module,
        entries: Collection[str],
        width: int,
        flows: bool,
        without: Collection[str] = (),
        beside: bool = False,
    ) -> tuple[Flops, Flops]:
        """The cost of a block for a token, and of its attention for a pair of tokens.

        Args:
            entries: linear layers that read the block's input, normalised.
            width: of all heads together.
            flows: whether that input has a gradient.
            without: linear layers that read something else.
            beside: whether that has a gradient.
        """
        weights_learn = any(p.requires_grad and p.shape != GATE for p in block.parameters())
        queries_learn = flows or weights_learn
        keys_learn = beside or not without or any(_learns(block.get_submodule(n)) for n in without)
        learns = weights_learn or beside
        norm_learns = any(_learns(m) for m in block.modules() if "Norm" in type(m).__name__)
        linear = Flops()
        for name, layer in _named_linears(block):
            place = name.partition(MATRIX)[0]
            if place not in without:
                entered = flows or (norm_learns if place in entries else learns)
                linear += _product(layer, entered or name.endswith(SECOND))
        pair = 4.0 * width  # queries by keys, and weights by values
        # Gradients of scores, and of keys, values and queries where they have one.
        backward = (0.5 + keys_learn + 0.5 * queries_learn) * pair if flows or learns else 0.0
        attention = Flops(pair, backward)
        if flows or learns:
            last = 0.0 if _last_branch_is_kept(block) else 2.0 * _linears(block)[-1].weight.numel()
            linear += Flops(recomputed=self._again(block, linear.forward - last))
            attention += Flops(recomputed=self._again(block, pair))
        return linear, attention

    def _again(self, block: nn.Module, forward: float) -> float:
        return forward if id(block) in self.recomputed else 0.0

    def _chat(self, batch: ChatBatch) -> dict[str, float]:
        inputs = batch.inputs
        num_rows, num_tokens = inputs.input_ids.shape
        num_tokens -= 1  # nothing is predicted from the last
        counts: dict[str, float] = {
            "text_tokens": num_rows * num_tokens,
            "text_pairs": num_rows * num_tokens**2,
            "targets": int(batch.loss_mask.sum()),
        }
        if inputs.document_lengths is not None:
            counts["text_pairs"] = int((inputs.document_lengths**2).sum())
        if inputs.images is not None and self.vision is not None:
            shown = inputs.images.num_tiles[inputs.images.image_index]
            row = torch.arange(num_rows).repeat_interleave(inputs.images.num_images.cpu())
            tiles = torch.zeros(num_rows, dtype=torch.int64).index_add(0, row, shown.cpu())
            image_tokens = int(tiles.max()) * self.vision.num_tokens
            counts["seeing_tokens"] = num_rows * num_tokens
            counts["image_tokens"] = num_rows * image_tokens
            counts["seen_pairs"] = num_rows * num_tokens * image_tokens
            counts |= _picture_counts(inputs.images, self.vision)
        return counts

    def _pairs(self, batch: PairBatch) -> dict[str, float]:
        num_rows, num_tokens = batch.text_ids.shape
        counts: dict[str, float] = {
            "text_tokens": num_rows * num_tokens,
            "text_pairs": num_rows * num_tokens**2,
            "pairs": num_rows,
            "compared": num_rows**2,
        }
        assert self.vision is not None
        return counts | _picture_counts(batch.images, self.vision)


def _picture_counts(images: ImageInputs, vision: VisionConfig) -> dict[str, float]:
    tiles = images.num_tiles.tolist()
    per_tile = vision.num_tokens
    if images.features is not None:  # the encoder does not run
        return {"features": sum(tiles) * per_tile}
    counts: dict[str, float] = {
        "patches": sum(tiles) * vision.num_patches,
        "features": sum(tiles) * per_tile,
        "vision_tokens": sum(tiles) * per_tile,
        "tile_pairs": sum(tiles) * per_tile**2,
        "picture_pairs": sum((num * per_tile) ** 2 for num in tiles),
    }
    if vision.padding_tiles == "attend":
        aligned = -(-per_tile // TOKEN_ALIGNMENT) * TOKEN_ALIGNMENT
        filled = vision.max_num_tiles * aligned
        pictures = [num * per_tile for num in tiles]
        counts["vision_tokens"] = len(tiles) * filled
        # A picture's tokens see everything, padding sees the picture.
        counts["picture_pairs"] = sum(
            picture * filled + (filled - picture) * picture for picture in pictures
        )
    return counts


def _product(layer: nn.Module, flows: bool) -> Flops:
    """A linear layer or a convolution, for each vector that it reads.

    Backward, its input's gradient costs as much as the forward pass, and its weight's too.
    """
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    values = layer.weight.numel()
    if isinstance(layer, nn.Linear):  # whose weight may be packed
        values = layer.in_features * layer.out_features
    forward = 2.0 * values
    return Flops(forward, forward * (flows + layer.weight.requires_grad))


def _last_branch_is_kept(block: nn.Module) -> bool:
    """Whether the backward pass needs the output of the block's last layer: a gate that learns."""
    if isinstance(block, CrossAttentionBlock):
        return block.mlp_gate.requires_grad
    return isinstance(block, VisionBlock) and block.gated and block.gate_ffn.requires_grad


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _named_linears(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    """A block's linear layers by name; an adapted one stands under its own name all the same.

    Its adapter's matrices are `NAME.lora_A` and `NAME.lora_B`.
    """
    return [
        (name.removesuffix(".base_layer").removesuffix(f".{ADAPTER}"), layer)
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    ]


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
