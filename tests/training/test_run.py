"""A stage from configuration to model folder: resuming, parents, what it writes and refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MllamaForConditionalGeneration

from data.pack import Manifest, pack
from data.rejects import read_rejects
from data.schema import RawSample, Sample
from data.shards import read_folder
from training.checkpoints import list_checkpoints
from training.config import StageName, TrainConfig
from training.metrics import METRICS_FILE, read_metrics
from training.run import train_stage
from training.setup import build_setup
from training.stages import STAGES
from vlm.config import load_config
from vlm.errors import UserError
from vlm.weights.convert import to_hf
from vlm.weights.folder import read_component, read_folder_config, read_provenance
from vlm.weights.mllama_names import our_name

MakeConfig = Callable[..., TrainConfig]
SPEEDS = ("samples_per_s", "tokens_per_s", "pictures_per_s", "data_wait", "memory_gb")


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": tensor
        for component in read_folder_config(folder).components
        for name, tensor in read_component(folder, component).items()
    }


def figures(folder: Path) -> list[dict[str, Any]]:
    records = read_metrics(folder / METRICS_FILE)
    return [{k: v for k, v in record.items() if k not in SPEEDS} for record in records]


def stopped_copy(finished: Path, out: Path, step: int) -> Path:
    """The run folder as it was after some step beyond the checkpoint of `step`: no model yet."""
    shutil.copytree(finished, out)
    for path in out.glob("*"):
        if path.is_file() and path.name not in ("train.yaml", METRICS_FILE):
            path.unlink()
    for path in list_checkpoints(out / "checkpoints"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    stage: StageName, stage_config: MakeConfig, tmp_path: Path
) -> None:
    # An epoch is three batches in two pools: step 2 lies at the end of the first pool, step 4 in
    # the next epoch. Lines of the log cover three steps, so that checkpoints cut them.
    settings: dict[str, Any] = {
        "steps": 6,
        "log_every": 3,
        "validate_every": 3,
        "checkpoint_every": 2,
        "batches_per_step": 2 if stage == "align" else 1,
    }
    whole = tmp_path / "whole"
    train_stage(stage_config(stage, whole, **settings))
    for step in (2, 4):
        out = stopped_copy(whole, tmp_path / f"from-{step}", step)
        result = train_stage(stage_config(stage, out, **settings), resume=True)
        assert result.steps == 6
        expected, found = saved_weights(whole), saved_weights(out)
        assert set(expected) == set(found)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert figures(out) == figures(whole)
    assert [r["step"] for r in figures(whole) if r["split"] == "train"] == [2, 3, 4, 6]


def test_a_resumed_run_says_where_it_goes_on_and_may_use_other_workers(
    stage_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / "whole"
    train_stage(stage_config("text", whole, checkpoint_every=2))
    out = stopped_copy(whole, tmp_path / "out", 2)
    train_stage(stage_config("text", out, checkpoint_every=1, data={"num_workers": 1}), resume=True)
    assert "step-00000002 at step 2\n" in capsys.readouterr().out
    expected, found = saved_weights(whole), saved_weights(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_that_dies_on_the_way_resumes_to_the_same_model(
    stage_config: MakeConfig, tmp_path: Path, shards: Path, parents: Path
) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards / "text", copy)
    settings = {
        "data": {"train": [copy], "shuffle_shards": 1},
        "init_from": {"tokenizer": parents / "text"},
        "checkpoint_every": 1,
        "steps": 4,
    }
    train_stage(stage_config("text", tmp_path / "whole", **settings))
    config = stage_config("text", tmp_path / "out", **settings)
    # The shard that the run reads last is away for a moment.
    order = build_setup(config).train.order
    last = order.pool(order.pools_per_epoch - 1).places[-1]
    shard = copy / Manifest.read(copy).shards[last.shard].name
    shard.rename(tmp_path / "away")
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        train_stage(config)
    assert len(list_checkpoints(config.out / "checkpoints")) == 2
    (tmp_path / "away").rename(shard)
    train_stage(config, resume=True)
    expected, found = saved_weights(tmp_path / "whole"), saved_weights(config.out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert figures(config.out) == figures(tmp_path / "whole")


def test_a_transformers_folder_is_finetuned_and_goes_back_to_transformers(
    make_config: MakeConfig, mllama_source: Path, tmp_path: Path
) -> None:
    model = read_folder_config(mllama_source).model
    config = make_config(
        "finetune",
        tmp_path / "out",
        model=model.model_dump(),
        init_from={"model": mllama_source},
        steps=1,
    )
    train_stage(config)
    before, after = load_file(mllama_source / "model.safetensors"), saved_weights(config.out)
    assert after.keys() == {our_name(name) for name in before}
    changed = [not torch.equal(after[str(our_name(name))], t) for name, t in before.items()]
    assert any(changed)
    to_hf(config.out, tmp_path / "back")
    _, info = MllamaForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not any(info.values())
    ends = [
        json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        for folder in (mllama_source, tmp_path / "back")
    ]
    assert ends[0] == ends[1]


def test_checkpoints_are_pruned_and_the_last_step_needs_none(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("text", tmp_path / "out", checkpoint_every=1, keep_checkpoints=1)
    train_stage(config)
    names = [path.name for path in list_checkpoints(config.out / "checkpoints")]
    assert names == ["step-00000002"]


def test_resuming_without_a_checkpoint_starts_anew_and_says_so(
    stage_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stage_config("text", tmp_path / "out")
    result = train_stage(config, resume=True)
    assert result.steps == 3
    assert (
        f"no checkpoint in {config.out / 'checkpoints'}; starting anew" in capsys.readouterr().out
    )


def test_a_changed_setting_is_named_on_resuming(stage_config: MakeConfig, tmp_path: Path) -> None:
    train_stage(stage_config("text", tmp_path / "whole", checkpoint_every=2))
    out = stopped_copy(tmp_path / "whole", tmp_path / "out", 2)
    changed = stage_config("text", out, optim={"learning_rate": 0.5})
    message = r"configuration has changed since .*: optim\.learning_rate was 0\.01, is 0\.5; put"
    with pytest.raises(UserError, match=message):
        train_stage(changed, resume=True)


def test_changed_data_is_noticed_on_resuming(
    stage_config: MakeConfig, tmp_path: Path, shards: Path
) -> None:
    data = {"train": [tmp_path / "shards"]}
    samples = list(read_folder(shards / "text"))
    pack(samples, tmp_path / "shards")
    train_stage(stage_config("text", tmp_path / "whole", checkpoint_every=2, data=data))
    out = stopped_copy(tmp_path / "whole", tmp_path / "out", 2)
    shutil.rmtree(tmp_path / "shards")
    pack(samples[:-1], tmp_path / "shards")
    with pytest.raises(UserError, match=r"configuration has changed .*manifests"):
        train_stage(stage_config("text", out, data=data), resume=True)


def test_a_taken_run_folder_is_left_alone(stage_config: MakeConfig, tmp_path: Path) -> None:
    config = stage_config("text", tmp_path / "out")
    train_stage(config)
    with pytest.raises(UserError, match=r"already holds a run; resume it with --resume auto, or"):
        train_stage(config)
    with pytest.raises(UserError, match="holds a finished model, so there is nothing to resume"):
        train_stage(config, resume=True)


def test_a_run_that_fails_to_start_takes_no_folder(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    start = {"model": tmp_path / "nowhere"}
    with pytest.raises(UserError):
        train_stage(stage_config("finetune", tmp_path / "out", init_from=start))
    assert not (tmp_path / "out").exists()


def test_a_run_folder_tells_how_it_came_about(
    stage_config: MakeConfig, parents: Path, shards: Path, tmp_path: Path
) -> None:
    config = stage_config("finetune", tmp_path / "out", seed=7)
    result = train_stage(config)
    assert load_config(TrainConfig, config.out / "train.yaml") == config
    provenance = read_provenance(config.out)
    assert provenance["parents"] == {"model": str(parents / "align")}
    assert provenance["data"]["train"] == [
        {
            "folder": str(shards / "train"),
            "manifest_sha256": Manifest.read(shards / "train").sha256,
        }
    ]
    assert (provenance["stage"], provenance["steps"], provenance["seed"]) == ("finetune", 3, 7)
    assert provenance["figures"] == result.figures and "turn_accuracy" in result.figures
    assert {"python", "torch", "vlm"} <= set(provenance["versions"])


def test_seeds_decide_the_result(stage_config: MakeConfig, tmp_path: Path) -> None:
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_stage(stage_config("text", tmp_path / name, seed=seed))
        results.append(saved_weights(tmp_path / name))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not all(torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_validation_takes_the_first_batches_and_the_same_each_time(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    # A rate so low that nothing changes: equal batches give equal figures.
    optim = {"learning_rate": 1e-12, "warmup_steps": 1}
    settings: dict[str, Any] = {"optim": optim, "validate_every": 1, "data": {"batch_samples": 1}}
    train_stage(stage_config("finetune", tmp_path / "all", **settings))
    train_stage(stage_config("finetune", tmp_path / "one", validation_batches=1, **settings))
    losses = {
        name: [r["loss"] for r in figures(tmp_path / name) if r["split"] == "validation"]
        for name in ("all", "one")
    }
    for values in losses.values():
        assert len(values) == 3 and values == pytest.approx([values[0]] * 3, rel=1e-6)
    assert losses["all"][0] != pytest.approx(losses["one"][0], rel=1e-6)


def test_rejected_samples_are_counted_at_the_end(
    stage_config: MakeConfig,
    shards: Path,
    parents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    samples = list(read_folder(shards / "text"))
    content = [{"type": "text", "text": "yes " * 200}]
    messages = [{"role": role, "content": content} for role in ("user", "assistant")]
    long = RawSample("long", Sample.parse({"messages": messages}), [])
    pack([long, *samples], tmp_path / "shards")
    start = {"tokenizer": parents / "text"}
    data = {"train": [tmp_path / "shards"]}
    train_stage(stage_config("text", tmp_path / "out", data=data, init_from=start))
    output = capsys.readouterr().out
    assert "1 samples rejected, see " in output and "more than max_tokens 160" in output
    (listed,) = read_rejects(tmp_path / "out")
    assert (listed.key, listed.shard) == ("long", "shard-000000.tar")


@pytest.mark.parametrize(
    ("stage", "start", "message"),
    [
        ("align", {"decoder": "text"}, "stage align starts from init_from.encoder; set it to"),
        ("finetune", {}, "stage finetune starts from init_from.model; set it to a model folder"),
        ("text", {"model": "align"}, "stage text takes no init_from.model; it takes tokenizer"),
        (
            "align",
            {"decoder": "text", "encoder": "encoder", "tokenizer": "text"},
            "stage align takes no init_from.tokenizer; it takes decoder, encoder",
        ),
        (
            "align",
            {"decoder": "text", "encoder": "nowhere"},
            "nowhere is not a model folder: there",
        ),
        ("align", {"decoder": "nowhere", "encoder": "encoder"}, "nowhere"),
        ("finetune", {"model": "nowhere"}, "nowhere"),
        ("encoder", {"tokenizer": "nowhere"}, "nowhere"),
        ("align", {"decoder": "encoder", "encoder": "encoder"}, "holds encoder, .*no decoder"),
        ("finetune", {"model": "text"}, r"holds decoder \(stage text\), no encoder"),
    ],
)
def test_wrong_parents_are_refused_in_one_sentence(
    stage: StageName,
    start: dict[str, str],
    message: str,
    make_config: MakeConfig,
    parents: Path,
    tmp_path: Path,
) -> None:
    folders = {key: parents / name for key, name in start.items()}
    with pytest.raises(UserError, match=message):
        train_stage(make_config(stage, tmp_path / "out", init_from=folders))
    assert not (tmp_path / "out").exists()


def test_a_parent_of_another_shape_is_refused_by_field(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    plain = stage_config("finetune", tmp_path / "out").model.model_dump()
    plain["decoder"] |= {"intermediate_size": 64, "num_kv_heads": 4}
    with pytest.raises(UserError) as caught:
        train_stage(stage_config("finetune", tmp_path / "out", model=plain))
    message = str(caught.value)
    assert "model.decoder.intermediate_size is 64 here and 48 there" in message
    assert "model.decoder.num_kv_heads is 4 here and 2 there" in message
    assert "hidden_size" not in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "shape",
            r"decoder of .* does not match the model: norm\.weight is \[31\], needed: \[32\]",
        ),
        ("missing", r"norm\.weight is missing \(needed: \[32\]\)"),
        ("extra", r"norm\.bias has no place in the model"),
        ("truncated", r"model\.safetensors cannot be read as safetensors"),
    ],
)
def test_a_parent_with_tampered_tensors_is_refused_by_tensor(
    damage: str, message: str, stage_config: MakeConfig, parents: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(parents / "align", parent)
    path = parent / "model.safetensors"
    tensors = load_file(path)
    norm = tensors.pop("decoder.norm.weight")
    if damage == "shape":
        tensors["decoder.norm.weight"] = norm[1:].clone()
    elif damage == "extra":
        tensors |= {"decoder.norm.weight": norm, "decoder.norm.bias": norm.clone()}
    save_file(tensors, path, metadata={"format": "pt"})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=message):
        train_stage(stage_config("finetune", tmp_path / "out", init_from={"model": parent}))


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(
    make_config: MakeConfig, parents: Path, tmp_path: Path
) -> None:
    plain = make_config("text", tmp_path / "out").model.model_dump()
    plain["decoder"]["vocab_size"] = 280
    start = {"tokenizer": parents / "text"}
    with pytest.raises(UserError, match="has 300 ids, the model 280 embedding rows"):
        train_stage(make_config("text", tmp_path / "out", model=plain, init_from=start))


def test_a_text_longer_than_the_text_tower_reads_is_refused(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"data\.max_tokens 49 is more than the text tower reads"):
        stage_config("encoder", tmp_path, data={"max_tokens": 49})


@pytest.mark.parametrize("stage", ["encoder", "finetune"])
def test_only_the_encoder_stage_has_a_contrastive_section(
    stage: StageName, stage_config: MakeConfig, tmp_path: Path
) -> None:
    tower = stage_config("encoder", tmp_path).contrastive
    assert tower is not None
    wrong = None if stage == "encoder" else tower.model_dump()
    with pytest.raises(ValueError, match="contrastive belongs to stage encoder, and to it alone"):
        stage_config(stage, tmp_path, contrastive=wrong)


def test_pairs_are_not_packed(stage_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="packing joins chats; stage encoder compares pairs"):
        stage_config("encoder", tmp_path, data={"packing": True})


@pytest.mark.parametrize("stage", ["text", "finetune"])
def test_a_stage_trains_on_packed_chats_and_logs_what_is_padded(
    stage: StageName, stage_config: MakeConfig, tmp_path: Path
) -> None:
    padding = {}
    for packing in (False, True):
        data = {"packing": packing, "max_tokens": 200}
        out = tmp_path / f"packing-{packing}"
        train_stage(stage_config(stage, out, data=data))
        padding[packing] = [r["padding"] for r in figures(out) if r["split"] == "train"]
    assert len(padding[True]) == 3 and all(0 < share < 0.5 for share in padding[True])
    assert padding[True] != padding[False]
