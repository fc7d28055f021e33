"""The text tower of the contrastive stage: open_clip's text transformer."""

from open_clip.transformer import TextTransformer
from torch import nn

from encoders.config import TextTowerConfig


def build_text_tower(config: TextTowerConfig, pad_id: int, eos_id: int) -> nn.Module:
    """Return a module that maps (B, S) int64 token ids to (B, embedding_size) embeddings.

    Attention is bidirectional over the tokens that are not `pad_id`; the embedding is read at the
    first `eos_id`, which must be present in every row.
    """
    return TextTransformer(
        context_length=config.max_tokens,
        vocab_size=config.vocab_size,
        width=config.hidden_size,
        heads=config.num_heads,
        layers=config.num_layers,
        output_dim=config.embedding_size,
        no_causal_mask=True,
        use_pad_mask=True,
        pad_id=pad_id,
        eos_id=eos_id,
        pool_type="eos",
    )
