"""What rows of text see of their images, whose keys and values are made once and shared.

Axes: `S` text length, `M` images of a row, `L` image tokens of a row, `H` key/value heads,
`d` head width, `T` tiles, `N` tokens of a tile, `D` width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.tiling import TiledImage
from vlm.decoder.cache import ImageGroup, KeptImages, KeyValues
from vlm.decoder.masks import image_token_mask, visible_images
from vlm.engine.image_cache import ImageCache, Layers
from vlm.inputs import EncodedImage, stack_images
from vlm.model import VisionLanguageModel, row_positions


@dataclass(frozen=True)
class RowImages:
    """What a prompt sees of its images.

    key: the images, in order.
    layers: keys and values of all of them together.
    visible: (prompt tokens, L) bool.
    last_key, last_layers: the images that the last token of the prompt sees, and so do those that
        follow it; None where it sees none.
    """

    key: tuple[str, ...]
    layers: Layers
    visible: Tensor
    last_key: tuple[str, ...]
    last_layers: Layers | None


def read_images(
    network: VisionLanguageModel,
    wanted: Mapping[str, TiledImage | EncodedImage],
    kept: ImageCache,
    most_tiles: int | None = None,
) -> dict[str, Layers]:
    """Return each image's keys and values (1, H, L, d) in every cross-attention layer.

    Args:
        wanted: images by their keys.
        kept: images known before; those that are not are encoded and join them.
        most_tiles: encoded in one pass; a single image may have more. None: all in one.
    """
    layers = {key: known for key in wanted if (known := kept.get(key)) is not None}
    passes: list[list[str]] = []
    num_tiles = 0
    for key in (key for key in wanted if key not in layers):
        num_tiles += wanted[key].num_tiles
        if not passes or (most_tiles is not None and num_tiles > most_tiles):
            passes.append([])
            num_tiles = wanted[key].num_tiles
        passes[-1].append(key)
    for keys in passes:
        images = _encode_images(network, [wanted[key] for key in keys])
        for key, image in zip(keys, images, strict=True):
            layers[key] = image
            kept.put(key, image)
    return layers


def _encode_images(
    network: VisionLanguageModel, images: Sequence[TiledImage | EncodedImage]
) -> list[Layers]:
    device = network.decoder.embed_tokens.weight.device
    inputs = stack_images([images])
    assert inputs is not None
    tokens = network.image_tokens(inputs.to(device))  # (T, N, D)
    pieces = torch.split(tokens, [image.num_tiles for image in images])
    projected = (
        network.decoder.project_images(piece.flatten(0, 1).unsqueeze(0)) for piece in pieces
    )
    # Each head's tokens are laid side by side, since every step of an answer reads them all.
    return [
        {
            layer: KeyValues(kept.keys.contiguous(), kept.values.contiguous())
            for layer, kept in image.items()
        }
        for image in projected
    ]


def row_images(
    network: VisionLanguageModel,
    prompt: Sequence[int],
    keys: tuple[str, ...],
    images: Sequence[Layers],
) -> RowImages:
    """Put together what a prompt of these token ids sees of its images."""
    # On the CPU: these are many operations on little.
    input_ids = torch.tensor([prompt])
    visible = visible_images(
        input_ids,
        row_positions(input_ids),
        network.image_token_id,
        len(images),
        network.config.image_visibility,
    )  # (1, S, M)
    seen = [number for number, sees in enumerate(visible[0, -1].tolist()) if sees]
    sizes = [next(iter(image.values())).keys.shape[2] for image in images]
    if len(images) == 1:
        mask = visible.expand(-1, -1, sizes[0])
    else:
        token_image = torch.arange(len(images)).repeat_interleave(torch.tensor(sizes))
        mask = image_token_mask(visible, token_image.unsqueeze(0))
    layers = _join(images)
    last = layers if len(seen) == len(images) else None
    if seen and last is None:
        last = _join([images[number] for number in seen])
    last_key = tuple(keys[number] for number in seen)
    device = network.decoder.embed_tokens.weight.device
    return RowImages(keys, layers, mask[0].to(device), last_key, last)


def group_images(
    rows: Mapping[int, tuple[RowImages, Tensor]],
    num_rows: int,
    num_tokens: int,
    device: torch.device,
) -> KeptImages | None:
    """Join what the rows of a pass see; those that show the same images are a group.

    Args:
        rows: by their number, of those that show images: these, and which of their tokens each of
            the row's text tokens sees, (at most `num_tokens`, L) bool.
    """
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: rows[row][0].key)
    groups, masks = [], []
    for _, members in groupby(ordered, key=lambda row: rows[row][0].key):
        numbers = list(members)
        parts = [rows[row][1] for row in numbers]
        masks.append(
            torch.stack([F.pad(part, (0, 0, 0, num_tokens - len(part))) for part in parts])
        )
        groups.append(ImageGroup(len(numbers), rows[numbers[0]][0].layers, masks[-1]))
    sees = torch.cat([mask.any(-1, keepdim=True) for mask in masks])
    return KeptImages(tuple(groups), row_index(ordered, num_rows, device), sees)


def row_index(ordered: Sequence[int], num_rows: int, device: torch.device) -> Tensor | None:
    """Rows as an index; None where they are all rows in order."""
    if list(ordered) == list(range(num_rows)):
        return None
    return torch.tensor(ordered, device=device)


def _join(images: Sequence[Layers]) -> Layers:
    """Keys and values of several images as those of one; a single image is not copied."""
    if len(images) == 1:
        return images[0]
    return {
        layer: KeyValues(
            torch.cat([image[layer].keys for image in images], dim=2),
            torch.cat([image[layer].values for image in images], dim=2),
        )
        for layer in images[0]
    }
