"""FAULTS.md, training and checkpoints: each fault for real, and what is not lost.

Row 14 is in test_launch.py, row 17 in test_lora.py.
"""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.checkpoints import CheckpointManifest, list_checkpoints, seal, verify
from training.config import TrainConfig
from training.metrics import METRICS_FILE, read_metrics
from training.objectives import Loss, NextToken
from training.run import train_stage
from training.sharded import Parts
from training.summary import SUMMARY_FILE
from vlm.config import dump_config
from vlm.errors import UserError
from vlm.weights.folder import read_component, read_folder_config, write_json

MakeConfig = Callable[..., TrainConfig]

PROGRAM = Path(__file__).parent / "faults_program.py"
ROOT = PROGRAM.parents[2]
STEPS = 6
SETTINGS: dict[str, Any] = {"steps": STEPS, "checkpoint_every": 2, "data": {"log_samples": True}}
KILLS = ("kill in write", "kill before rename", "kill in prune")
# Where a run is killed is another step each time; whichever it is, the result is the same.
KILLED_AT = random.SystemRandom().randrange(1, STEPS + 1)


@dataclass
class Acts:
    """The runs of the program: their exit codes and output by name; `folder` has their models."""

    folder: Path

    def code(self, name: str) -> int:
        return int(json.loads((self.folder / f"{name}.json").read_text())[0])

    def output(self, name: str) -> str:
        return str(json.loads((self.folder / f"{name}.json").read_text())[1])

    def check_same_model(self, run: str) -> None:
        """Check that a run has ended with the weights, and the samples, of the one left alone."""
        assert same_weights(self.folder / "whole", self.folder / run), f"killed at {KILLED_AT}"
        samples = [(self.folder / name / "samples.jsonl").read_text() for name in ("whole", run)]
        assert samples[0] == samples[1]


def same_weights(one: Path, other: Path) -> bool:
    for component in read_folder_config(one).components:
        found = read_component(other, component)
        for name, tensor in read_component(one, component).items():
            if not tensor.equal(found.pop(name)):
                return False
        assert not found
    return True


@pytest.fixture(scope="module")
def acts(stage_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Acts:
    folder = tmp_path_factory.mktemp("faults")
    listed: list[dict[str, Any]] = []

    def add(
        name: str,
        run: str,
        fault: str = "none",
        step: int = 0,
        until: str | None = None,
        more: tuple[str, ...] = (),
    ) -> None:
        file = folder / f"{run}.yaml"
        resume = ["--resume", "auto"] if file.exists() else []
        if not file.exists():
            file.write_text(dump_config(stage_config("text", folder / run, **SETTINGS)))
        arguments = ["train", "text", "--config", str(file), *more, *resume]
        path = None if until is None else str(folder / until)
        listed.append(
            {"name": name, "fault": fault, "step": step, "until": path, "arguments": arguments}
        )

    add("whole", "whole")
    for fault in KILLS:
        run = fault.replace(" ", "-")
        add(run, run, fault, more=("keep_checkpoints=1",))
        add(f"{run} resumed", run)
    add("killed", "killed", "kill", KILLED_AT)
    add("killed resumed", "killed", more=("data.num_workers=1",))
    add("SIGTERM", "signals", "SIGTERM", 3, more=("data.num_workers=1",))
    add("SIGUSR1", "signals", "SIGUSR1", 5)
    add("signals resumed", "signals")
    add("SIGTERM twice", "twice", "SIGTERM twice", 3)
    add("full disk", "disk", "full disk", 3)
    add("full disk resumed", "disk")
    add("first", "two", "wait", 3, until="waiting")
    add("second", "two")
    add("third", "two")
    if find_spec("wandb") is not None:
        add("unreachable", "unreachable", "impatient", more=("trackers=[tensorboard, wandb]",))
    file = folder / "acts.json"
    file.write_text(json.dumps(listed))
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(file)],
        cwd=ROOT,
        # Nothing listens at that port: connections are refused.
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "WANDB_BASE_URL": "http://127.0.0.1:9",
            "WANDB_API_KEY": "0" * 40,
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert Acts(folder).code("whole") == 0, Acts(folder).output("whole")
    return Acts(folder)


@pytest.mark.parametrize("fault", KILLS)
def test_row_1_sigkill_while_saving_resumes_from_the_checkpoint_before(
    fault: str, acts: Acts
) -> None:
    run = fault.replace(" ", "-")
    assert acts.code(run) == -9
    # In pruning the new checkpoint is there already.
    step = 4 if fault == "kill in prune" else 2
    output = acts.output(f"{run} resumed")
    assert acts.code(f"{run} resumed") == 0, output
    assert f"resumed from {acts.folder / run}/checkpoints/step-{step:08d} at step {step}" in output
    acts.check_same_model(run)
    assert not list((acts.folder / run / "checkpoints").glob(".*"))


def test_a_run_killed_at_any_step_ends_with_the_same_weights(acts: Acts) -> None:
    assert acts.code("killed") == -9
    assert acts.code("killed resumed") == 0, acts.output("killed resumed")
    acts.check_same_model("killed")


def test_row_2_a_full_disk_names_path_and_bytes_and_leaves_the_checkpoint_before(
    acts: Acts,
) -> None:
    output = acts.output("full disk")
    assert acts.code("full disk") == 2, output
    error = output.splitlines()[-1]
    checkpoints = acts.folder / "disk" / "checkpoints"
    assert f"checkpoint {checkpoints / 'step-00000004'} needs " in error
    assert "bytes and cannot be written: " in error and "File too large" in error
    assert error.endswith(f"the last one is {checkpoints / 'step-00000002'}")
    assert "at step 2\n" in acts.output("full disk resumed")
    acts.check_same_model("disk")


def test_row_3_sigterm_and_sigusr1_save_the_step_and_exit_with_75(acts: Acts) -> None:
    for name, step in (("SIGTERM", 3), ("SIGUSR1", 5)):
        output = acts.output(name)
        assert acts.code(name) == 75, output
        assert output.endswith(f"saved step {step}; go on with --resume auto\n")
    assert "at step 3\n" in acts.output("SIGUSR1")
    assert "at step 5\n" in acts.output("signals resumed")
    acts.check_same_model("signals")


def test_row_4_a_second_sigterm_ends_at_once_and_leaves_the_old_checkpoint(acts: Acts) -> None:
    assert acts.code("SIGTERM twice") == 143
    (checkpoint,) = list_checkpoints(acts.folder / "twice" / "checkpoints")
    assert verify(checkpoint).step == 2


@pytest.fixture
def stopped(stage_config: MakeConfig, tmp_path: Path, acts: Acts) -> Callable[..., TrainConfig]:
    """`stopped(**changes)`: the configuration of a copy of the run that was left alone, as it was
    behind its last checkpoint, that of step 4."""

    def make(**changes: Any) -> TrainConfig:
        out = tmp_path / "run"
        shutil.copytree(acts.folder / "whole", out)
        for path in out.iterdir():
            if path.is_file() and path.name not in ("train.yaml", METRICS_FILE, "samples.jsonl"):
                path.unlink()
        return stage_config("text", out, **{**SETTINGS, **changes})

    return make


def newest(config: TrainConfig) -> Path:
    return list_checkpoints(config.out / "checkpoints")[-1]


def test_row_5_a_truncated_file_is_named_and_the_checkpoint_before_taken(
    stopped: MakeConfig, acts: Acts, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stopped()
    file = newest(config) / "tensors.safetensors"
    cut = file.read_bytes()[:-10]
    file.write_bytes(cut)
    train_stage(config, resume=True)
    output = capsys.readouterr().out
    assert "step-00000004 is damaged: tensors.safetensors has " in output
    assert "step-00000002 at step 2\n" in output
    aside = config.out / "checkpoints" / "damaged-step-00000004" / "tensors.safetensors"
    assert aside.read_bytes() == cut
    assert same_weights(acts.folder / "whole", config.out)


def test_row_6_a_loss_that_is_no_number_stops_before_the_update_with_the_samples(
    stage_config: MakeConfig, parents: Path, tmp_path: Path
) -> None:
    poisoned = tmp_path / "parent"
    shutil.copytree(parents / "align", poisoned)
    tensors = load_file(poisoned / "model.safetensors")
    tensors["decoder.norm.weight"][0] = torch.nan
    save_file(tensors, poisoned / "model.safetensors", metadata={"format": "pt"})
    config = stage_config("finetune", tmp_path / "out", init_from={"model": poisoned})
    with pytest.raises(UserError, match=r"the loss of step 1 is nan; nothing was upd") as caught:
        train_stage(config)
    record = json.loads((config.out / "bad_step.json").read_text())
    assert record["step"] == 1 and len(record["keys"]) == 4
    assert all(key in str(caught.value) for key in record["keys"])
    summary = json.loads((config.out / SUMMARY_FILE).read_text())
    assert summary["ending"] == "failed" and "the loss of step 1" in summary["why"]
    assert summary["step"] == 0


def test_row_7_a_gradient_that_is_no_number_costs_its_step_and_too_many_the_run(
    stage_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = NextToken.loss
    calls: list[int] = []

    def overflowing(self: NextToken, batch: Any) -> Loss:
        """The true loss; its gradient overflows in the calls of `bad`."""
        calls.append(len(calls))
        loss = plain(self, batch)
        if len(calls) in bad:
            loss.total.register_hook(lambda gradient: gradient * 1e38 * 1e38)
        return loss

    monkeypatch.setattr(NextToken, "loss", overflowing)
    bad = {2, 4, 5}
    settings = {"learning_rate": 1e-2, "warmup_steps": 2, "max_skipped_steps": 3}
    config = stage_config("text", tmp_path / "goes on", steps=6, optim=settings)
    assert train_stage(config).steps == 6
    records = read_metrics(config.out / METRICS_FILE)
    skipped = {r["step"]: r.get("skipped_steps") for r in records if r["split"] == "train"}
    assert skipped == {1: None, 2: 1, 3: None, 4: 2, 5: 3, 6: None}
    lines = read_metrics(config.out / "skipped_steps.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 5] and len(lines[0]["keys"]) == 4
    assert json.loads((config.out / SUMMARY_FILE).read_text())["skipped_steps"] == 3

    calls.clear()
    bad = {2, 3, 4}
    config = stage_config("text", tmp_path / "stops", steps=6, optim=settings)
    with pytest.raises(UserError, match=r"3 step\(s\) in a row .*optim\.max_skipped_steps 3"):
        train_stage(config)


def test_row_8_and_9_a_resumed_run_sees_the_same_samples_with_other_workers(acts: Acts) -> None:
    # `killed` was resumed with a worker, `SIGTERM` ran with one and went on without.
    for run in ("killed", "signals"):
        lines = read_metrics(acts.folder / run / "samples.jsonl")
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        acts.check_same_model(run)


def test_row_10_changed_settings_are_listed_and_need_force(
    stopped: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = stopped(optim={"learning_rate": 0.5, "warmup_steps": 3})
    before = (config.out / "train.yaml").read_text()
    with pytest.raises(UserError) as caught:
        train_stage(config, resume=True)
    message = str(caught.value)
    assert "optim.learning_rate was 0.01, is 0.5; optim.warmup_steps was 2, is 3" in message
    assert "--force" in message
    assert (config.out / "train.yaml").read_text() == before
    train_stage(config, resume=True, force=True)
    assert "optim.learning_rate was 0.01, is 0.5\n" in capsys.readouterr().out


def rewrite(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change a checkpoint's tensors, and its manifest with them."""
    tensors = load_file(checkpoint / "tensors.safetensors")
    change(tensors)
    Parts.copy_of(tensors).write(checkpoint)
    manifest = manifest_of(checkpoint)
    write_json(checkpoint / "manifest.json", manifest.model_dump())


def manifest_of(checkpoint: Path) -> CheckpointManifest:
    return CheckpointManifest(step=4, files=seal(checkpoint, ["tensors.safetensors", "state.json"]))


def test_row_11_weights_of_another_shape_are_listed(stopped: MakeConfig) -> None:
    config = stopped()
    checkpoint = newest(config)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.decoder.norm.weight"] = torch.ones(31)
        del tensors["model.decoder.embed_tokens.weight"]

    rewrite(checkpoint, change)
    with pytest.raises(UserError) as caught:
        train_stage(config, resume=True)
    message = str(caught.value)
    assert "model.decoder.norm.weight is [31], needed: [32]" in message
    assert "model.decoder.embed_tokens.weight is missing" in message


class Harmful:
    """What a pickle can do: anything, when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.pt", "tensors.safetensors"])
def test_row_12_a_pickled_checkpoint_is_refused_and_never_read(
    name: str, stopped: MakeConfig, tmp_path: Path
) -> None:
    config = stopped()
    for checkpoint in list_checkpoints(config.out / "checkpoints"):
        (checkpoint / name).write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
        if name == "tensors.safetensors":
            manifest = manifest_of(checkpoint)
            write_json(checkpoint / "manifest.json", manifest.model_dump())
    with pytest.raises(UserError, match=r"optimizer\.pt is neither|cannot be read as safetensors"):
        train_stage(config, resume=True)
    assert not (tmp_path / "harm").exists()


def test_row_13_out_of_memory_says_what_helps_and_names_the_last_checkpoint(
    stopped: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(self: NextToken, batch: Any) -> Loss:
        torch.empty(1 << 50)  # four million gigabytes, asked of the real allocator
        raise AssertionError

    monkeypatch.setattr(NextToken, "loss", too_much)
    with pytest.raises(UserError) as caught:
        train_stage(stopped(), resume=True)
    message = str(caught.value)
    assert "out of memory in step 5 (1 batch(es), " in message
    for advice in ("data.batch_samples", "data.batch_tiles", "memory.recompute"):
        assert advice in message
    assert message.endswith("step-00000004")


def test_row_15_a_second_run_in_a_folder_is_refused_until_the_first_is_dead(acts: Acts) -> None:
    assert acts.code("second") == 2
    assert f"another run is writing to {acts.folder / 'two'}" in acts.output("second")
    # The first was killed then, and its lock went with it.
    assert acts.code("third") == 0, acts.output("third")
    acts.check_same_model("two")


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_row_16_an_unreachable_tracker_is_a_warning_and_figures_are_on_disk(acts: Acts) -> None:
    output = acts.output("unreachable")
    assert acts.code("unreachable") == 0, output
    assert "warning: " in output and "metrics.jsonl has them" in output
    lines = [read_metrics(acts.folder / run / METRICS_FILE) for run in ("whole", "unreachable")]
    assert [r["loss"] for r in lines[0]] == [r["loss"] for r in lines[1]]
    acts.check_same_model("unreachable")
