"""Model folders: what is saved comes back bit for bit, half folders never look whole."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.folder import (
    CONFIG_FILE,
    FORMAT,
    PROVENANCE_FILE,
    FolderConfig,
    check_same_config,
    load_component,
    read_component,
    read_folder_config,
    read_provenance,
    save_folder,
)
from vlm.weights.tensors import INDEX_FILE, WEIGHTS_FILE, weight_files

COMPONENTS = ("encoder", "projector", "decoder")
PROVENANCE = {"stage": "finetune", "seed": 5}


def save(
    folder: Path,
    model: VisionLanguageModel,
    processor: Processor,
    components: tuple[str, ...] = COMPONENTS,
    provenance: dict[str, Any] | None = None,
) -> Path:
    config = FolderConfig(
        format=FORMAT, stage="finetune", components=components, model=model.config
    )
    modules = {name: model.get_submodule(name) for name in components}
    save_folder(folder, config, modules, processor, provenance or PROVENANCE)
    return folder


@pytest.fixture
def folder(tmp_path: Path, open_model: VisionLanguageModel, processor: Processor) -> Path:
    return save(tmp_path / "model", open_model, processor)


def shard(folder: Path) -> list[Path]:
    """Write the folder's weights as several files and an index."""
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    save_torch_state_dict(tensors, folder, max_shard_size="100KB")
    return weight_files(folder)


def loaded(folder: Path, config: VLMConfig) -> dict[str, Tensor]:
    """The tensors of a new model, filled from the folder."""
    torch.manual_seed(99)
    model = VisionLanguageModel(config, 0)
    for name in COMPONENTS:
        load_component(model.get_submodule(name), read_component(folder, name), name, folder)
    return model.state_dict()


def assert_bit_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_what_is_saved_comes_back_bit_for_bit(
    folder: Path, open_model: VisionLanguageModel, processor: Processor
) -> None:
    assert_bit_equal(loaded(folder, open_model.config), open_model.state_dict())
    config = read_folder_config(folder)
    assert config.model == open_model.config and config.components == COMPONENTS
    assert read_provenance(folder) == PROVENANCE
    messages = [{"role": "user", "content": "What colour?"}]
    again = Processor.from_folder(folder, config.model.vision).encode(messages)
    assert torch.equal(again.input_ids, processor.encode(messages).input_ids)


def test_a_folder_holds_these_files_and_no_more(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "provenance.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_sharded_weights_come_back_bit_for_bit(
    folder: Path, open_model: VisionLanguageModel
) -> None:
    assert len(shard(folder)) > 2
    assert_bit_equal(loaded(folder, open_model.config), open_model.state_dict())


def test_saving_over_a_sharded_folder_replaces_its_weights(
    folder: Path, open_model: VisionLanguageModel, processor: Processor
) -> None:
    shard(folder)
    open_model.projector.layers[0].bias.data.fill_(3)
    save(folder, open_model, processor)
    assert weight_files(folder) == [folder / WEIGHTS_FILE]
    assert_bit_equal(loaded(folder, open_model.config), open_model.state_dict())


def test_saving_leaves_a_runs_other_files_alone(
    folder: Path, open_model: VisionLanguageModel, processor: Processor
) -> None:
    (folder / "metrics.jsonl").write_text("{}")
    (folder / "checkpoints").mkdir()
    save(folder, open_model, processor)
    assert (folder / "metrics.jsonl").read_text() == "{}" and (folder / "checkpoints").is_dir()


def test_a_save_that_fails_before_the_end_leaves_the_old_folder_whole(
    folder: Path, open_model: VisionLanguageModel, processor: Processor
) -> None:
    before = {name: tensor.clone() for name, tensor in open_model.state_dict().items()}
    open_model.projector.layers[0].bias.data.fill_(3)
    with pytest.raises(TypeError, match="JSON"):
        save(folder, open_model, processor, provenance={"seed": object()})
    assert_bit_equal(loaded(folder, open_model.config), before)


@pytest.mark.parametrize("blocked", [PROVENANCE_FILE, "tokenizer_config.json"])
def test_a_folder_that_is_not_whole_has_no_config(
    tmp_path: Path, open_model: VisionLanguageModel, processor: Processor, blocked: str
) -> None:
    # A folder where a file is to go stops the save in the middle of the move.
    (tmp_path / blocked).mkdir()
    (tmp_path / CONFIG_FILE).write_text("of an older model")
    with pytest.raises(OSError):
        save(tmp_path, open_model, processor)
    assert not (tmp_path / CONFIG_FILE).exists()
    with pytest.raises(UserError, match=f"is not a model folder: it has no {CONFIG_FILE}"):
        read_folder_config(tmp_path)


def test_a_folder_of_one_component_has_no_other(
    tmp_path: Path, tiny_model: VisionLanguageModel, processor: Processor
) -> None:
    folder = save(tmp_path, tiny_model, processor, components=("encoder",))
    assert read_component(folder, "encoder").keys() == tiny_model.encoder.state_dict().keys()
    with pytest.raises(UserError, match=r"holds encoder \(stage finetune\), no decoder"):
        read_component(folder, "decoder")


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["layers.0.bogus"] = tensors.pop("layers.0.bias")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda t: t.update({"layers.0.bias": t["layers.0.bias"][:5]}),
            "layers.0.bias is [5], needed: [32]",
        ),
        (lambda t: t.pop("layers.2.weight"), "layers.2.weight is missing (needed: [32, 32])"),
        (lambda t: t.update({"layers.9.bias": torch.zeros(1)}), "layers.9.bias has no place"),
        (rename, "layers.0.bias is missing (needed: [32]); layers.0.bogus has no place"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_loaded(
    tiny_model: VisionLanguageModel,
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    complaint: str,
) -> None:
    projector = tiny_model.projector
    before = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in before.items()}
    change(tensors)
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        load_component(projector, tensors, "projector", tmp_path)
    assert f"projector of {tmp_path} does not match" in str(caught.value)
    assert_bit_equal(projector.state_dict(), before)


def test_of_many_mismatches_the_first_ten_are_named(
    tiny_model: VisionLanguageModel, tmp_path: Path
) -> None:
    names = list(tiny_model.decoder.state_dict())
    with pytest.raises(UserError) as caught:
        load_component(tiny_model.decoder, {}, "decoder", tmp_path)
    message = str(caught.value)
    assert [name in message for name in names[:11]] == [True] * 10 + [False]
    assert message.endswith(f"(and {len(names) - 10} more)") and "\n" not in message


def test_a_tensor_of_no_component_is_refused(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({**tensors, "adapter.weight": torch.zeros(2)}, folder / WEIGHTS_FILE)
    with pytest.raises(UserError, match=r"has adapter\.weight, of no component"):
        read_component(folder, "projector")


@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_damaged_weights_are_named(folder: Path, size: int) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as safetensors"):
        read_component(folder, "decoder")


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        read_component(folder, "decoder")


def test_a_missing_shard_is_named(folder: Path) -> None:
    files = shard(folder)
    files[1].unlink()
    with pytest.raises(UserError, match=re.escape(files[1].name)):
        read_component(folder, "decoder")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(folder: Path, content: str) -> None:
    (folder / WEIGHTS_FILE).unlink()
    (folder / INDEX_FILE).write_text(content)
    with pytest.raises(UserError, match=r"index\.json does not map tensors to files"):
        read_component(folder, "decoder")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "does not describe a model folder of format 'vlm-1'"),
        (b'{"format": "vlm-0"}', "does not describe a model folder of format 'vlm-1'"),
        (b'{"model_type": "llava"}', "describes a llava .*MllamaForConditionalGeneration"),
        (b'{"format": "vlm-1"}', "stage: Field required"),
    ],
)
def test_a_config_that_is_not_ours_is_named(folder: Path, content: bytes, complaint: str) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(UserError, match=f"config.json.* {complaint}"):
        read_folder_config(folder)


def test_a_wrong_field_of_the_config_is_named(folder: Path) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["model"]["decoder"]["num_heads"] = 5
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"model\.decoder: .*num_heads 5 is not a multiple"):
        read_folder_config(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a model folder: there is no such folder"):
        read_folder_config(tmp_path / "nowhere")


def test_missing_or_damaged_provenance_is_named(folder: Path) -> None:
    (folder / PROVENANCE_FILE).write_text("{")
    with pytest.raises(UserError, match=r"provenance\.json is not JSON"):
        read_provenance(folder)
    (folder / PROVENANCE_FILE).unlink()
    with pytest.raises(UserError, match=r"has no provenance\.json"):
        read_provenance(folder)


def test_configs_that_differ_are_named_field_by_field(tiny_config: VLMConfig) -> None:
    decoder = tiny_config.decoder
    other = decoder.model_copy(update={"num_layers": 14, "rope_theta": 1e4})
    check_same_config(decoder, decoder.model_copy(), "model.decoder", Path("run"))
    with pytest.raises(UserError) as caught:
        check_same_config(decoder, other, "model.decoder", Path("run"))
    assert str(caught.value) == (
        "run does not match this config: model.decoder.num_layers is 9 here and 14 there; "
        "model.decoder.rope_theta is 500000.0 here and 10000.0 there"
    )
