"""What the model reads: one encoded row, and rows stacked into a batch.

Axes: `B` batch, `S` text length, `T` tiles of all images of the batch, one after the other,
`N` tokens of a tile, `D` width of the encoder's features.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from encoders.tiling import TiledImage


@dataclass(frozen=True)
class EncodedImage:
    """What an encoder made of a picture, in place of its tiles.

    features: (tiles of the picture, N, D) floating.
    aspect_ratio_id: as in `TiledImage`.
    """

    features: Tensor
    aspect_ratio_id: int

    @property
    def num_tiles(self) -> int:
        """Tiles of the picture."""
        return len(self.features)


@dataclass(frozen=True)
class Example:
    """One row.

    input_ids: (S,) int64.
    loss_mask: (S,) bool; True where the token is supervised (the assistant's words and the end of
        its turn).
    images: in the order of their `<|image|>` tokens.
    """

    input_ids: Tensor
    loss_mask: Tensor
    images: tuple[TiledImage | EncodedImage, ...]


@dataclass(frozen=True)
class ImageInputs:
    """The distinct images of a batch, their tiles joined without padding, and who shows which.

    An image that several rows show (questions about one picture) stands here once.

    pixels: (T, 3, px, px) uint8, or floating where their gradient is wanted; None where
        `features` stand for them.
    num_tiles: (images,) int64, tiles of each image.
    aspect_ratio_ids: (images,) int64, 1-based canvas ids.
    num_images: (B,) int64, images that each row shows.
    image_index: (sum of num_images,) int64, which image it is, row by row.
    features: (T, N, D) floating, what the encoder makes of the pixels; None where it is to run.
    """

    pixels: Tensor | None
    num_tiles: Tensor
    aspect_ratio_ids: Tensor
    num_images: Tensor
    image_index: Tensor
    features: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same images on `device`."""
        pixels, features = self.pixels, self.features
        return type(self)(
            None if pixels is None else pixels.to(device, non_blocking=True),
            self.num_tiles.to(device, non_blocking=True),
            self.aspect_ratio_ids.to(device, non_blocking=True),
            self.num_images.to(device, non_blocking=True),
            self.image_index.to(device, non_blocking=True),
            None if features is None else features.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class ModelInputs:
    """A batch of rows.

    A row is one document, or several packed one after the other: documents of a row do not see
    each other, nor each other's images.

    input_ids: (B, S) int64, padded on the right.
    lengths: (B,) int64, tokens of each row.
    images: None when no row has one.
    document_lengths: (B, K) int64, tokens of each document of a row, zeros behind its last; None
        where every row is one.
    """

    input_ids: Tensor
    lengths: Tensor
    images: ImageInputs | None
    document_lengths: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        images = None if self.images is None else self.images.to(device)
        documents = self.document_lengths
        return type(self)(
            self.input_ids.to(device, non_blocking=True),
            self.lengths.to(device, non_blocking=True),
            images,
            None if documents is None else documents.to(device, non_blocking=True),
        )


def stack_images(rows: Sequence[Sequence[TiledImage | EncodedImage]]) -> ImageInputs | None:
    """Join the images of rows, each object once; None when there is none.

    Raises:
        ValueError: some are encoded and some are not.
    """
    images: list[TiledImage | EncodedImage] = []
    places: dict[int, int] = {}
    image_index: list[int] = []
    for image in (image for row in rows for image in row):
        if id(image) not in places:
            places[id(image)] = len(images)
            images.append(image)
        image_index.append(places[id(image)])
    if not images:
        return None
    tiles = [image.tiles for image in images if isinstance(image, TiledImage)]
    features = [image.features for image in images if isinstance(image, EncodedImage)]
    if tiles and features:
        raise ValueError("a batch holds pictures, or what an encoder made of them, not both")
    return ImageInputs(
        pixels=torch.cat(tiles) if tiles else None,
        features=torch.cat(features) if features else None,
        num_tiles=torch.tensor([image.num_tiles for image in images]),
        aspect_ratio_ids=torch.tensor([image.aspect_ratio_id for image in images]),
        num_images=torch.tensor([len(row) for row in rows]),
        image_index=torch.tensor(image_index),
    )


def stack_examples(examples: Sequence[Example], pad_id: int) -> ModelInputs:
    """Pad rows on the right to the longest and join their images."""
    return ModelInputs(
        input_ids=torch.nn.utils.rnn.pad_sequence(
            [example.input_ids for example in examples], batch_first=True, padding_value=pad_id
        ),
        lengths=torch.tensor([len(example.input_ids) for example in examples]),
        images=stack_images([example.images for example in examples]),
    )


def stack_documents(rows: Sequence[Sequence[Example]], pad_id: int) -> ModelInputs:
    """Join the documents of each row, pad rows on the right to the longest and join their images.

    Raises:
        ValueError: a row or a document is empty.
    """
    lengths = [torch.tensor([len(example.input_ids) for example in row]) for row in rows]
    if not all(len(row) and row.all() for row in lengths):
        raise ValueError("every row needs a document, and every document a token")
    joined = [
        Example(
            torch.cat([example.input_ids for example in row]),
            torch.cat([example.loss_mask for example in row]),
            tuple(image for example in row for image in example.images),
        )
        for row in rows
    ]
    return replace(
        stack_examples(joined, pad_id),
        document_lengths=torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True),
    )


def batch_order(lengths: Sequence[int], images: Sequence[Hashable]) -> list[int]:
    """Indices of rows by length, those that show the same images side by side."""
    groups: dict[Hashable, list[int]] = {}
    for index, shown in enumerate(images):
        groups.setdefault(shown, []).append(index)
    for group in groups.values():
        group.sort(key=lambda index: lengths[index])
    ordered = sorted(groups.values(), key=lambda group: lengths[group[0]])
    return [index for group in ordered for index in group]
