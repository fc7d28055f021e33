"""Where the tiles of a batch stand while the encoder works on them, and who attends to whom.

Axes: `T` tiles (of all images, one after the other), `N` tokens of a tile, `H` heads, `D` width.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Llama 3.2 fills each tile's tokens up to a multiple of this.
TOKEN_ALIGNMENT = 8


class Arrangement(Protocol):
    """Slots for tiles, and attention over them.

    image_index, tile_index: (slots,) int64, the image that a slot belongs to and the place on its
        canvas.
    """

    image_index: Tensor
    tile_index: Tensor

    def fill(self, patches: Tensor) -> Tensor:
        """Put what belongs to the tiles (T, n, D) into the slots (slots, n, D)."""

    def to_layers(self, hidden: Tensor) -> Tensor:
        """Bring slots (slots, N, D) into the shape that the layers work on."""

    def spread(self, vectors: Tensor) -> Tensor:
        """Repeat a vector per slot (slots, D) so that it can be added in the layers' shape."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Scaled dot-product attention within each image, in the layers' shape with (H, D/H)."""

    def to_tiles(self, hidden: Tensor) -> Tensor:
        """Take the tiles (T, N, D) out of the layers' shape."""


class TileGroups:
    """The tiles alone: images of a batch, grouped by their tile count.

    Images of equal count form one dense attention call, so no tile is padded, nothing is masked,
    and an image's result cannot depend on the others. There are at most `max_num_tiles` groups.
    Images are sorted by tile count, so that a group is a run of slots, which costs no copy.
    """

    def __init__(self, num_tiles: Sequence[int], device: torch.device) -> None:
        """Args: num_tiles: tiles of each image, in the order of the flat tile axis."""
        order = sorted(range(len(num_tiles)), key=num_tiles.__getitem__)
        counts = torch.tensor([num_tiles[image] for image in order], device=device)
        self.image_index = torch.tensor(order, device=device).repeat_interleave(counts)
        self.tile_index = torch.cat([torch.arange(num_tiles[i], device=device) for i in order])
        # (first slot, end, images) of the images of each count
        self.runs: list[tuple[int, int, int]] = []
        for count in sorted(set(num_tiles)):
            first, num_images = self.runs[-1][1] if self.runs else 0, num_tiles.count(count)
            self.runs.append((first, first + count * num_images, num_images))
        # (T,) int64, the tile in each slot and the slot of each tile; None where they are equal
        self.tiles: Tensor | None = None
        self.slots: Tensor | None = None
        if order != list(range(len(order))):
            starts = torch.tensor([0, *num_tiles[:-1]], device=device).cumsum(0)  # (images,)
            self.tiles = starts[self.image_index] + self.tile_index
            self.slots = self.tiles.argsort()

    def fill(self, patches: Tensor) -> Tensor:
        """A slot is a tile."""
        return patches if self.tiles is None else patches.index_select(0, self.tiles)

    def to_layers(self, hidden: Tensor) -> Tensor:
        """The layers work on tiles, (T, N, D)."""
        return hidden

    def spread(self, vectors: Tensor) -> Tensor:
        """(T, D) to (T, 1, D)."""
        return vectors.unsqueeze(1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend within each image; all tensors (T, N, H, D/H)."""
        attended = [
            attend_in_groups(query[first:end], key[first:end], value[first:end], num_images)
            for first, end, num_images in self.runs
        ]
        return torch.cat(attended) if len(attended) > 1 else attended[0]

    def to_tiles(self, hidden: Tensor) -> Tensor:
        """(T, N, D) in the order in which the tiles came."""
        return hidden if self.slots is None else hidden.index_select(0, self.slots)


class PaddedImages:
    """Images filled up with empty tiles, and tiles with empty tokens: Llama 3.2's arithmetic.

    Every image has `max_num_tiles` slots, and every slot is followed by alignment tokens up to a
    multiple of 8. (A class token and a square of patches are never one: there always are some.)
    The picture's tokens attend to everything, padding attends to the picture only. That is what
    Llama 3.2's mask says, an outer product that forbids padding to see padding, but two dense
    calls say it without one: a token's place in the sequence does not matter to attention, so
    the picture's tokens stand first. Images are sorted by tile count, and those of equal count
    share the calls.

    In the layers' shape (images, L, D) an image is its slots' tokens and then all its alignment
    tokens.
    """

    def __init__(
        self,
        num_tiles: Sequence[int],
        max_num_tiles: int,
        num_tokens: int,
        device: torch.device,
    ) -> None:
        """Args: num_tiles: tiles of each image, in the order of the flat tile axis."""
        self.max_num_tiles = max_num_tiles
        self.num_tokens = num_tokens
        self.num_alignment = -num_tokens % TOKEN_ALIGNMENT
        order = sorted(range(len(num_tiles)), key=num_tiles.__getitem__)
        self.image_index = torch.tensor(order, device=device).repeat_interleave(max_num_tiles)
        self.tile_index = torch.arange(max_num_tiles, device=device).repeat(len(order))
        first_slot = {image: place * max_num_tiles for place, image in enumerate(order)}
        # (T,) int64, the slot of each tile
        self.slots = torch.cat(
            [
                first_slot[i] + torch.arange(count, device=device)
                for i, count in enumerate(num_tiles)
            ]
        )
        # (T, N) int64, where the tokens of each tile stand among those of all images
        image_tokens = max_num_tiles * (num_tokens + self.num_alignment)
        image, place = self.slots // max_num_tiles, self.slots % max_num_tiles
        first_token = image * image_tokens + place * num_tokens
        self.tokens = first_token.unsqueeze(1) + torch.arange(num_tokens, device=device)
        counts = sorted(num_tiles)
        # (first image, end, tokens of the picture) of the images of each count
        self.runs = [
            (counts.index(count), counts.index(count) + counts.count(count), count * num_tokens)
            for count in sorted(set(counts))
        ]

    def fill(self, patches: Tensor) -> Tensor:
        """Empty slots hold zeros: that is what the patch embedding makes of an empty tile."""
        slots = patches.new_zeros(len(self.tile_index), *patches.shape[1:])
        return slots.index_copy(0, self.slots, patches)

    def to_layers(self, hidden: Tensor) -> Tensor:
        """Join an image's slots and append its alignment tokens, which are zeros."""
        images = hidden.reshape(-1, self.max_num_tiles * self.num_tokens, hidden.shape[-1])
        return F.pad(images, (0, 0, 0, self.max_num_tiles * self.num_alignment))  # (images, L, D)

    def spread(self, vectors: Tensor) -> Tensor:
        """(slots, D) to (images, L, D): alignment tokens belong to their tile as others do."""
        images = vectors.view(-1, self.max_num_tiles, vectors.shape[-1])
        return torch.cat(
            [images.repeat_interleave(n, dim=1) for n in (self.num_tokens, self.num_alignment)],
            dim=1,
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend within each image; all tensors (images, L, H, D/H)."""
        attended = []
        for first, end, real in self.runs:
            queries, keys, values = query[first:end], key[first:end], value[first:end]
            picture = _attend(queries[:, :real], keys, values)
            padding = _attend(queries[:, real:], keys[:, :real], values[:, :real])
            attended.append(torch.cat([picture, padding], dim=1))
        return torch.cat(attended) if len(attended) > 1 else attended[0]

    def to_tiles(self, hidden: Tensor) -> Tensor:
        """Take the tiles (T, N, D), in the order in which they came."""
        tokens = hidden.flatten(0, 1).index_select(0, self.tokens.flatten())
        return tokens.view(*self.tokens.shape, -1)


def attend_in_groups(query: Tensor, key: Tensor, value: Tensor, num_groups: int) -> Tensor:
    """Attend within `num_groups` equal runs of the tile axis; (T, N, H, d) in and out."""
    grouped = (tensor.reshape(num_groups, -1, *tensor.shape[2:]) for tensor in (query, key, value))
    return _attend(*grouped).reshape(query.shape)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Dense attention of (groups, tokens, H, d), the shape of the query returned."""
    attended = F.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    )  # (groups, H, tokens, d)
    return attended.transpose(1, 2)
