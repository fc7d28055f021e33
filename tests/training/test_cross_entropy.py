"""Logits in chunks give the loss and the gradients of logits at once, and take no more memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.cross_entropy import score_tokens, summed_cross_entropy, tokens_at_once
from training.rehearsal import LiveMemory
from vlm.decoder.config import DecoderConfig
from vlm.decoder.stack import Decoder

VOCAB_SIZE, WIDTH = 700, 16
# Logits of seven tokens, so that 20 tokens are two chunks and a rest.
SEVEN = 7 * 4 * VOCAB_SIZE
ALL = 2**30


def make_decoder(tied: bool = False, vocab_size: int = VOCAB_SIZE) -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        DecoderConfig(
            vocab_size=vocab_size,
            num_extra_embeddings=3,
            hidden_size=WIDTH,
            intermediate_size=16,
            num_layers=4,
            num_heads=2,
            num_kv_heads=1,
            max_positions=8,
            tie_embeddings=tied,
        )
    )


def make_tokens(num_tokens: int, vocab_size: int = VOCAB_SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = 3 * torch.randn(num_tokens, WIDTH, generator=generator)
    return hidden.requires_grad_(), torch.randint(vocab_size, (num_tokens,), generator=generator)


def loss_and_gradients(
    decoder: Decoder, hidden: Tensor, targets: Tensor, max_bytes: int
) -> list[Tensor]:
    """The loss, and its gradients times 0.3: a factor stands before every step's loss."""
    loss = summed_cross_entropy(decoder, hidden, targets, max_bytes)
    weight = decoder.embed_tokens.weight if decoder.config.tie_embeddings else decoder.output_weight
    return [loss, *torch.autograd.grad(0.3 * loss, [hidden, weight])]


def grown_bytes(decoder: Decoder, hidden: Tensor, targets: Tensor) -> int:
    """The most that forward and backward pass have alive beside weights, states and targets."""
    live = LiveMemory(torch.device("cpu"))
    for tensor in (hidden, targets, decoder.output_weight):
        live.count(tensor)
    before = live.now
    with live:
        summed_cross_entropy(decoder, hidden, targets, SEVEN).backward()  # type: ignore[no-untyped-call]
    return live.peak - before


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 20])
def test_chunks_give_the_same_loss_and_gradients(num_tokens: int, tied: bool) -> None:
    decoder, (hidden, targets) = make_decoder(tied), make_tokens(num_tokens)
    plain = loss_and_gradients(decoder, hidden, targets, ALL)
    chunked = loss_and_gradients(decoder, hidden, targets, SEVEN)
    for one, other in zip(plain, chunked, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        # Sums over tokens and words run in another order: a few roundings of 6e-8.
        assert (one - other).norm() <= 1e-6 * one.norm()


def test_logits_that_fit_are_computed_at_once_to_the_bit() -> None:
    decoder, (hidden, targets) = make_decoder(), make_tokens(7)
    expected = F.cross_entropy(decoder.logits(hidden), targets, reduction="sum")
    loss = summed_cross_entropy(decoder, hidden, targets, SEVEN)
    assert torch.equal(loss, expected)
    (gradient,) = torch.autograd.grad(loss, [decoder.output_weight])
    assert torch.equal(gradient, torch.autograd.grad(expected, [decoder.output_weight])[0])


def test_memory_does_not_grow_with_the_number_of_tokens() -> None:
    decoder, grown = make_decoder(), []
    for num_tokens in (70, 700):
        hidden, targets = make_tokens(num_tokens)
        grown.append(grown_bytes(decoder, hidden, targets))
        grown[-1] -= num_tokens * WIDTH * 4  # the gradient of the hidden states
    # At once, 700 tokens would take 1.8 MB more for each copy of their logits.
    assert abs(grown[1] - grown[0]) < 2_000
    assert grown[1] < 4 * SEVEN + 2 * 4 * VOCAB_SIZE * WIDTH


def test_a_frozen_output_layer_takes_no_gradient_and_no_room_for_one() -> None:
    decoder, (hidden, targets) = make_decoder(), make_tokens(20)
    peaks = []
    for learns in (True, False):
        decoder.requires_grad_(learns)
        peaks.append(grown_bytes(decoder, hidden, targets))
    assert peaks[0] - peaks[1] >= 4 * VOCAB_SIZE * WIDTH
    assert hidden.grad is not None


def test_bf16_products_are_those_of_autocast() -> None:
    decoder, (hidden, targets) = make_decoder(), make_tokens(20)
    with torch.autocast("cpu", torch.bfloat16):
        plain = loss_and_gradients(decoder, hidden, targets, ALL)
        chunked = loss_and_gradients(decoder, hidden, targets, SEVEN)
    exact = loss_and_gradients(decoder, hidden, targets, ALL)
    for one, other, right in zip(plain, chunked, exact, strict=True):
        assert other.dtype == torch.float32
        # Products of bf16 are 2^-9 off; both ways are equally far from float32.
        assert 0 < (other - right).norm() <= 1.2 * (one - right).norm() + 1e-3 * right.norm()


def test_gradients_are_given_once() -> None:
    decoder, (hidden, targets) = make_decoder(), make_tokens(20)
    loss = summed_cross_entropy(decoder, hidden, targets, SEVEN)
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()  # type: ignore[no-untyped-call]


@torch.no_grad()
def test_scores_in_chunks_are_those_at_once() -> None:
    decoder, (hidden, targets) = make_decoder(), make_tokens(20)
    targets[::2] = decoder.logits(hidden[::2]).argmax(dim=-1)
    total, right = score_tokens(decoder, hidden, targets, SEVEN)
    plain_total, plain_right = score_tokens(decoder, hidden, targets, ALL)
    assert total == pytest.approx(plain_total, rel=1e-6) and torch.equal(right, plain_right)
    assert right[::2].all() and not right.all()


def test_a_chunk_of_a_large_vocabulary_is_hundreds_of_tokens_and_never_none() -> None:
    assert tokens_at_once(128_256) == 523
    assert tokens_at_once(128_256, 1) == 1
