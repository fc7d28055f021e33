"""Rotary embeddings equal transformers', and depend on distances only."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from vlm.decoder.config import DecoderConfig, RopeScaling
from vlm.decoder.rope import rotary_frequencies, rotary_table, rotate

SCALINGS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"kind": "linear", "factor": 4.0, "original_max_positions": 128},
    "llama3": {"kind": "llama3", "factor": 8.0, "original_max_positions": 8192},
    "llama3 narrow": {
        "kind": "llama3",
        "factor": 32.0,
        "original_max_positions": 256,
        "low_freq_factor": 0.5,
        "high_freq_factor": 8.0,
    },
    "yarn": {"kind": "yarn", "factor": 16.0, "original_max_positions": 4096},
    "yarn narrow": {
        "kind": "yarn",
        "factor": 4.0,
        "original_max_positions": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
}


def both_configs(name: str) -> tuple[DecoderConfig, LlamaConfig]:
    """The same rotary settings in our words and in transformers'."""
    scaling = SCALINGS[name]
    ours = DecoderConfig(
        vocab_size=8,
        hidden_size=256,
        intermediate_size=8,
        num_layers=4,
        num_heads=2,
        num_kv_heads=1,
        max_positions=131072,
        rope_theta=500_000.0,
        rope_scaling=None if scaling is None else RopeScaling.model_validate(scaling),
    )
    parameters: dict[str, Any] = {"rope_theta": ours.rope_theta, "rope_type": "default"}
    if scaling is not None:
        words = {"kind": "rope_type", "original_max_positions": "original_max_position_embeddings"}
        # Those of RopeScaling's defaults that this kind does not read would only warn.
        known = {
            "llama3": ("low_freq_factor", "high_freq_factor"),
            "yarn": ("beta_fast", "beta_slow"),
        }.get(scaling["kind"], ())
        set_fields = RopeScaling.model_validate(scaling).model_dump()
        kept = {"kind", "factor", *known}
        if scaling["kind"] != "linear":
            kept.add("original_max_positions")
        parameters |= {words.get(k, k): v for k, v in set_fields.items() if k in kept}
    theirs = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    return ours, theirs


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_equal_transformers(name: str) -> None:
    ours, theirs = both_configs(name)
    frequencies, factor = rotary_frequencies(ours, torch.device("cpu"))
    kind = theirs.rope_parameters["rope_type"]
    if kind == "default":
        expected, expected_factor = LlamaRotaryEmbedding.compute_default_rope_parameters(theirs)
    else:
        expected, expected_factor = ROPE_INIT_FUNCTIONS[kind](theirs)
    # theta**-x here, 1 / theta**x there: a few units in the last place of float32.
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0.0)
    assert factor == pytest.approx(expected_factor)


@pytest.mark.parametrize("name", SCALINGS)
def test_rotation_equals_transformers(name: str) -> None:
    ours, theirs = both_configs(name)
    heads = torch.randn(2, 5, 2, ours.head_size)
    positions = torch.tensor([[0, 1, 2, 3, 4], [90, 91, 92, 93, 94]])
    rotated = rotate(heads, rotary_table(ours, positions, torch.float32))
    cos, sin = LlamaRotaryEmbedding(theirs)(heads, positions)
    expected, _ = apply_rotary_pos_emb(heads, heads, cos, sin, unsqueeze_dim=2)
    # Frequencies differ by 1e-6 relatively, so angles of up to 94 by up to 1e-4.
    torch.testing.assert_close(rotated, expected, rtol=0.0, atol=5e-4)


def test_attention_scores_depend_on_distances_only() -> None:
    config, _ = both_configs("llama3")
    query, key = torch.randn(2, 1, 1, 2, config.head_size).unbind(0)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        tables = [
            rotary_table(config, torch.tensor([[position]]), torch.float32)
            for position in (query_position, key_position)
        ]
        return (rotate(query, tables[0]) * rotate(key, tables[1])).sum(-1)

    # Float32 angles around 100 are exact to 1e-5; scores of 128 channels are around 10.
    torch.testing.assert_close(score(109, 102), score(7, 0), rtol=0.0, atol=2e-3)
    assert (score(7, 0) - score(8, 0)).abs().min() > 1e-2


def test_position_zero_is_not_rotated() -> None:
    config, _ = both_configs("llama3")
    heads = torch.randn(1, 1, 2, config.head_size)
    table = rotary_table(config, torch.zeros(1, 1, dtype=torch.int64), torch.float32)
    assert torch.equal(rotate(heads, table), heads)
