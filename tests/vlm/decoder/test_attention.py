"""Self- and cross-attention against plain arithmetic; what is masked has no influence."""

import pytest
import torch
from torch import Tensor

from vlm.config import VLMConfig
from vlm.decoder.attention import CrossAttention, SelfAttention
from vlm.decoder.cache import TextCache
from vlm.decoder.config import DecoderConfig
from vlm.decoder.rope import rotary_table, rotate

# SDPA's fused kernel adds in another order than the loop below: float32 rounding near 1.
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
BATCH, LENGTH, IMAGE_TOKENS = 2, 6, 5


@pytest.fixture
def config(tiny_config: VLMConfig) -> DecoderConfig:
    torch.manual_seed(0)
    return tiny_config.decoder


def hidden_states(config: DecoderConfig, length: int = LENGTH) -> Tensor:
    return torch.randn(BATCH, length, config.hidden_size)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Head by head; query (B, S, H, d), key and value (B, L, kv heads, d), mask (B, S, L)."""
    heads = []
    shared_by = query.shape[2] // key.shape[2]
    for head in range(query.shape[2]):
        keys, values = key[:, :, head // shared_by], value[:, :, head // shared_by]
        scores = query[:, :, head] @ keys.transpose(1, 2) / query.shape[-1] ** 0.5
        heads.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values)
    return torch.stack(heads, dim=2)


@torch.no_grad()
def test_self_attention_is_causal_grouped_query_attention_of_rotated_heads(
    config: DecoderConfig,
) -> None:
    attention = SelfAttention(config, layer=0)
    hidden = hidden_states(config)
    positions = torch.arange(LENGTH).expand(BATCH, -1)
    rotary = rotary_table(config, positions, torch.float32)
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    expected = plain_attention(
        rotate(attention.q_proj(hidden).view(BATCH, LENGTH, config.num_heads, -1), rotary),
        rotate(attention.k_proj(hidden).view(BATCH, LENGTH, config.num_kv_heads, -1), rotary),
        attention.v_proj(hidden).view(BATCH, LENGTH, config.num_kv_heads, -1),
        causal.expand(BATCH, -1, -1),
    )
    output = attention(hidden, rotary, positions, None, None)
    torch.testing.assert_close(output, attention.o_proj(expected.flatten(2)), **TOLERANCE)


@torch.no_grad()
def test_cached_self_attention_equals_uncached_wherever_rows_stand(config: DecoderConfig) -> None:
    attention = SelfAttention(config, layer=0)
    hidden = hidden_states(config)
    positions = torch.arange(LENGTH).expand(BATCH, -1)
    rotary = rotary_table(config, positions, torch.float32)
    expected = attention(hidden, rotary, positions, None, None)
    cache = TextCache(config, BATCH, LENGTH + 3, hidden.device, hidden.dtype)
    # The first row reads four tokens and then one, the second one and then four of its own.
    done = torch.tensor([0, 0])
    for size in (4, 1, 1):
        positions = done.unsqueeze(1) + torch.arange(size)
        chosen = hidden[torch.arange(BATCH).unsqueeze(1), positions]
        rows = cache.rows(0, BATCH, int(positions.max()) + 1)
        rotary = rotary_table(config, positions, torch.float32)
        mask = rows.mask(positions, torch.float32)
        output = attention(chosen, rotary, positions, mask, rows)
        for row in range(BATCH):
            reference = expected[row, positions[row]]
            torch.testing.assert_close(output[row], reference, **TOLERANCE)
        # What the second row wrote behind its first token is overwritten before it is seen.
        done = done + torch.tensor([size, 1])


@torch.no_grad()
def test_cross_attention_is_grouped_query_attention_of_normalised_heads(
    config: DecoderConfig,
) -> None:
    attention = CrossAttention(config)
    torch.nn.init.normal_(attention.q_norm.weight)
    torch.nn.init.normal_(attention.k_norm.weight)
    hidden, images = hidden_states(config), hidden_states(config, IMAGE_TOKENS)
    mask = torch.rand(BATCH, LENGTH, IMAGE_TOKENS) < 0.5
    mask[:, :, 0] = True

    def normalised(heads: Tensor, weight: Tensor) -> Tensor:
        return weight * heads / (heads.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt()

    expected = plain_attention(
        normalised(attention.q_proj(hidden).unflatten(-1, (4, 8)), attention.q_norm.weight),
        normalised(attention.k_proj(images).unflatten(-1, (2, 8)), attention.k_norm.weight),
        attention.v_proj(images).unflatten(-1, (2, 8)),
        mask,
    )
    output = attention(hidden, attention.project_images(images), mask.unsqueeze(1))
    torch.testing.assert_close(output, attention.o_proj(expected.flatten(2)), **TOLERANCE)


@torch.no_grad()
def test_masked_image_tokens_have_no_influence(config: DecoderConfig) -> None:
    attention = CrossAttention(config)
    hidden, images = hidden_states(config), hidden_states(config, IMAGE_TOKENS)
    mask = torch.ones(BATCH, 1, LENGTH, IMAGE_TOKENS, dtype=torch.bool)
    mask[:, :, :, 3:] = False
    changed = images.clone()
    changed[:, 3:] = 100.0
    before = attention(hidden, attention.project_images(images), mask)
    after = attention(hidden, attention.project_images(changed), mask)
    assert torch.equal(before, after)


def test_tokens_that_see_nothing_attend_to_zeros_and_give_finite_gradients(
    config: DecoderConfig,
) -> None:
    attention = CrossAttention(config)
    hidden = hidden_states(config).requires_grad_()
    images = hidden_states(config, IMAGE_TOKENS).requires_grad_()
    mask = torch.zeros(BATCH, 1, LENGTH, IMAGE_TOKENS, dtype=torch.bool)
    mask[0, :, 3:] = True
    output = attention(hidden, attention.project_images(images), mask)
    assert torch.equal(output[0, :3], torch.zeros_like(output[0, :3]))
    assert torch.equal(output[1], torch.zeros_like(output[1]))
    output.pow(2).sum().backward()
    assert hidden.grad is not None and images.grad is not None
    assert not hidden.grad[1].any() and not images.grad[1].any()
    assert hidden.grad[0, 3:].any() and images.grad[0].any()
    assert hidden.grad.isfinite().all() and images.grad.isfinite().all()
