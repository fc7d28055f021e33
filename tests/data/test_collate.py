"""Rows to batches: padding, shared pictures, devices."""

import random
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from data.collate import collate_chats, collate_pairs
from data.encode import ChatRows, PairRow
from data.shapes import SceneConfig, make_scene, render
from encoders.tiling import TiledImage, tile_picture
from vlm.inputs import Example

PAD = 7


def tiled(seed: int) -> TiledImage:
    scene = make_scene(random.Random(seed), SceneConfig(tile_size_px=24))
    return tile_picture(render(scene), 16, 4)


def row(ids: list[int], supervised: list[int], *images: TiledImage) -> Example:
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[supervised] = True
    return Example(torch.tensor(ids), mask, images)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        return [t for field in fields(value) for t in tensors(getattr(value, field.name))]
    return []


def test_rows_are_padded_on_the_right_and_padding_is_never_supervised() -> None:
    samples = [
        ChatRows("a", (row([1, 2, 3, 4], [2, 3]), row([5, 6], [1]))),
        ChatRows("b", (row([8, 9, 1], [2]),)),
    ]
    batch = collate_chats(samples, PAD)
    assert batch.keys == ("a", "b")
    assert batch.inputs.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, PAD, PAD], [8, 9, 1, PAD]]
    assert batch.inputs.lengths.tolist() == [4, 2, 3]
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert batch.num_tokens == 9
    assert batch.inputs.images is None


def test_the_first_token_is_not_supervised_and_the_row_keeps_its_own_mask() -> None:
    example = row([1, 2, 3], [0, 1, 2])
    batch = collate_chats([ChatRows("a", (example,))], PAD)
    assert batch.loss_mask.tolist() == [[False, True, True]]
    assert example.loss_mask.all()


def test_a_picture_of_several_rows_stands_in_the_batch_once() -> None:
    shared, other = tiled(0), tiled(1)
    samples = [
        ChatRows("a", (row([1], [], shared), row([2], [], shared))),
        ChatRows("b", (row([3], []),)),
        ChatRows("c", (row([4], [], other, other),)),
    ]
    images = collate_chats(samples, PAD).inputs.images
    assert images is not None
    assert images.pixels.equal(torch.cat([shared.tiles, other.tiles]))
    assert images.num_tiles.tolist() == [len(shared.tiles), len(other.tiles)]
    assert images.num_images.tolist() == [1, 1, 0, 2]
    assert images.image_index.tolist() == [0, 0, 1, 1]


def test_packed_rows_join_what_fits_and_supervise_no_first_token_of_a_document() -> None:
    shared, other = tiled(0), tiled(1)
    samples = [
        ChatRows("a", (row([1, 2, 3], [0, 2], shared), row([4, 5], [0, 1], shared, other))),
        ChatRows("b", (row([6, 7, 8, 9], [0, 3]),)),
    ]
    batch = collate_chats(samples, PAD, sequence_tokens=6)
    assert batch.keys == ("a", "b")
    inputs = batch.inputs
    assert inputs.input_ids.tolist() == [[6, 7, 8, 9, 4, 5], [1, 2, 3, PAD, PAD, PAD]]
    assert batch.loss_mask.int().tolist() == [[0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0]]
    assert inputs.document_lengths is not None
    assert inputs.document_lengths.tolist() == [[4, 2], [3, 0]]
    assert inputs.lengths.tolist() == [6, 3]
    assert (batch.num_tokens, batch.padded_tokens) == (9, 12)
    assert inputs.images is not None
    assert inputs.images.num_images.tolist() == [2, 1]
    # Pictures are numbered as rows show them, each once.
    assert inputs.images.image_index.tolist() == [0, 1, 0]
    assert inputs.images.pixels.equal(torch.cat([shared.tiles, other.tiles]))


def test_packing_keeps_every_document_and_the_terms_of_its_loss() -> None:
    rng = random.Random(0)
    samples = [
        ChatRows(str(n), tuple(row([n + 1] * length, [0, length - 1]) for length in lengths))
        for n, lengths in enumerate([rng.choices(range(2, 20), k=3) for _ in range(20)])
    ]
    apart, packed = collate_chats(samples, PAD), collate_chats(samples, PAD, sequence_tokens=40)
    assert packed.loss_mask.sum() == apart.loss_mask.sum()
    assert packed.num_tokens == apart.num_tokens
    assert packed.padded_tokens < apart.padded_tokens
    lengths = packed.inputs.document_lengths
    assert lengths is not None and torch.equal(lengths.sum(1), packed.inputs.lengths)
    assert packed.inputs.input_ids.shape[1] <= 40
    found = [
        ids[start:end].tolist()
        for ids, row_lengths in zip(packed.inputs.input_ids, lengths, strict=True)
        for start, end in zip(
            (row_lengths.cumsum(0) - row_lengths).tolist(),
            row_lengths.cumsum(0).tolist(),
            strict=True,
        )
        if end > start
    ]
    given = [e.input_ids.tolist() for sample in samples for e in sample.examples]
    assert sorted(found) == sorted(given)


def test_pairs_keep_their_order_and_count_their_tokens_without_padding() -> None:
    pictures = [tiled(seed) for seed in range(3)]
    texts = [[1, 2], [3], [4, 5, 6]]
    rows = [
        PairRow(f"k{i}", image, torch.tensor(ids))
        for i, (image, ids) in enumerate(zip(pictures, texts, strict=True))
    ]
    batch = collate_pairs(rows, PAD)
    assert batch.keys == ("k0", "k1", "k2")
    assert batch.text_ids.tolist() == [[1, 2, PAD], [3, PAD, PAD], [4, 5, 6]]
    assert batch.num_tokens == 6
    assert batch.images.pixels.equal(torch.cat([image.tiles for image in pictures]))
    assert batch.images.aspect_ratio_ids.tolist() == [image.aspect_ratio_id for image in pictures]


def test_every_tensor_of_a_batch_moves_to_the_device() -> None:
    image = tiled(0)
    chats = collate_chats([ChatRows("a", (row([1, 2], [1], image),))], PAD, sequence_tokens=2)
    pairs = collate_pairs([PairRow("a", image, torch.tensor([1]))], PAD)
    for batch, count in ((chats, 9), (pairs, 6)):
        moved = tensors(batch.to(torch.device("meta")))
        assert len(moved) == count
        assert all(tensor.device.type == "meta" for tensor in moved)
        assert batch.to(torch.device("meta")).keys == batch.keys
