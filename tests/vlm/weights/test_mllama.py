"""Mllama's configuration and names in our words and back: everything is read, nothing guessed."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_mllama import get_all_supported_aspect_ratios

from encoders.positions import num_aspect_ratio_rows
from encoders.tiling import supported_canvases
from vlm.config import PACKAGE_ROOT, VLMConfig, load_config
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.mllama import config_from_mllama, config_to_mllama
from vlm.weights.mllama_names import mllama_name, our_name

Make = Callable[..., MllamaForConditionalGeneration]
Copy = Callable[[MllamaForConditionalGeneration], VisionLanguageModel]
IDS = {"image_token_id": 96, "bos_id": 1, "eos_ids": [2], "pad_id": 0, "dtype": "float32"}
# As transformers 4.45 wrote Llama 3.2's: defaults are partly left out, generation settings are in.
OLD_LAYOUT = {
    "architectures": ["MllamaForConditionalGeneration"],
    "image_token_index": 128256,
    "model_type": "mllama",
    "text_config": {
        "_name_or_path": "",
        "add_cross_attention": False,
        "architectures": None,
        "bad_words_ids": None,
        "bos_token_id": 128000,
        "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": None,
        "dropout": 0,
        "early_stopping": False,
        "eos_token_id": [128001, 128008, 128009],
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "is_decoder": False,
        "max_length": 20,
        "model_type": "mllama_text_model",
        "pad_token_id": 128004,
        "pruned_heads": {},
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "vision_config": {
        "image_size": 448,
        "max_num_tiles": 4,
        "model_type": "mllama_vision_model",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
}


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one dotted key set."""
    copy = deepcopy(config)
    *sections, key = path.split(".")
    inner = copy
    for section in sections:
        inner = inner[section]
    inner[key] = value
    return copy


@pytest.fixture
def saved(make_mllama: Make, tmp_path: Path) -> Path:
    make_mllama().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def content(saved: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((saved / "config.json").read_text())
    return read


def test_names_and_shapes_of_a_saved_mllama_are_ours_one_to_one(
    saved: Path, content: dict[str, Any]
) -> None:
    ours = VisionLanguageModel(config_from_mllama(content), 96).state_dict()
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert {our_name(name): shape for name, shape in theirs.items()} == {
        name: tuple(tensor.shape) for name, tensor in ours.items()
    }
    assert {mllama_name(name) for name in ours} == set(theirs)


def test_names_of_the_model_in_memory_are_read_too(make_mllama: Make) -> None:
    theirs = make_mllama().state_dict()
    names = [our_name(name) for name in theirs]
    assert None not in names and len(set(names)) == len(theirs)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head",
        "vision_model.transformer.layers.0.fc1.weight",
        "vision_model.transformer.layers.x.mlp.fc1.weight",
        "vision_model.local_layers.0.mlp.fc1.weight",
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
        "encoder.class_embedding",
        "model.vision_model",
        "multi_modal_projector.linear_1.weight",
    ],
)
def test_names_that_mllama_does_not_have_are_unknown(name: str) -> None:
    assert our_name(name) is None


def test_our_tensors_without_a_place_in_mllama_are_unknown() -> None:
    assert mllama_name("projector.layers.2.weight") is None
    assert mllama_name("decoder.layers.3.self_attn.q_proj.bias") is None
    assert mllama_name("text_tower.token_embedding.weight") is None


@pytest.mark.parametrize("max_num_tiles", range(1, 7))
def test_tables_of_canvases_have_transformers_rows_in_its_order(max_num_tiles: int) -> None:
    ratios = get_all_supported_aspect_ratios(max_num_tiles)
    assert list(supported_canvases(max_num_tiles)) == ratios
    assert num_aspect_ratio_rows(max_num_tiles) == len(ratios) + 1


def test_the_old_layout_is_the_11b_preset(content: dict[str, Any]) -> None:
    preset = load_config(
        VLMConfig,
        PACKAGE_ROOT / "configs" / "model" / "llama3_2_11b.yaml",
        [
            "projector.kind=linear",
            "vision.local_attention=image",
            "vision.padding_tiles=attend",
        ],
    )
    assert config_from_mllama(OLD_LAYOUT) == preset


def test_indices_of_intermediate_states_mean_what_their_writer_computes(
    content: dict[str, Any],
) -> None:
    """Meta and transformers before 4.55 take entering states, transformers since then leaving."""
    indices = {"4.45.0.dev0": (0, 2), "4.54.1": (0, 2), "4.55.0": (1, 3), "5.24.0": (1, 3)}
    for version, expected in indices.items():
        read = config_from_mllama(changed(content, "transformers_version", version))
        assert read.vision.intermediate_layers == expected
    del content["transformers_version"]
    assert config_from_mllama(content).vision.intermediate_layers == (1, 3)


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 8.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 2e4,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "attention_factor": 1.1,
        "mscale": 0.5,
        "mscale_all_dim": 0.7,
        "truncate": False,
        "rope_theta": 1e4,
    },
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_a_configuration_comes_back_from_transformers_as_it_was(
    rope: dict[str, Any], make_mllama: Make
) -> None:
    theirs = make_mllama(text={"rope_parameters": rope}).config
    ours = config_from_mllama(theirs.to_dict())
    written = config_to_mllama(ours, **IDS)
    again = MllamaConfig.from_dict(written)
    for section in ("vision_config", "text_config"):
        back, before = (getattr(c, section).to_dict() for c in (again, theirs))
        neutral = {"dtype", "architectures"}
        assert {k: v for k, v in back.items() if k not in neutral} == {
            k: v for k, v in before.items() if k not in neutral
        }
    assert again.image_token_index == theirs.image_token_index
    assert config_from_mllama(again.to_dict()) == ours


def test_old_and_new_words_for_rotary_parameters_mean_the_same(content: dict[str, Any]) -> None:
    rope = dict(ROPES["yarn"])
    new = config_from_mllama(changed(content, "text_config.rope_parameters", rope))
    old = changed(content, "text_config.rope_theta", rope.pop("rope_theta"))
    rope["type"] = rope.pop("rope_type")
    del old["text_config"]["rope_parameters"]
    assert config_from_mllama(changed(old, "text_config.rope_scaling", rope)) == new
    # Left out, the factor is the ratio of both lengths: 256 / 64.
    del rope["factor"]
    assert config_from_mllama(changed(old, "text_config.rope_scaling", rope)) == new


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("model_type", "llama", "model_type"),
        ("quantization_config", {"bits": 4}, "quantization_config is {'bits': 4}"),
        ("image_token_index", 104, "image_token_index is 104, outside the 104 embeddings"),
        ("vision_config.hidden_act", "quick_gelu", "vision_config.hidden_act: .*'quick_gelu'"),
        ("vision_config.num_channels", 1, "vision_config.num_channels"),
        ("vision_config.image_size", [28, 28], "vision_config.image_size"),
        ("vision_config.image_size", 30, "not a multiple of patch_size_px"),
        ("vision_config.supported_aspect_ratios", [[1, 1]], "supported_aspect_ratios"),
        ("vision_config.vision_output_dim", 64, "vision_output_dim is 64"),
        ("vision_config.intermediate_layers_indices", [0, 3], r"\[4\] are outside 0..3"),
        ("vision_config.qkv_bias", True, "vision_config.qkv_bias is True"),
        ("text_config.hidden_act", "gelu", "text_config.hidden_act"),
        ("text_config.dropout", 0.1, "text_config.dropout"),
        ("text_config.attention_bias", True, "text_config.attention_bias is True"),
        ("text_config.head_dim", 16, "text_config.head_dim is 16"),
        ("text_config.cross_attention_layers", [3], r"is \[3\], needed: \[3, 8\]"),
        ("text_config.num_key_value_heads", 3, "not a multiple of num_kv_heads 3"),
        (
            "text_config.rope_parameters",
            {"rope_type": "longrope", "short_factor": [1.0]},
            "rope_type is 'longrope'; supported are default, linear, dynamic, llama3, yarn",
        ),
        (
            "text_config.rope_parameters",
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5",
        ),
        (
            "text_config.rope_parameters",
            {"rope_type": "linear", "factor": 2.0, "beta_fast": 3.0},
            "beta_fast is 3.0, which 'linear' has not",
        ),
        ("text_config.rope_parameters", {"rope_type": "linear"}, "'linear' have no factor"),
    ],
)
def test_what_we_cannot_compute_is_refused(
    content: dict[str, Any], path: str, value: Any, reason: str
) -> None:
    config_from_mllama(content)
    with pytest.raises(UserError, match=reason):
        config_from_mllama(changed(content, path, value))


def test_every_problem_is_named_at_once(content: dict[str, Any]) -> None:
    broken = changed(content, "vision_config.vision_output_dim", 7)
    broken = changed(broken, "text_config.sliding_window", 128)
    with pytest.raises(UserError, match=r"sliding_window is 128.*vision_output_dim is 7"):
        config_from_mllama(broken)


def test_every_difference_that_mllama_cannot_express_is_named(content: dict[str, Any]) -> None:
    ours = config_from_mllama(content).model_dump()
    ours["vision"] |= {"local_attention": "tile", "padding_tiles": "drop"}
    ours["vision"]["intermediate_layers"] = [0, 2]
    ours["projector"]["kind"] = "mlp"
    ours["decoder"] |= {"num_extra_embeddings": 1, "tie_embeddings": True}
    ours["image_visibility"] = "all_previous"
    with pytest.raises(UserError) as caught:
        config_to_mllama(VLMConfig.model_validate(ours), **IDS)
    for difference in (
        "vision.local_attention is 'tile' and would become 'image'",
        "vision.padding_tiles is 'drop' and would become 'attend'",
        "vision.intermediate_layers is (0, 2) and would become (2,)",
        "projector.kind is 'mlp' and would become 'linear'",
        "decoder.num_extra_embeddings is 1 and would become 8",
        "decoder.tie_embeddings is True and would become False",
        "image_visibility is 'all_previous' and would become 'latest'",
    ):
        assert difference in str(caught.value)


def test_pixel_statistics_are_the_processors_and_come_back(content: dict[str, Any]) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    ours = config_from_mllama(content, mean, std)
    assert (ours.vision.image_mean, ours.vision.image_std) == (mean, std)
    assert config_to_mllama(ours, **IDS) == config_to_mllama(config_from_mllama(content), **IDS)
