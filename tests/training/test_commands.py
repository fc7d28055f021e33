"""`vlm train` from the command line: it trains, and every mistake is one line and exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.config import StageName, TrainConfig
from training.metrics import METRICS_FILE, read_metrics
from training.stages import STAGES
from vlm.cli import main
from vlm.config import PACKAGE_ROOT, dump_config, load_config
from vlm.weights.folder import read_folder_config

STAGE_FILES = sorted(PACKAGE_ROOT.glob("configs/*/*.yaml"))
WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(stage_config: Callable[..., TrainConfig], tmp_path: Path) -> WriteConfig:
    """`write_config(stage)` writes the stage's YAML, whose run folder is `out` beside it."""

    def write(stage: StageName) -> Path:
        path = tmp_path / f"{stage}.yaml"
        path.write_text(dump_config(stage_config(stage, tmp_path / "out")))
        return path

    return write


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_trains_from_its_file_with_overrides(
    stage: StageName, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(stage)
    assert main(["train", stage, "--config", str(config), "steps=1", "optim.clip_norm=5e-1"]) == 0
    assert read_folder_config(tmp_path / "out").stage == stage
    assert read_metrics(tmp_path / "out" / METRICS_FILE)[-1]["step"] == 1
    used = load_config(TrainConfig, tmp_path / "out" / "train.yaml")
    assert used.steps == 1 and used.optim.clip_norm == 0.5


def test_a_dry_run_prints_and_writes_nothing(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config("align")
    assert main(["train", "align", "--config", str(config), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "projector" in output and "frozen" in output and "memory: " in output
    assert "[[" in output and "<|eot_id|>]]" in output
    assert list(tmp_path.iterdir()) == [config]


def test_resume_auto_begins_a_run_that_has_no_checkpoint(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "text", "--config", str(write_config("text")), "--resume", "auto"]
    assert main(arguments) == 0
    assert "starting anew" in capsys.readouterr().out
    assert "nothing to resume" in fails(arguments, capsys)


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("text", ["--resume", "yes"], "--resume takes auto, not 'yes'"),
        ("align", [], "is for stage text; run `vlm train text`"),
        ("text", ["stpes=3"], "unknown key stpes; did you mean steps?"),
        ("text", ["optim.learning_rat=3"], "did you mean optim.learning_rate?"),
        ("text", ["steps=many"], "steps must be "),
        ("text", ["steps=0"], "steps must be "),
        ("text", ["data.train=[nowhere]"], "nowhere"),
        ("text", ["data.batch_tokens=9"], "set exactly one of batch_samples and batch_tokens"),
        ("text", ["init_from.model=x"], "stage text takes no init_from.model"),
        ("text", ["data.max_tokens=2"], "more than data.max_bad_fraction 0.01"),
        ("text", ["optim.learning_rate=1e38", "steps=20"], "lower optim.learning_rate"),
        ("text", ["model.decoder.vocab_size=100"], "vocab"),
        ("text", ["model.decoder.num_heads=5"], "num_heads"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    stage: StageName,
    arguments: list[str],
    message: str,
    write_config: WriteConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config("text")
    assert message in fails(["train", stage, "--config", str(config), *arguments], capsys)


def test_a_missing_file_and_a_missing_option_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere.yaml" in fails(["train", "text", "--config", "nowhere.yaml"], capsys)
    assert "--config" in fails(["train", "text"], capsys)


def test_a_taken_run_folder_is_one_line(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "text", "--config", str(write_config("text")), "steps=1"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert "already holds a run" in fails(arguments, capsys)


@pytest.mark.parametrize(
    "name", [str(p.relative_to(PACKAGE_ROOT)) for p in STAGE_FILES if "\nstage: " in p.read_text()]
)
def test_every_stage_file_in_configs_is_valid_and_opens_with_its_command(name: str) -> None:
    config = load_config(TrainConfig, PACKAGE_ROOT / name)
    head = (PACKAGE_ROOT / name).read_text().partition("\nstage: ")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert any(f"vlm train {config.stage} --config {name}" in line for line in head)
