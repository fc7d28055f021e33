"""Where a model looks: the cross-attention of an answer's tokens, laid back onto the picture.

Fused attention keeps no probabilities. They are computed here a second time, from what enters each
cross-attention layer, beside the forward pass: nothing is hooked into it, and it costs nothing.

Axes: `B` rows, `S` text tokens, `A` tokens of the answer, `H` heads, `d` head width, `L` image
tokens of a row, `T` tiles of an image, `N` tokens of a tile, `D` width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.config import VisionConfig
from encoders.tiling import TiledImage, place
from vlm.decoder.attention import CrossAttention
from vlm.decoder.rope import rotary_table
from vlm.decoder.stack import CrossAttentionBlock, ImageContext
from vlm.inputs import Example, ModelInputs, stack_examples
from vlm.model import VisionLanguageModel, row_positions

# Left, top, right, bottom.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageAttention:
    """What of an answer's attention goes to one image.

    patches: (A, rows, columns) float32, over the patches of the whole canvas.
    prefix: (A, T) float32, to the tokens of each tile that stand for no place (its class token).
    canvas: (rows, columns) of tiles.
    """

    patches: Tensor
    prefix: Tensor
    canvas: tuple[int, int]

    @property
    def tiles(self) -> Tensor:
        """The share of every tile, all its tokens together: (A, T)."""
        rows, columns = self.canvas
        num_tokens, height, width = self.patches.shape
        split = self.patches.view(num_tokens, rows, height // rows, columns, width // columns)
        return split.sum(dim=(2, 4)).flatten(1) + self.prefix


@dataclass(frozen=True)
class Placement:
    """How a picture lies on its canvas of tiles; what the picture does not reach is padding.

    canvas: (rows, columns) of tiles.
    placed_px: (height, width) of the picture on the canvas, in its top left corner.
    """

    canvas: tuple[int, int]
    placed_px: tuple[int, int]
    tile_size_px: int
    patch_size_px: int

    @classmethod
    def of(cls, height_px: int, width_px: int, vision: VisionConfig) -> "Placement":
        """The placement of a picture of this size.

        Raises:
            ValueError: it has no pixels.
        """
        canvas, placed_px = place(height_px, width_px, vision.tile_size_px, vision.max_num_tiles)
        return cls(canvas, placed_px, vision.tile_size_px, vision.patch_size_px)

    def on_picture(self, patches: Tensor, height_px: int, width_px: int) -> Tensor:
        """Give every pixel of the picture the value of the patch that it lies in.

        Args:
            patches: (..., rows, columns) over the patches of the canvas.
            height_px, width_px: of the picture, in any size of its own proportions.
        Returns:
            (..., height_px, width_px); patches that lie in the padding alone are left out.
        """
        rows = self._patch_of_pixels(height_px, self.placed_px[0])
        columns = self._patch_of_pixels(width_px, self.placed_px[1])
        return patches.index_select(-2, rows).index_select(-1, columns)

    def tile_boxes(self, height_px: int, width_px: int) -> list[Box | None]:
        """The part of the picture in every tile, in its pixels; None where there is only padding.

        Args:
            height_px, width_px: as in `on_picture`.
        """
        scale_y, scale_x = height_px / self.placed_px[0], width_px / self.placed_px[1]
        boxes: list[Box | None] = []
        for tile in range(self.canvas[0] * self.canvas[1]):
            top, left = (steps * self.tile_size_px for steps in divmod(tile, self.canvas[1]))
            bottom = min(top + self.tile_size_px, self.placed_px[0])
            right = min(left + self.tile_size_px, self.placed_px[1])
            box = left * scale_x, top * scale_y, right * scale_x, bottom * scale_y
            boxes.append(box if bottom > top and right > left else None)
        return boxes

    def _patch_of_pixels(self, side_px: int, placed_px: int) -> Tensor:
        centres = (torch.arange(side_px, dtype=torch.float64) + 0.5) * placed_px / side_px
        return (centres / self.patch_size_px).long()


def attention_probabilities(
    layer: CrossAttention, hidden: Tensor, keys: Tensor, mask: Tensor
) -> Tensor:
    """Return what a layer weighs values by: softmax(q k^T / sqrt(d)), (B, H, S, L) float32.

    A token's probabilities sum to 1, those of a token that sees no image are 0.

    Args:
        hidden: (B, S, D), as the layer is given it.
        keys: (B, key heads, L, d) of the image tokens, normalised.
        mask: (B, S, L) bool.
    """
    query = layer.q_norm(layer.q_proj(hidden).unflatten(-1, (layer.num_heads, -1)))  # (B, S, H, d)
    keys = keys.repeat_interleave(layer.num_heads // layer.num_kv_heads, dim=1)  # (B, H, L, d)
    scores = query.transpose(1, 2).float() @ keys.transpose(2, 3).float()
    scores = scores / math.sqrt(query.shape[-1])
    sees = mask.any(dim=-1, keepdim=True).unsqueeze(1)  # (B, 1, S, 1)
    scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf).masked_fill(~sees, 0)
    return scores.softmax(dim=-1) * sees


def cross_attention_inputs(
    network: VisionLanguageModel, inputs: ModelInputs
) -> tuple[dict[int, Tensor], ImageContext]:
    """Run a batch and return what enters each cross-attention block, (B, S, D), by layer.

    Raises:
        ValueError: no row shows an image.
    """
    if inputs.images is None:
        raise ValueError("there is no image to look at; needed: a prompt with one")
    positions = row_positions(inputs.input_ids)
    images = network.image_context(inputs, positions)
    hidden = network.decoder.embed_tokens(inputs.input_ids)
    rotary = rotary_table(network.config.decoder, positions, hidden.dtype, inputs.lengths)
    entering: dict[int, Tensor] = {}
    for index, layer in enumerate(network.decoder.layers):
        if isinstance(layer, CrossAttentionBlock):
            entering[index] = hidden
            hidden = layer(hidden, images.of_layer(index), images.mask)
        else:
            hidden = layer(hidden, rotary, positions, None, None)
    return entering, images


@torch.inference_mode()
def answer_attention(
    network: VisionLanguageModel, prompt: Example, answer_ids: Sequence[int]
) -> dict[int, Tensor]:
    """Return how an answer's tokens weigh the image tokens, in each cross-attention layer.

    A token is chosen at the place before it, so its row is the attention from there: that of the
    first is the attention of the prompt's last token.

    Args:
        answer_ids: the tokens of the answer, at least one.
    Returns:
        layer to (A, L) float32 on the CPU, the mean over heads. Rows sum to 1; those of tokens
        that see no image to 0.
    Raises:
        ValueError: the prompt has no image, or the answer no token.
    """
    if not answer_ids:
        raise ValueError("the answer has no tokens; at least one is needed")
    ids = torch.cat([prompt.input_ids, torch.tensor(answer_ids[:-1], dtype=torch.int64)])
    row = Example(ids, torch.zeros_like(ids, dtype=torch.bool), prompt.images)
    inputs = stack_examples([row], pad_id=0).to(network.decoder.embed_tokens.weight.device)
    entering, images = cross_attention_inputs(network, inputs)
    first = len(prompt.input_ids) - 1
    weights: dict[int, Tensor] = {}
    for index, hidden in entering.items():
        block = network.decoder.layers[index]
        assert isinstance(block, CrossAttentionBlock) and isinstance(images.tokens, Tensor)
        keys = block.cross_attn.project_images(images.tokens).keys
        normed = block.input_layernorm(hidden[:, first:])
        found = attention_probabilities(block.cross_attn, normed, keys, images.mask[:, first:])
        weights[index] = found[0].mean(dim=0).cpu()
    return weights


def image_attention(
    weights: Mapping[int, Tensor],
    layers: Sequence[int],
    images: Sequence[TiledImage],
    number: int,
    vision: VisionConfig,
) -> ImageAttention:
    """Return one image's part of `answer_attention`, averaged over some layers.

    Args:
        layers: at least one of `weights`.
        images: all images of the prompt.
        number: which of them.
    """
    average = torch.stack([weights[layer] for layer in layers]).mean(dim=0)  # (A, L)
    sizes = [image.num_tiles * vision.num_tokens for image in images]
    rows, columns = images[number].canvas
    grid = vision.tile_size_px // vision.patch_size_px
    own = torch.split(average, sizes, dim=1)[number]
    tokens = own.view(len(own), rows * columns, vision.num_tokens)  # (A, T, N)
    prefix = tokens[:, :, : vision.num_prefix_tokens].sum(dim=2)
    patches = tokens[:, :, vision.num_prefix_tokens :]
    patches = patches.reshape(len(own), rows, columns, grid, grid).transpose(2, 3)
    patches = patches.reshape(len(own), rows * grid, columns * grid)
    return ImageAttention(patches, prefix, (rows, columns))
