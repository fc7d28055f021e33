"""Rotary embeddings equal transformers', and depend on distances only."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from vlm.decoder.config import DecoderConfig, RopeScaling
from vlm.decoder.rope import rotary_frequencies, rotary_table, rotate
from vlm.weights.mllama_schema import rope_words

SCALINGS: dict[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"kind": "linear", "factor": 4.0},
    "dynamic": {"kind": "dynamic", "factor": 1.3, "original_max_positions": 64},
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
    "yarn untruncated": {
        "kind": "yarn",
        "factor": 4.0,
        "original_max_positions": 512,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
    "yarn with its own attention factor": {
        "kind": "yarn",
        "factor": 4.0,
        "original_max_positions": 512,
        "attention_factor": 0.8,
    },
    "yarn that stretches nothing": {
        "kind": "yarn",
        "factor": 1.0,
        "original_max_positions": 512,
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
    max_positions = ours.max_positions
    if ours.rope_scaling is not None:
        words = rope_words(ours.rope_scaling.kind)
        given = {word: getattr(ours.rope_scaling, name) for name, word in words.items()}
        parameters |= {word: value for word, value in given.items() if value is not None}
        if ours.rope_scaling.kind == "dynamic":
            max_positions = parameters.pop("original_max_position_embeddings")
    theirs = LlamaConfig(
        hidden_size=256,
        num_attention_heads=2,
        max_position_embeddings=max_positions,
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
    # To the bit: at position 100,000 the last bit of a frequency is worth 0.01 radians.
    assert torch.equal(frequencies.view(-1), expected)
    assert factor == expected_factor


@pytest.mark.parametrize("name", SCALINGS)
def test_rotation_equals_transformers(name: str) -> None:
    ours, theirs = both_configs(name)
    heads = torch.randn(2, 5, 2, ours.head_size)
    positions = torch.tensor([[0, 1, 2, 3, 4], [90, 91, 92, 93, 94]])
    rotated = rotate(heads, rotary_table(ours, positions, torch.float32))
    for row in (slice(0, 1), slice(1, 2)):
        # A row at a time: the longest row of a batch sets the base of `dynamic` there.
        cos, sin = LlamaRotaryEmbedding(theirs)(heads[row], positions[row])
        expected, _ = apply_rotary_pos_emb(heads[row], heads[row], cos, sin, unsqueeze_dim=2)
        # The same operations on the same numbers.
        assert torch.equal(rotated[row], expected)


def test_dynamic_frequencies_follow_the_rows_own_length() -> None:
    config, _ = both_configs("dynamic")
    positions = torch.arange(90).expand(2, -1)
    # The second row has 70 tokens and padding, the first none.
    cosines, sines = rotary_table(config, positions, torch.float32, torch.tensor([90, 70]))
    alone, _ = rotary_table(config, positions[:1, :70], torch.float32)
    assert torch.equal(cosines[1:, :70], alone)
    assert not torch.equal(cosines[0], cosines[1]) and not torch.equal(sines[0], sines[1])
    within, _ = rotary_table(config, positions[:1, :64], torch.float32)
    unscaled = config.model_copy(update={"rope_scaling": None})
    assert torch.equal(within, rotary_table(unscaled, positions[:1, :64], torch.float32)[0])


@pytest.mark.parametrize(
    ("scaling", "reason"),
    [
        ({"kind": "linear", "factor": 2.0, "beta_fast": 8.0}, "'linear' does not read it"),
        ({"kind": "llama3", "factor": 2.0}, "needs original_max_positions"),
        ({"kind": "longrope", "factor": 2.0}, "'linear', 'dynamic', 'llama3' or 'yarn'"),
    ],
)
def test_a_scaling_whose_fields_do_not_suit_its_kind_is_refused(
    scaling: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        RopeScaling.model_validate(scaling)


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
