"""Sections of a configuration that take their shape from a folder of weights."""

import json
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig

from encoders.config import TextTowerConfig, VisionConfig
from vlm.chat.processor import Processor
from vlm.config import VLMConfig, dump_config, load_config
from vlm.decoder.config import DecoderConfig
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder
from vlm.weights.llm import read_llm
from vlm.weights.sections import read_section


@pytest.fixture
def ours(tmp_path: Path, tiny_model: VisionLanguageModel, processor: Processor) -> Path:
    """A folder of a text stage."""
    config = FolderConfig(
        format=FORMAT, stage="text", components=("decoder",), model=tiny_model.config
    )
    save_folder(tmp_path / "text", config, {"decoder": tiny_model.decoder}, processor, {})
    return tmp_path / "text"


@pytest.fixture
def llm(tmp_path: Path, processor: Processor) -> Path:
    """What a configuration needs of an LLM's folder: no weights."""
    folder = tmp_path / "llm"
    processor.save(folder)
    LlamaConfig(
        vocab_size=processor.tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=7,
        num_attention_heads=4,
        eos_token_id=processor.tokenizer.eot_id,
    ).save_pretrained(folder)
    return folder


def write(folder: Path, tiny_config: VLMConfig, decoder: Path) -> Path:
    plain = tiny_config.model_dump(mode="json") | {"decoder": str(decoder)}
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def test_a_decoder_may_be_the_folder_of_an_llm(
    llm: Path, tmp_path: Path, tiny_config: VLMConfig
) -> None:
    config = load_config(VLMConfig, write(tmp_path, tiny_config, llm))
    assert config.decoder == read_llm(llm).config
    assert (config.decoder.num_layers, config.decoder.cross_attention_layers) == (8, (3,))
    assert config.vision == tiny_config.vision
    # What is written down does not need the folder.
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    (llm / "config.json").unlink()
    assert load_config(VLMConfig, tmp_path / "resolved.yaml") == config


def test_a_decoder_may_be_a_model_folder(
    ours: Path, tmp_path: Path, tiny_config: VLMConfig
) -> None:
    config = load_config(VLMConfig, write(tmp_path, tiny_config, ours))
    assert config == tiny_config
    assert read_section(VisionConfig, ours) == tiny_config.vision
    assert read_section(VLMConfig, ours) == tiny_config


def test_overrides_apply_after_the_folder_and_may_name_one(
    llm: Path, tmp_path: Path, tiny_config: VLMConfig
) -> None:
    path = write(tmp_path, tiny_config, llm)
    changed = load_config(VLMConfig, path, ["decoder.norm_eps=0.5"]).decoder
    assert changed == read_llm(llm).config.model_copy(update={"norm_eps": 0.5})
    path.write_text(dump_config(tiny_config))
    assert load_config(VLMConfig, path, [f"decoder={llm}"]).decoder == read_llm(llm).config


def test_a_folder_is_found_beside_the_file_that_names_it(
    llm: Path, tmp_path: Path, tiny_config: VLMConfig
) -> None:
    config = load_config(VLMConfig, write(tmp_path, tiny_config, Path("llm")))
    assert config.decoder == read_llm(llm).config


def test_what_is_wrong_with_the_folder_is_one_line(
    llm: Path, ours: Path, tmp_path: Path, tiny_config: VLMConfig
) -> None:
    (tmp_path / "empty").mkdir()
    content = json.loads((llm / "config.json").read_text())
    path = llm / "config.json"
    for decoder, change, expected in (
        ("empty", {}, r"model\.yaml: decoder: the folder .*empty has no config\.json"),
        ("absent", {}, r"model\.yaml: decoder: no file or folder 'absent'"),
        ("llm", {"model_type": "bert"}, r"model\.yaml: decoder: .*llm: model_type is 'bert'"),
        ("llm", {"mlp_bias": True}, r"model\.yaml: decoder: .*llm: config\.json has mlp_bias"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=expected) as info:
            load_config(VLMConfig, write(tmp_path, tiny_config, Path(decoder)))
        assert "\n" not in str(info.value)
    with pytest.raises(UserError, match="holds nothing that is described by a TextTowerConfig"):
        read_section(TextTowerConfig, ours)


def test_the_size_of_a_head_follows_from_the_widths_or_is_given(tiny_config: VLMConfig) -> None:
    shape = tiny_config.decoder.model_dump(exclude={"head_size"})
    assert DecoderConfig.model_validate(shape).head_size == 8
    assert DecoderConfig.model_validate(shape | {"head_size": 6}).head_size == 6
    with pytest.raises(ValueError, match="hidden_size 30 / num_heads 4 must be an even whole"):
        DecoderConfig.model_validate(shape | {"hidden_size": 30})
    with pytest.raises(ValueError, match="head_size 7 must be even"):
        DecoderConfig.model_validate(shape | {"head_size": 7})
