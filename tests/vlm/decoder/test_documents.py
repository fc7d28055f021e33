"""Where tokens of packed rows stand, and that both kinds of mask say the same."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from vlm.config import VLMConfig
from vlm.decoder.attention import SelfAttention
from vlm.decoder.documents import (
    attend_in_blocks,
    block_document_mask,
    document_mask,
    document_places,
)
from vlm.decoder.rope import rotary_table

# Both attend to the same tokens and add in another order: float32 rounding near 1.
TOLERANCE = {"rtol": 0.0, "atol": 2e-6}


def test_tokens_are_placed_in_their_documents_and_padding_is_one_of_its_own() -> None:
    places = document_places(torch.tensor([[3, 2, 1], [4, 0, 0], [2, 2, 0]]), 7)
    assert places.ids.tolist() == [
        [0, 0, 0, 1, 1, 2, 3],
        [0, 0, 0, 0, 3, 3, 3],
        [0, 0, 1, 1, 3, 3, 3],
    ]
    assert places.positions.tolist() == [
        [0, 1, 2, 0, 1, 0, 0],
        [0, 1, 2, 3, 0, 1, 2],
        [0, 1, 0, 1, 0, 1, 2],
    ]
    assert places.lengths.tolist() == [
        [3, 3, 3, 2, 2, 1, 1],
        [4, 4, 4, 4, 3, 3, 3],
        [2, 2, 2, 2, 3, 3, 3],
    ]


def test_a_row_cut_short_keeps_the_places_and_lengths_of_whole_documents() -> None:
    lengths = torch.tensor([[3, 2], [5, 0]])
    whole, cut = document_places(lengths, 5), document_places(lengths, 4)
    for name in ("ids", "positions", "lengths"):
        assert torch.equal(getattr(cut, name), getattr(whole, name)[:, :4])


def test_a_token_attends_to_itself_and_to_earlier_tokens_of_its_document() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1, 2]])
    (mask,) = document_mask(ids, 64)
    assert mask.int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 0, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ]
    ]


def random_ids(num_rows: int, num_tokens: int) -> Tensor:
    rng = random.Random(0)
    lengths = torch.zeros(num_rows, 9, dtype=torch.int64)
    for row in lengths:
        left, place = num_tokens - rng.randint(0, 20), 0
        while left > 0:
            row[place] = min(left, rng.randint(1, 70)) if place < 8 else left
            left, place = left - int(row[place]), place + 1
    return document_places(lengths, num_tokens).ids


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_mask_in_blocks_says_what_the_dense_one_says(kv_heads: int) -> None:
    ids = random_ids(2, 300)  # more than one block of 128
    blocks, dense = block_document_mask(ids), document_mask(ids, 16)
    assert isinstance(dense, Tensor)
    assert torch.equal(create_mask(blocks.mask_mod, 2, None, 300, 300, "cpu"), dense)
    assert blocks.sparsity() > 0  # some blocks are skipped
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 300, 16) for heads in (4, kv_heads, kv_heads))
    expected = F.scaled_dot_product_attention(
        query, key, value, attn_mask=dense, enable_gqa=kv_heads < 4
    )
    found = attend_in_blocks(query, key, value, blocks)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    coarse = attend_in_blocks(query, key, value.bfloat16(), blocks)
    # bf16 keeps 8 bits of values near 1.
    torch.testing.assert_close(coarse, expected.bfloat16(), rtol=0.0, atol=5e-2)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_layer_takes_a_mask_in_blocks_also_under_autocast(tiny_config: VLMConfig) -> None:
    torch.manual_seed(0)
    config = tiny_config.decoder.model_copy(update={"head_size": 16})
    layer = SelfAttention(config, layer=0)
    places = document_places(torch.tensor([[40, 60, 41], [100, 20, 0]]), 141)
    rotary = rotary_table(config, places.positions, torch.float32, places.lengths)
    hidden = torch.randn(2, 141, config.hidden_size)
    blocks, dense = block_document_mask(places.ids), document_mask(places.ids, 16)
    expected, found = (layer(hidden, rotary, places.positions, m, None) for m in (dense, blocks))
    torch.testing.assert_close(found, expected, **TOLERANCE)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(hidden, rotary, places.positions, blocks, None)
    # bf16 keeps 8 bits of values near 1.
    torch.testing.assert_close(found.float(), expected, rtol=0.0, atol=3e-2)


@pytest.mark.gpu
def test_on_a_gpu_blocks_give_the_outputs_and_gradients_of_the_dense_mask() -> None:
    ids = random_ids(2, 300).cuda()
    blocks = document_mask(ids, 64)
    assert not isinstance(blocks, Tensor)
    dense = document_mask(ids, 8)
    torch.manual_seed(0)
    heads = [torch.randn(2, n, 300, 64, device="cuda", requires_grad=True) for n in (4, 2, 2)]
    expected = F.scaled_dot_product_attention(*heads, attn_mask=dense, enable_gqa=True)
    found = attend_in_blocks(*heads, blocks)
    # The fused kernel may multiply in TF32: 10 bits.
    torch.testing.assert_close(found, expected, rtol=0.0, atol=5e-3)
    gradients = [torch.autograd.grad(out.square().sum(), heads) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=5e-2)
