"""Several processes learn what one does, and what they save goes on in any number of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

import vlm
from training.checkpoints import newest_whole, step_of
from training.config import ParallelConfig, TrainConfig
from training.conversion import convert_checkpoint
from training.features import FeatureSettings, write_features
from training.metrics import METRICS_FILE, read_metrics
from training.parallel import choose_strategy
from training.sharded import StoredParts
from vlm import cli
from vlm.errors import UserError
from vlm.weights.folder import read_component, read_folder_config, read_provenance

MakeConfig = Callable[..., TrainConfig]
PROGRAM = Path(__file__).parent / "parallel_program.py"
ROOT = PROGRAM.parents[2]
CPU = torch.device("cpu")
HALF = "checkpoints/step-00000010"


def run_cases(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    plain = []
    for name, case in cases.items():
        config = case["config"].model_copy(update={"out": folder / name})
        defaults = {"name": name, "ranks": 1, "resume": None, "kill": False, "contrast": False}
        plain.append({**defaults, **case, "config": config.model_dump(mode="json")})
    (folder / "cases.json").write_text(json.dumps(plain, default=str))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder / "cases.json")],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def make(stage_config: MakeConfig, shards: Path) -> MakeConfig:
    """`make(stage, **changes)`: a stage with steps of four batches, whoever takes them."""
    # A weight whose gradient is nothing but rounding would move by the whole rate in Adam's way;
    # this eps is above such gradients and far below the others.
    optim = {"learning_rate": 2e-3, "warmup_steps": 2, "eps": 1e-5}
    mixed = {"train": [str(shards / "train"), str(shards / "text")], "batch_samples": 2}

    def make_config(stage: Any, **changes: Any) -> TrainConfig:
        data = {"batch_samples": 2} if stage == "encoder" else mixed
        changes["optim"] = {**optim, **changes.get("optim", {})}
        return stage_config(stage, Path(), **{"batches_per_step": 4, "data": data, **changes})

    return make_config


@pytest.fixture(scope="module")
def runs(make: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders of all cases, by name."""
    folder = tmp_path_factory.mktemp("parallel")
    long = {"steps": 20, "checkpoint_every": 10}
    hsdp = {"strategy": "hsdp", "shard_ranks": 2}
    fsdp = {"strategy": "fsdp"}
    saved = folder / "hsdp" / HALF
    pairs = {"data": {"batch_samples": 8}, "batches_per_step": None}
    clip = make("encoder", **pairs)
    siglip = make("encoder", **pairs, contrastive={"loss": "siglip"})
    cases: dict[str, dict[str, Any]] = {
        "one": {"config": make("finetune", **long)},
        "ddp": {"config": make("finetune", **long), "ranks": 2},
        "fsdp": {"config": make("finetune", **long, parallel=fsdp), "ranks": 2},
        "hsdp": {"config": make("finetune", **long, parallel=hsdp), "ranks": 4},
        "on_two": {
            "config": make("finetune", **long, parallel=fsdp),
            "ranks": 2,
            "resume": saved,
        },
        "on_one": {"config": make("finetune", **long), "resume": saved},
        "ddp_again": {
            "config": make("finetune", **long),
            "ranks": 2,
            "resume": folder / "ddp" / HALF,
        },
        "fsdp_again": {
            "config": make("finetune", **long, parallel=fsdp),
            "ranks": 2,
            "resume": folder / "fsdp" / HALF,
        },
        "clip_one": {"config": clip, "contrast": True},
        "clip_two": {"config": clip, "contrast": True, "ranks": 2},
        "siglip_one": {"config": siglip, "contrast": True},
        "siglip_two": {"config": siglip, "contrast": True, "ranks": 2},
        "killed": {
            "config": make("finetune", steps=400, checkpoint_every=1),
            "ranks": 2,
            "kill": True,
        },
    }
    run_cases(folder, cases)
    return folder


@pytest.fixture(scope="module")
def more_runs(
    make: MakeConfig, shards: Path, parents: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """More of them, for slow tests."""
    folder = tmp_path_factory.mktemp("more")
    fsdp = {"strategy": "fsdp"}
    muon = {"optim": {"kind": "muon"}, "steps": 4}
    cases = {
        "muon_one": {"config": make("finetune", **muon)},
        "muon_fsdp": {"config": make("finetune", **muon, parallel=fsdp), "ranks": 2},
        "align_one": {"config": make("align", steps=5)},
        "align_ddp": {"config": make("align", steps=5), "ranks": 2},
        "align_fsdp": {
            "config": make("align", steps=5, parallel={**fsdp, "reduce_every_batch": True}),
            "ranks": 2,
        },
        "text_one": {"config": make("text", steps=3, data={"batch_samples": 2})},
        "text_fsdp": {
            "config": make("text", steps=3, data={"batch_samples": 2}, parallel=fsdp),
            "ranks": 2,
        },
        "encoder_ddp": {"config": make("encoder"), "ranks": 2},
        "encoder_fsdp": {"config": make("encoder", parallel=fsdp), "ranks": 2},
        "bf16_fsdp": {
            "config": make("encoder", parallel=fsdp, precision="bf16"),
            "ranks": 2,
        },
    }
    encoded = folder / "encoded"
    for split in ("train", "validation"):
        settings = FeatureSettings("float32", samples_per_shard=5)  # as the pictures: same order
        write_features(parents / "encoder", str(shards / split), encoded / split, settings, CPU)
    for name, data, strategy, ranks in (
        ("mixed_one", shards, "none", 1),
        ("features_ddp", encoded, "ddp", 2),
        ("features_fsdp", encoded, "fsdp", 2),
    ):
        sources = {"train": [data / "train", shards / "text"], "validation": [data / "validation"]}
        config = make(
            "align",
            steps=5,
            data={**sources, "batch_samples": 2},
            parallel={"strategy": strategy},
        )
        cases[name] = {"config": config, "ranks": ranks}
    run_cases(folder, cases)
    return folder


def losses(run: Path, split: str = "train") -> list[float]:
    return [r["loss"] for r in read_metrics(run / METRICS_FILE) if r["split"] == split]


def weights(run: Path) -> Tensor:
    parts = [
        tensor.flatten()
        for component in read_folder_config(run).components
        for _, tensor in sorted(read_component(run, component).items())
    ]
    return torch.cat(parts)


# Sums of float32 in another order: after 20 steps losses and weights were 1e-7 apart.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_that_resume_end_with_the_same_bits(name: str, runs: Path) -> None:
    assert losses(runs / f"{name}_again") == losses(runs / name)[10:]
    assert weights(runs / f"{name}_again").equal(weights(runs / name))


@pytest.mark.parametrize("name", ["ddp", "fsdp", "hsdp", "on_two", "on_one"])
def test_ranks_learn_what_one_process_does_in_20_steps_of_text_and_pictures(
    name: str, runs: Path
) -> None:
    expected = losses(runs / "one")
    found = losses(runs / name)
    resumed = name.startswith("on_")
    assert len(expected) == 20 and len(found) == (10 if resumed else 20)
    assert found == pytest.approx(expected[-len(found) :], rel=TOLERANCE)
    assert expected[-1] < 0.9 * expected[0]
    assert (weights(runs / name) - weights(runs / "one")).abs().max() <= TOLERANCE
    # Five scenes make batches that ranks cannot share evenly.
    assert losses(runs / name, "validation") == pytest.approx(
        losses(runs / "one", "validation"), rel=TOLERANCE
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("align_ddp", "align_one"),
        ("align_fsdp", "align_one"),
        ("features_ddp", "mixed_one"),
        ("features_fsdp", "mixed_one"),
        ("text_fsdp", "text_one"),
        ("muon_fsdp", "muon_one"),
        ("encoder_fsdp", "encoder_ddp"),
    ],
)
def test_every_stage_and_muon_learn_the_same_however_they_are_shared(
    name: str, other: str, more_runs: Path
) -> None:
    found, expected = more_runs / name, more_runs / other
    assert losses(found) == pytest.approx(losses(expected), rel=TOLERANCE)
    assert (weights(found) - weights(expected)).abs().max() <= TOLERANCE
    validation = losses(expected, "validation")
    assert losses(found, "validation") == pytest.approx(validation, rel=TOLERANCE)


@pytest.mark.slow
def test_shards_stay_float32_when_bf16_is_computed(more_runs: Path) -> None:
    run = more_runs / "bf16_fsdp"
    assert weights(run).dtype == torch.float32
    # bf16 keeps 8 bits: two to three digits agree in the first steps.
    assert losses(run) == pytest.approx(losses(more_runs / "encoder_ddp"), rel=3e-2)
    assert losses(run) != losses(more_runs / "encoder_fsdp")


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_unlike_batches_are_contrasted_as_one_large_batch(loss: str, runs: Path) -> None:
    expected = load_file(runs / f"{loss}_one" / "gradients.safetensors")
    found = load_file(runs / f"{loss}_two" / "gradients.safetensors")
    torch.testing.assert_close(found.pop("loss"), expected.pop("loss"))
    assert set(found) == set(expected)
    flat, other = (
        torch.cat([tensors[name].flatten() for name in sorted(tensors)])
        for tensors in (found, expected)
    )
    # Sums of float32 in another order.
    assert (flat - other).norm() <= 2e-6 * other.norm()
    assert other.norm() > 0.1


def test_each_rank_writes_its_own_parts_and_every_number_is_written_once(runs: Path) -> None:
    checkpoint = runs / "hsdp" / HALF
    files = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    assert files == [f"tensors-{rank:05}-of-00004.safetensors" for rank in (1, 2, 3, 4)]
    stored = [load_file(checkpoint / name) for name in files]
    numbers = [sum(t.numel() for n, t in file.items() if "random" not in n) for file in stored]
    # The second row of ranks holds copies of the first one's shards.
    assert numbers[2:] == [0, 0] and 0.8 < numbers[0] / numbers[1] < 1.25
    whole = StoredParts(checkpoint)
    total = sum(torch.Size(s).numel() for n, s in whole.shapes.items() if "random" not in n)
    assert sum(numbers) == total
    assert {f"random.{rank}.cpu" for rank in range(4)} <= set(whole.shapes)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_own_reader_finds_the_same_tensors(runs: Path) -> None:
    checkpoint = runs / "hsdp" / HALF
    stored = StoredParts(checkpoint)
    names = [name for name in stored.shapes if name.startswith("model.")]
    found = {name: torch.zeros(stored.shapes[name]) for name in names}
    load(found, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    assert all(found[name].equal(stored.read(name)) for name in names)


def test_a_missing_ranks_file_is_noticed(runs: Path, tmp_path: Path) -> None:
    for path in (runs / "hsdp" / HALF).glob("*-of-00004.safetensors"):
        if "00002-of" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    name = "model.projector.layers.0.weight"
    stored = StoredParts(tmp_path)
    assert name in stored.shapes
    with pytest.raises(UserError, match=r"holds \d+ of \d+ numbers of .*another rank is missing"):
        stored.read(name)


def test_a_file_without_places_is_refused(runs: Path, tmp_path: Path) -> None:
    save_file({"model.a": torch.ones(2)}, tmp_path / "tensors.safetensors")
    with pytest.raises(
        UserError, match=r"tensors\.safetensors cannot be read as safetensors in parts"
    ):
        StoredParts(tmp_path)


def test_a_checkpoint_of_four_ranks_becomes_a_whole_model_folder(
    runs: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    assert cli.main(["convert", "checkpoint", str(runs / "hsdp"), str(whole)]) == 0
    assert convert_checkpoint(runs / "one" / HALF, tmp_path / "one") == runs / "one" / HALF
    assert (weights(whole) - weights(tmp_path / "one")).abs().max() <= TOLERANCE
    assert not weights(whole).equal(weights(runs / "hsdp"))
    assert read_provenance(whole)["steps"] == 10
    model = vlm.load(whole, device="cpu", dtype="float32")
    assert isinstance(model.ask([], "How many circles are there?", max_tokens=3), str)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere", "neither the folder of a run nor a checkpoint"),
        ("empty", "has no checkpoint"),
        ("hsdp", "is not empty"),
    ],
)
def test_what_cannot_be_converted_is_named(
    source: str, complaint: str, runs: Path, tmp_path: Path
) -> None:
    out = runs / "one" if source == "hsdp" else tmp_path / "out"
    if source == "empty":
        (runs / source).mkdir()
        shutil.copy(runs / "one" / "train.yaml", runs / source)
    with pytest.raises(UserError, match=complaint):
        convert_checkpoint(runs / source, out)


def test_a_dead_rank_ends_the_others_and_a_whole_checkpoint_stays(runs: Path) -> None:
    ended = json.loads((runs / "killed.exit.json").read_text())
    assert ended["codes"][1] == -9 and ended["codes"][0] != 0
    assert ended["seconds"] < 60
    said: list[str] = []
    newest = newest_whole(runs / "killed" / "checkpoints", said.append)
    assert newest is not None and step_of(newest) >= 1 and said == []


@pytest.mark.parametrize(
    ("config", "ranks", "strategy"),
    [
        ({}, 1, "none"),
        ({}, 2, "ddp"),
        ({"strategy": "fsdp"}, 2, "fsdp"),
        ({"strategy": "fsdp"}, 1, "none"),
        ({"strategy": "hsdp", "shard_ranks": 2}, 4, "hsdp"),
    ],
)
def test_the_number_of_ranks_and_the_configuration_choose_how_they_share(
    config: dict[str, Any], ranks: int, strategy: str
) -> None:
    assert choose_strategy(ParallelConfig(**config), ranks) == strategy


@pytest.mark.parametrize(
    ("config", "ranks", "complaint"),
    [
        ({"strategy": "none"}, 2, "2 processes were started, each of which would train alone"),
        ({"strategy": "fsdp", "cpu_offload": True}, 1, "takes several processes"),
    ],
)
def test_what_would_be_silently_something_else_is_refused(
    config: dict[str, Any], ranks: int, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        choose_strategy(ParallelConfig(**config), ranks)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"shard_ranks": 2}, "shard_ranks belongs to strategy hsdp"),
        ({"strategy": "ddp", "cpu_offload": True}, "cpu_offload is for strategy fsdp or hsdp"),
        ({"reduce_every_batch": True}, "reduce_every_batch is for strategy fsdp or hsdp"),
    ],
)
def test_settings_of_another_strategy_are_refused(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ParallelConfig(**config)
