"""Pictures and texts in one space: what the encoder stage trains and its folder holds.

Axes: `B` batch, `S` text length, `E` embedding.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.text import build_text_tower
from encoders.vit import VisionEncoder
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.inputs import ImageInputs
from vlm.model import VisionLanguageModel
from vlm.weights.folder import load_component, read_component, read_folder_config

# CLIP's start of the temperature: https://arxiv.org/abs/2103.00020, section 2.5.
CLIP_START_SCALE = 1 / 0.07
# SigLIP's start: https://arxiv.org/abs/2303.15343, section 3.
SIGLIP_START_SCALE = 10.0
SIGLIP_START_BIAS = -10.0


class ContrastiveHead(nn.Module):
    """What the contrastive loss needs beside the two towers: image projection and temperature.

    An image's embedding is the mean of its tokens' features, projected.

    Args:
        sigmoid: whether the loss is SigLIP's, which has a bias.
    """

    def __init__(self, features_size: int, embedding_size: int, sigmoid: bool) -> None:
        super().__init__()
        self.image_projection = nn.Linear(features_size, embedding_size, bias=False)
        start = SIGLIP_START_SCALE if sigmoid else CLIP_START_SCALE
        # Of shape (1,): a number without an axis cannot be sharded.
        self.log_scale = nn.Parameter(torch.tensor([start]).log())
        self.bias = nn.Parameter(torch.tensor([SIGLIP_START_BIAS])) if sigmoid else None

    def forward(self, features: Tensor, images: ImageInputs) -> Tensor:
        """Token features (T, N, D) to image embeddings (images, E), one per image."""
        per_tile = features.mean(dim=1)  # (T, D)
        image_of_tile = torch.arange(
            len(images.num_tiles), device=features.device
        ).repeat_interleave(images.num_tiles)
        sums = per_tile.new_zeros(len(images.num_tiles), per_tile.shape[1])
        sums = sums.index_add(0, image_of_tile, per_tile)
        pooled = sums / images.num_tiles.unsqueeze(1)
        embeddings: Tensor = self.image_projection(pooled)
        return embeddings


class TwoTowers(nn.Module):
    """Encoder, text tower and head: pictures and texts to one space."""

    def __init__(
        self, encoder: VisionEncoder, text_tower: nn.Module, head: ContrastiveHead
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.text_tower = text_tower
        self.head = head

    def forward(self, images: ImageInputs, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-length image and text embeddings, each (B, E)."""
        return self.embed_images(images), self.embed_texts(text_ids)

    def embed_images(self, images: ImageInputs) -> Tensor:
        """Unit-length embeddings (images, E)."""
        features = self.encoder(images.pixels, images.num_tiles, images.aspect_ratio_ids)
        return F.normalize(self.head(features, images), dim=-1)

    def embed_texts(self, text_ids: Tensor) -> Tensor:
        """Unit-length embeddings (B, E) of texts (B, S), padded, each ending in its end token."""
        return F.normalize(self.text_tower(text_ids), dim=-1)


def load_two_towers(
    folder: Path, device: torch.device, dtype: torch.dtype
) -> tuple[TwoTowers, Processor, int]:
    """Load an encoder stage's folder, frozen.

    Returns:
        the towers, what makes tiles and tokens, and the most tokens of a text.
    Raises:
        UserError: the folder is missing, damaged, of another stage, or older than the head that
            it must hold.
    """
    config = read_folder_config(folder)
    if config.text_tower is None:
        raise UserError(
            f"{folder} (stage {config.stage}) has no text tower; pictures and texts are compared "
            "by the folder of an encoder stage"
        )
    head_tensors = read_component(folder, "contrastive_head")
    processor = Processor.from_folder(folder, config.model.vision)
    tokenizer, tower = processor.tokenizer, config.text_tower
    tokenizer.check_fits(tower.vocab_size)
    with torch.device("meta"):
        encoder = VisionLanguageModel(config.model, tokenizer.image_id).encoder
    encoder.to_empty(device=device)
    # open_clip's tower has tensors that are no weights, and makes them at birth.
    text_tower = build_text_tower(tower, tokenizer.pad_id, tokenizer.eot_id).to(device)
    sizes = config.model.vision.output_size, tower.embedding_size
    head = ContrastiveHead(*sizes, sigmoid="bias" in head_tensors).to(device)
    load_component(encoder, read_component(folder, "encoder"), "encoder", folder)
    load_component(text_tower, read_component(folder, "text_tower"), "text_tower", folder)
    load_component(head, head_tensors, "contrastive_head", folder)
    towers = TwoTowers(encoder, text_tower, head).to(dtype)
    return towers.requires_grad_(False).eval(), processor, tower.max_tokens
