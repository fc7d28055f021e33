"""LoRA: adapters and gates learn, the base stays as it is, and no adapter lands on another base."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vlm
from training.checkpoints import list_checkpoints
from training.config import StageName, TrainConfig
from training.conversion import convert_checkpoint
from training.dry_run import describe_run, make_plan
from training.lora import adapter_tensors
from training.metrics import METRICS_FILE, read_metrics
from training.objectives import NextToken
from training.optim import build_optimizer
from training.run import train_stage
from training.setup import Setup, build_setup
from training.stages import freeze, parts_of
from vlm.adapters.config import LoraConfig
from vlm.adapters.folder import WEIGHTS_FILE, save_adapter
from vlm.adapters.layers import adapted_layers
from vlm.adapters.merge import merge
from vlm.config import VLMConfig, dump_config, load_config
from vlm.errors import UserError
from vlm.inputs import ModelInputs
from vlm.model import VisionLanguageModel

MakeConfig = Callable[..., TrainConfig]

# A rank of its own for each set. Decoder layers 3 and 8 of nine are cross-attention.
LORA: dict[str, Any] = {
    "decoder": {"rank": 2, "alpha": 4.0},
    "cross_attention": {"rank": 3, "alpha": 3.0, "dropout": 0.2},
    "encoder": {"rank": 1, "alpha": 2.0},
    "projector": {"rank": 5, "alpha": 5.0},
}
RANKS = {"decoder": 2, "cross_attention": 3, "encoder": 1, "projector": 5}
CROSSING = ("decoder.layers.3.", "decoder.layers.8.")
# Merged weights round once where an adapter's part is added layer by layer; logits are around 1.
MERGED = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="session")
def lora_config(stage_config: MakeConfig) -> MakeConfig:
    """`lora_config(out, **changes)`: a finetune stage with adapters on everything."""

    def make(out: Path, **changes: Any) -> TrainConfig:
        return stage_config("finetune", out, **{"lora": LORA, **changes})

    return make


def target_set(name: str) -> str:
    """Written down a second time on purpose."""
    if name.startswith("decoder."):
        return "cross_attention" if name.startswith(CROSSING) else "decoder"
    return name.partition(".")[0]


def start(config: TrainConfig) -> tuple[Setup, NextToken, torch.optim.Optimizer]:
    torch.manual_seed(config.seed)
    setup = build_setup(config)
    freeze(setup.stage, parts_of(setup.modules))
    assert isinstance(setup.objective, NextToken)
    return setup, setup.objective, build_optimizer(setup.modules.values(), config.optim)


def learn(config: TrainConfig, steps: int) -> tuple[Setup, VisionLanguageModel]:
    """A few steps on the first batch, without the loop around them."""
    setup, objective, optimizer = start(config)
    batch = next(setup.train.batches())
    for _ in range(steps):
        objective.loss(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return setup, objective.model.eval()


def inputs_of(setup: Setup) -> ModelInputs:
    inputs: ModelInputs = next(setup.train.batches()).inputs
    assert inputs.images is not None
    return inputs


def logits(model: VisionLanguageModel, inputs: ModelInputs) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.decoder.logits(model(inputs))
    real = torch.arange(found.shape[1]) < inputs.lengths.unsqueeze(1)
    return found[real]


def state(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{component}.{name}": tensor.clone()
        for component, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def learns(name: str) -> bool:
    gate = name.startswith(CROSSING) and name.endswith(("attn_gate", "mlp_gate"))
    return ".lora_" in name or gate


def test_each_target_set_has_its_rank_and_every_linear_layer_an_adapter(
    lora_config: MakeConfig, tmp_path: Path, tiny_model: VisionLanguageModel
) -> None:
    setup, _, _ = start(lora_config(tmp_path))
    tensors = adapter_tensors(setup.modules)
    layers = {
        name: module
        for name, module in tiny_model.named_modules()
        if isinstance(module, nn.Linear) and name != "decoder.lm_head"
    }
    expected = {}
    for name, layer in layers.items():
        rank = RANKS[target_set(name)]
        expected[f"{name}.lora_A.weight"] = (rank, layer.in_features)
        expected[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    for layer_name in CROSSING:
        expected |= {f"{layer_name}{gate}": (1,) for gate in ("attn_gate", "mlp_gate")}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    for name in layers:
        component, _, path = name.partition(".")
        layer: Any = setup.modules[component].get_submodule(path)
        target = LORA[target_set(name)]
        dropout = layer.lora_dropout["default"]
        share = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
        assert share == target.get("dropout", 0.0)
        assert layer.scaling["default"] == target["alpha"] / target["rank"]


@pytest.mark.parametrize("only", LORA)
def test_a_set_that_is_left_out_has_no_adapter(
    only: str, lora_config: MakeConfig, tmp_path: Path
) -> None:
    config = lora_config(tmp_path, lora={only: LORA[only]})
    names = adapter_tensors(start(config)[0].modules)
    assert {target_set(name) for name in names if ".lora_" in name} == {only}
    assert sum(name.endswith("_gate") for name in names) == 4


def test_only_adapters_and_gates_change_and_nothing_else_has_a_gradient(
    lora_config: MakeConfig, tmp_path: Path
) -> None:
    setup, objective, optimizer = start(lora_config(tmp_path))
    before = state(setup.modules)
    in_optimizer = sum(len(group["params"]) for group in optimizer.param_groups)
    assert in_optimizer == len(adapter_tensors(setup.modules))
    batch = next(setup.train.batches())
    for _ in range(2):
        optimizer.zero_grad()
        objective.loss(batch).total.backward()
        optimizer.step()
    for component, module in setup.modules.items():
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == learns(f"{component}.{name}"), name
    changed = {name for name, now in state(setup.modules).items() if not now.equal(before[name])}
    assert changed == {name for name in before if learns(name)}


def test_a_new_adapter_changes_nothing(
    lora_config: MakeConfig, parents: Path, tmp_path: Path
) -> None:
    setup, objective, _ = start(lora_config(tmp_path))
    base = vlm.load(parents / "align", device="cpu").network
    inputs = inputs_of(setup)
    assert logits(objective.model.eval(), inputs).equal(logits(base, inputs))


def test_merged_equals_unmerged(lora_config: MakeConfig, parents: Path, tmp_path: Path) -> None:
    config = lora_config(tmp_path / "adapter")
    setup, model = learn(config, steps=4)
    assert setup.adapter is not None
    tensors = adapter_tensors(setup.modules)
    provenance = {"stage": "finetune", "seed": 0, "commit": None}
    save_adapter(config.out, setup.adapter, config.model, tensors, provenance)
    merge(config.out, tmp_path / "whole")
    inputs = inputs_of(setup)
    unmerged = logits(model, inputs)
    for folder in (config.out, tmp_path / "whole"):
        merged = vlm.load(folder, device="cpu").network
        torch.testing.assert_close(logits(merged, inputs), unmerged, **MERGED)
    base = vlm.load(parents / "align", device="cpu").network
    assert (logits(base, inputs) - unmerged).abs().max() > 0.1


def test_a_run_ends_in_an_adapter_folder_that_answers(
    lora_config: MakeConfig,
    parents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    picture: Callable[..., Any],
) -> None:
    out = tmp_path / "adapter"
    train_stage(lora_config(out))
    assert not (out / "config.json").exists() and not list(out.glob("model*.safetensors"))
    described = json.loads((out / "adapter.json").read_text())
    assert described["base"]["folder"] == str(parents / "align")
    assert {name: described["lora"][name]["rank"] for name in RANKS} == RANKS
    table = {
        line.split("  ")[1].strip(): line.split()[-1]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("  ")
    }
    parts = ("encoder", "projector", "cross-attention", "decoder")
    assert table == {
        "cross-attention gates": "trained",
        **dict.fromkeys(parts, "frozen"),
        **{f"{part} LoRA": "trained" for part in parts},
    }
    model = vlm.load(out, device="cpu")
    assert isinstance(model.ask(picture(0, 24, 24), "How many circles?", max_tokens=4), str)
    with pytest.raises(UserError, match="holds a finished model, so there is nothing to resume"):
        train_stage(lora_config(out), resume=True)


def test_the_loss_falls_on_a_few_samples(
    lora_config: MakeConfig, shards: Path, tmp_path: Path
) -> None:
    config = lora_config(
        tmp_path / "out",
        steps=40,
        data={"train": [shards / "validation"], "validation": []},
        optim={"learning_rate": 3e-2, "warmup_steps": 4},
    )
    train_stage(config)
    losses = [record["loss"] for record in read_metrics(config.out / METRICS_FILE)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_resumed_run_equals_an_uninterrupted_one_and_checkpoints_hold_no_base(
    lora_config: MakeConfig, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 4, "checkpoint_every": 2}
    whole = tmp_path / "whole"
    train_stage(lora_config(whole, **settings))
    (checkpoint,) = list_checkpoints(whole / "checkpoints")
    held = load_file(checkpoint / "tensors.safetensors")
    names = {name.removeprefix("model.") for name in held if name.startswith("model.")}
    assert names and all(map(learns, names))
    out = tmp_path / "resumed"
    shutil.copytree(whole / "checkpoints", out / "checkpoints")
    train_stage(lora_config(out, **settings), resume=True)
    expected, found = (load_file(folder / WEIGHTS_FILE) for folder in (whole, out))
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)


def test_a_checkpoint_becomes_an_adapters_folder(
    lora_config: MakeConfig, parents: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(parents / "align", tmp_path / "base")
    start = {"model": base}
    stopped = tmp_path / "stopped"
    train_stage(lora_config(tmp_path / "short", steps=2, init_from=start))
    train_stage(lora_config(stopped, steps=4, checkpoint_every=2, init_from=start))
    checkpoint = convert_checkpoint(stopped, tmp_path / "adapter")
    assert checkpoint.name == "step-00000002"
    expected, found = (
        load_file(tmp_path / folder / WEIGHTS_FILE) for folder in ("short", "adapter")
    )
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)
    assert vlm.load(tmp_path / "adapter").folder == tmp_path / "adapter"
    tensors = load_file(base / "model.safetensors")
    tensors["decoder.norm.weight"][0] += 1e-6
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="holds adapters on other weights"):
        convert_checkpoint(stopped, tmp_path / "again")


@pytest.fixture
def other_base(parents: Path, tmp_path: Path) -> Path:
    """The base with one number changed."""
    folder = shutil.copytree(parents / "align", tmp_path / "other")
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.norm.weight"][0] += 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_an_adapter_on_another_base_is_refused(
    lora_config: MakeConfig, other_base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    train_stage(lora_config(out, steps=1))
    path = out / "adapter.json"
    described = json.loads(path.read_text())
    described["base"]["folder"] = str(other_base)
    path.write_text(json.dumps(described))
    before = (other_base / "model.safetensors").read_bytes()
    message = f"is an adapter on other weights than those in {other_base}, whose sha256 is"
    with pytest.raises(UserError, match=message):
        vlm.load(out)
    with pytest.raises(UserError, match=message):
        merge(out, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    assert (other_base / "model.safetensors").read_bytes() == before


def test_a_run_is_not_resumed_on_another_base(
    lora_config: MakeConfig, other_base: Path, parents: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(parents / "align", tmp_path / "base")
    settings: dict[str, Any] = {"init_from": {"model": base}, "checkpoint_every": 2}
    train_stage(lora_config(tmp_path / "whole", **settings))
    out = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoints", out / "checkpoints")
    shutil.copy(other_base / "model.safetensors", base)
    for force in (False, True):
        with pytest.raises(UserError, match="holds adapters on other weights than those the run"):
            train_stage(lora_config(out, **settings), resume=True, force=force)


def test_a_base_in_bfloat16_has_small_matrices_and_exact_adapters(
    lora_config: MakeConfig, tmp_path: Path
) -> None:
    lora = {**LORA, "base_weights": "bfloat16"}
    config = lora_config(tmp_path / "out", lora=lora, precision="bf16", steps=2)
    setup, _, _ = start(config)
    for component, module in setup.modules.items():
        for name, parameter in module.named_parameters():
            frozen_matrix = parameter.dim() > 1 and not learns(f"{component}.{name}")
            expected = torch.bfloat16 if frozen_matrix else torch.float32
            assert parameter.dtype == expected, name
    train_stage(config)
    saved = load_file(config.out / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(tensor.any() for name, tensor in saved.items() if "lora_B" in name)


@pytest.mark.parametrize("base_weights", ["float32", "bfloat16", "nf4"])
def test_a_dry_run_shows_adapters_and_their_memory(
    base_weights: str, lora_config: MakeConfig, tmp_path: Path
) -> None:
    lora = {**LORA, "base_weights": base_weights}
    precision = "fp32" if base_weights == "float32" else "bf16"
    config = lora_config(tmp_path / "out", lora=lora, precision=precision)
    plan, text = make_plan(config), describe_run(config)
    assert "decoder: adapters of rank 2, times 2, on 49 layers" in text
    assert "cross_attention: adapters of rank 3, times 1, on 14 layers" in text
    assert ("counted as bfloat16 here" in text) == (base_weights == "nf4")
    parameters = [p for m in plan.setup.modules.values() for p in m.parameters()]
    learning = sum(4 * p.numel() for p in parameters if p.requires_grad)
    assert plan.memory.gradients == learning
    small = 4 if base_weights == "float32" else 2
    frozen = [p for p in parameters if not p.requires_grad]
    held = sum(p.numel() * (small if p.dim() > 1 else 4) for p in frozen)
    assert plan.memory.weights == learning + held
    assert not (tmp_path / "out").exists()


def test_recomputing_blocks_changes_no_bit(lora_config: MakeConfig, tmp_path: Path) -> None:
    """Dropout included: a block draws the same numbers again."""
    found = []
    for name, memory in (("kept", {}), ("again", {"recompute": ["encoder", "decoder"]})):
        config = lora_config(tmp_path / name, memory=memory, steps=2)
        train_stage(config)
        found.append(load_file(config.out / WEIGHTS_FILE))
    assert all(tensor.equal(found[1][name]) for name, tensor in found[0].items())


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (
            "finetune",
            "lora: {decodr: {rank: 2, alpha: 4}}",
            "unknown key lora.decodr; did you",
        ),
        ("finetune", "lora: {decoder: {rank: 0, alpha: 4}}", "lora.decoder.rank"),
        ("finetune", "lora: {decoder: {alpha: 4}}", "lora.decoder.rank is missing"),
        ("finetune", "lora: {decoder: {rank: 2, alpha: 4, dropout: 1.0}}", "lora.decoder.dropout"),
        ("finetune", "lora: {}", "lora: no layer gets an adapter; set one of decoder, cross_"),
        (
            "align",
            "lora: {decoder: {rank: 2, alpha: 4}}",
            "lora belongs to stage finetune; s",
        ),
        (
            "finetune",
            "lora: {decoder: {rank: 2, alpha: 4}, base_weights: bfloat16}",
            "base_weights bfloat16 computes in bfloat16: set precision to bf16, it is auto",
        ),
    ],
)
def test_a_wrong_section_is_named(
    stage: StageName, changes: str, message: str, stage_config: MakeConfig, tmp_path: Path
) -> None:
    text = dump_config(stage_config(stage, tmp_path / "out")).replace("lora: null\n", "")
    path = tmp_path / "config.yaml"
    path.write_text(f"{text}{changes}\n")
    with pytest.raises(UserError, match=message):
        load_config(TrainConfig, path)


def test_layers_of_timm_take_no_adapter(tiny_config: VLMConfig) -> None:
    vision = {
        **tiny_config.vision.model_dump(),
        **{"intermediate_layers": (3, 1), "num_prefix_tokens": 5},
        "tower": {
            "name": "vit_small_patch14_reg4_dinov2",
            "arguments": {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2},
        },
    }
    config = VLMConfig.model_validate({**tiny_config.model_dump(), "vision": vision})
    with torch.device("meta"):
        model = VisionLanguageModel(config, image_token_id=0)
    with pytest.raises(UserError, match="adapts our own vision layers; this model's are timm's"):
        adapted_layers(model, LoraConfig.model_validate(LORA))
    only_decoder = LoraConfig.model_validate({"decoder": LORA["decoder"]})
    assert len(adapted_layers(model, only_decoder)) == 49
