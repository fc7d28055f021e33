"""docs/finetune.md tells the truth: its commands run, on a small random Mllama."""

import json
import re
import shlex
import shutil
from pathlib import Path
from random import Random

import pytest
import yaml

from data.shapes import make_scene, render
from training.config import TrainConfig
from vlm.cli import main
from vlm.config import PACKAGE_ROOT, VLMConfig, load_config

PAGE = (PACKAGE_ROOT / "docs" / "finetune.md").read_text()
MODEL = Path("models/Llama-3.2-11B-Vision-Instruct")
RUN = Path("runs/llama3_2_11b_lora")
NUM_PICTURES = 48
# Appended to the training commands: a run of seconds.
SHORT = ("steps=2", "optim.warmup_steps=1", "data.num_workers=0", "batches_per_step=1")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The arguments of every call of `vlm` on the page."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert all(line.startswith("vlm ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def lay_out(folder: Path, model: Path) -> None:
    """What the page takes for granted: the model, and pictures with a table of questions."""
    shutil.copytree(model, folder / MODEL)
    receipts = folder / "downloads" / "receipts"
    receipts.mkdir(parents=True)
    rows = []
    for seed in range(NUM_PICTURES):
        name = f"{seed:04}.jpg"
        render(make_scene(Random(seed))).save(receipts / name)
        rows.append({"image": name, "question": "What is the total?", "answer": f"{seed}.40"})
        rows.append({"image": name, "question": "Which shop?", "answer": "Corner Bakery"})
    (receipts / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    shutil.copy(receipts / "0000.jpg", folder / "receipt.jpg")


# peft asks transformers 5 by an older name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_page_runs_on_a_small_random_model(
    mllama_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lay_out(tmp_path, mllama_source)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in MODEL.iterdir()}
    answers = []
    for arguments in commands():
        extra = SHORT if arguments[0] == "train" else ()
        assert main([*arguments, *extra]) == 0, arguments
        output = capsys.readouterr().out
        if arguments[0] == "ask":
            answers.append(output)
    assert len(answers) == 2 and answers[0] == answers[1]
    assert {path: path.read_bytes() for path in MODEL.iterdir()} == before
    report = json.loads((RUN / "eval" / "validation.json").read_text())
    assert set(report["run"]["model"]["weights_sha256"]) == {"adapter_model.safetensors", "base"}
    assert Path("runs/before.json").is_file()
    (code,) = blocks("python")
    exec(compile(code, "docs/finetune.md", "exec"), {})


def test_the_section_on_the_page_is_that_of_the_file() -> None:
    file = yaml.safe_load((PACKAGE_ROOT / "configs/finetune/llama3_2_11b_lora.yaml").read_text())
    (section,) = map(yaml.safe_load, blocks("yaml"))
    assert section == {key: file[key] for key in section}


def test_the_file_has_the_shape_of_the_instruct_model() -> None:
    """As the preset's head says it; tests/vlm/weights compares the preset with Meta's file."""
    file = load_config(TrainConfig, PACKAGE_ROOT / "configs/finetune/llama3_2_11b_lora.yaml")
    preset = PACKAGE_ROOT / "configs/model/llama3_2_11b.yaml"
    head = preset.read_text().partition("\nvision:")[0].replace("\n#", "")
    overrides = [word for word in re.findall(r"model\.([\w.]+=\w+)", head)]
    assert len(overrides) == 4
    assert file.model == load_config(VLMConfig, preset, overrides)
