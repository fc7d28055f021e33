"""Processes that a launcher starts: they train together, and end together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config import TrainConfig
from training.launch import processes_wanted
from training.metrics import METRICS_FILE, read_metrics
from vlm.config import dump_config
from vlm.weights.folder import read_folder_config

MakeConfig = Callable[..., TrainConfig]
ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ACCELERATE = (
    *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"),
    *("--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
)
# What `vlm train` does by itself where there are two GPUs.
OURS = (
    *(sys.executable, "-c"),
    "import sys; from training.launch import launch; sys.exit(launch(2, sys.argv[1:]))",
)


def start(command: tuple[str, ...], config: TrainConfig, folder: Path) -> subprocess.Popen[str]:
    file = folder / "run.yaml"
    file.write_text(dump_config(config))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "train", config.stage, "--config", str(file)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(config: TrainConfig, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(read_metrics(config.out / METRICS_FILE)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.1)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    command_lines = {int(child): Path(f"/proc/{child}/cmdline") for child in children}
    return [pid for pid, line in command_lines.items() if b"train" in line.read_bytes()]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "command",
    [(*TORCHRUN, "-m", "vlm"), (*ACCELERATE, "-m", "vlm"), OURS],
    ids=["torchrun", "accelerate", "ours"],
)
def test_two_processes_train_a_stage_and_one_of_them_talks(
    command: tuple[str, ...], stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("align", tmp_path / "align")
    process = start(command, config, tmp_path)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    assert output.count("ddp over 2 ranks, on cpu") == 1
    assert output.count("align 3/3 train:") == 1
    assert read_folder_config(config.out).stage == "align"
    assert len(read_metrics(config.out / METRICS_FILE)) == 4


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", [(*TORCHRUN, "-m", "vlm"), OURS], ids=["torchrun", "ours"])
def test_when_one_process_dies_all_end_within_a_minute(
    command: tuple[str, ...], stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("align", tmp_path / "align", steps=100_000)
    process = start(command, config, tmp_path)
    wait_for_steps(config, process)
    workers = workers_of(process)
    assert len(workers) == 2
    killed = time.monotonic()
    os.kill(workers[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode not in (0, None)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_end_with_the_command_that_started_them(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("align", tmp_path / "align", steps=100_000)
    process = start(OURS, config, tmp_path)
    wait_for_steps(config, process)
    workers = workers_of(process)
    process.kill()  # so that it can tell nobody
    process.communicate(timeout=60)  # the workers' output ends when they do
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_process_that_was_launched_starts_no_others(
    stage_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage_config("align", tmp_path, device="auto")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert processes_wanted(config) == 4
    assert processes_wanted(config.model_copy(update={"device": "cpu"})) == 1
    alone = config.parallel.model_copy(update={"strategy": "none"})
    assert processes_wanted(config.model_copy(update={"parallel": alone})) == 1
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes_wanted(config) == 1


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(
    "parallel", [{}, {"strategy": "fsdp"}, {"strategy": "fsdp", "cpu_offload": True}]
)
def test_two_gpus_train_a_stage(
    parallel: dict[str, Any], stage_config: MakeConfig, tmp_path: Path
) -> None:
    changes = {"device": "cuda", "checkpoint_every": 2, "parallel": parallel}
    config = stage_config("finetune", tmp_path / "run", **changes)
    output, errors = start(OURS, config, tmp_path).communicate(timeout=240)
    assert f"{parallel.get('strategy', 'ddp')} over 2 ranks, on cuda" in output, errors[-3000:]
    assert read_folder_config(config.out).stage == "finetune"
