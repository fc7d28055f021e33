"""The contrastive text tower: padding, direction of attention, where it is read."""

import pytest
import torch
from torch import Tensor, nn

from encoders.config import TextTowerConfig
from encoders.text import build_text_tower

PAD, EOS = 19, 18
CONFIG = TextTowerConfig(
    vocab_size=20, max_tokens=12, hidden_size=16, num_layers=2, num_heads=2, embedding_size=8
)


@pytest.fixture
def tower() -> nn.Module:
    torch.manual_seed(0)
    return build_text_tower(CONFIG, PAD, EOS).requires_grad_(False)


def embed(tower: nn.Module, *rows: list[int]) -> Tensor:
    return tower(torch.tensor(rows))


def test_padding_and_batch_mates_change_nothing(tower: nn.Module) -> None:
    short, long = [1, 2, 3, EOS], [7, 6, 5, 4, 3, 2, EOS]
    alone = embed(tower, short)
    assert alone.shape == (1, CONFIG.embedding_size)
    together = embed(tower, short + [PAD] * 3, long)
    # Rows of another length take other kernels: float32 rounding of values around 1.
    torch.testing.assert_close(together[:1], alone, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(together[1:], embed(tower, long), rtol=0.0, atol=1e-5)


def test_words_and_their_order_matter(tower: nn.Module) -> None:
    embeddings = embed(tower, [1, 2, 3, EOS], [1, 3, 2, EOS], [1, 2, 4, EOS])
    distances = torch.pdist(embeddings)
    assert distances.min() > 1e-2


def test_attention_also_looks_forward(tower: nn.Module) -> None:
    # What stands behind the end reaches it, which is impossible in a causal tower.
    first, second = embed(tower, [1, 2, EOS, 3], [1, 2, EOS, 4])
    assert (first - second).norm() > 1e-3


def test_the_embedding_is_read_at_the_first_end(tower: nn.Module) -> None:
    states: list[Tensor] = []
    tower.ln_final.register_forward_hook(lambda *call: states.append(call[2]))
    embedding = embed(tower, [1, EOS, 2, EOS])
    expected = states[0][:, 1] @ tower.text_projection
    torch.testing.assert_close(embedding, expected)
