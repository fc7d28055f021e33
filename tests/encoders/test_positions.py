"""Position embeddings: nothing while gates are closed, transformers' arithmetic when open."""

import pytest
import torch
from torch import Tensor
from transformers import MllamaVisionConfig
from transformers.models.mllama.modeling_mllama import (
    MllamaPrecomputedAspectRatioEmbedding,
    MllamaPrecomputedPositionEmbedding,
)

from encoders.config import VisionConfig
from encoders.positions import (
    PatchPositionEmbedding,
    TilePositionEmbedding,
    num_aspect_ratio_rows,
)
from encoders.tiling import supported_canvases
from vlm.config import VLMConfig


@pytest.fixture
def config(tiny_config: VLMConfig) -> VisionConfig:
    return tiny_config.vision


@pytest.fixture
def theirs(config: VisionConfig) -> MllamaVisionConfig:
    return MllamaVisionConfig(
        image_size=config.tile_size_px,
        patch_size=config.patch_size_px,
        hidden_size=config.hidden_size,
        max_num_tiles=config.max_num_tiles,
    )


def every_tile() -> tuple[Tensor, Tensor]:
    """Aspect-ratio id and index of every tile of every canvas."""
    tiles = [
        (number, index)
        for number, (rows, columns) in enumerate(supported_canvases(4), 1)
        for index in range(rows * columns)
    ]
    ids, index = torch.tensor(tiles).unbind(1)
    return ids, index


def padded(hidden: Tensor, ids: Tensor, index: Tensor) -> Tensor:
    """Ragged tiles as transformers has them: (canvases, max_num_tiles, N, D)."""
    grid = hidden.new_zeros(len(supported_canvases(4)), 4, *hidden.shape[1:])
    grid[ids - 1, index] = hidden
    return grid


@pytest.mark.parametrize("gate", [0.0, 0.7])
def test_tile_embeddings_equal_transformers(
    config: VisionConfig, theirs: MllamaVisionConfig, gate: float
) -> None:
    ours = TilePositionEmbedding(config)
    reference = MllamaPrecomputedAspectRatioEmbedding(theirs)
    torch.nn.init.constant_(ours.gate, gate)
    reference.load_state_dict(ours.state_dict())
    ids, index = every_tile()
    hidden = torch.randn(len(ids), config.num_patches, config.hidden_size)
    expected = reference(padded(hidden, ids, index), torch.arange(1, 9))[ids - 1, index]
    assert torch.equal(ours(hidden, ids, index), expected)
    assert torch.equal(expected, hidden) == (gate == 0.0)


@pytest.mark.parametrize("gate", [0.0, 0.7])
def test_patch_embeddings_equal_transformers(
    config: VisionConfig, theirs: MllamaVisionConfig, gate: float
) -> None:
    ours = PatchPositionEmbedding(config)
    reference = MllamaPrecomputedPositionEmbedding(theirs)
    torch.nn.init.constant_(ours.gate, gate)
    reference.load_state_dict(ours.state_dict())
    ids, index = every_tile()
    hidden = torch.randn(len(ids), config.num_tokens, config.hidden_size)
    expected = reference(padded(hidden, ids, index), torch.arange(1, 9))[ids - 1, index]
    assert torch.equal(ours(hidden, ids, index), expected)


def test_behind_a_closed_gate_every_tile_gets_the_same_patch_positions(
    config: VisionConfig,
) -> None:
    embedding = PatchPositionEmbedding(config)
    torch.nn.init.zeros_(embedding.gate)
    ids, index = every_tile()
    zeros = torch.zeros(len(ids), config.num_tokens, config.hidden_size)
    added = embedding(zeros, ids, index)
    assert torch.equal(added, embedding.embedding.expand_as(added))


def test_an_open_gate_tells_every_place_on_every_canvas_apart(config: VisionConfig) -> None:
    ids, index = every_tile()
    for embedding in (TilePositionEmbedding(config), PatchPositionEmbedding(config)):
        torch.nn.init.ones_(embedding.gate)
        zeros = torch.zeros(len(ids), config.num_tokens, config.hidden_size)
        added = embedding(zeros, ids, index).flatten(1)
        assert len(added.unique(dim=0)) == len(ids)


@pytest.mark.parametrize(("max_num_tiles", "rows"), [(1, 2), (2, 4), (4, 9)])
def test_a_table_has_a_row_for_every_canvas_and_one_for_no_image(
    max_num_tiles: int, rows: int
) -> None:
    assert num_aspect_ratio_rows(max_num_tiles) == rows
