"""`vlm caption` over folders: to a file, resumed, with damaged pictures."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import vlm
from vlm import captioning, cli
from vlm.captioning import caption_files, named_files, picture_files
from vlm.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """Four pictures, one of them below, one damaged; a text, a hidden picture."""
    pictures = tmp_path / "pictures"
    (pictures / "below").mkdir(parents=True)
    (pictures / ".hidden").mkdir()
    for number, name in enumerate(("a.png", "b.JPEG", "below/c.webp", ".hidden/h.png")):
        picture(number, 24, 16).save(pictures / name)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("no picture either")
    return pictures


def run(*arguments: object) -> int:
    return cli.main(["caption", *map(str, arguments), "--device", "cpu", "--max-tokens", "5"])


def rows(path: Path) -> dict[str, str]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["image"]: row["caption"] for row in found}


def test_a_folders_pictures_are_found_by_their_endings(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in picture_files(folder)]
    assert names == ["a.png", "b.JPEG", "below/c.webp", "broken.jpg"]
    assert list(named_files([folder])) == names
    alone = folder / "a.png"
    assert list(named_files([alone, folder / "below"])) == [
        str(alone),
        str(folder / "below" / "c.webp"),
    ]
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no picture files"):
        picture_files(folder / "empty")


def test_batches_give_the_captions_of_single_pictures(
    folder: Path, open_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning, "BATCH_IMAGES", 3)
    model = vlm.load(open_model_folder, device="cpu")
    paths = picture_files(folder)
    made = [one for batch in caption_files(model, paths, max_tokens=5) for one in batch]
    assert [one.path for one in made] == paths
    for one in made[:3]:
        assert one.caption == " ".join(model.caption(one.path, max_tokens=5).split())
    assert len({one.caption for one in made[:3]}) > 1
    assert made[3].caption is None and "broken.jpg" in (made[3].problem or "")


def test_a_folder_is_written_to_a_file_and_what_cannot_be_read_is_named(
    folder: Path, open_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.jsonl"
    assert run(open_model_folder, folder, "--out", out) == 2
    errors = capsys.readouterr().err
    assert "broken.jpg" in errors and "3 of 4 captions, 1 left out" in errors
    assert list(rows(out)) == ["a.png", "b.JPEG", "below/c.webp"]
    assert run(open_model_folder, folder, "--out", tmp_path / "captions.csv") == 2
    assert len((tmp_path / "captions.csv").read_text().splitlines()) == 4


def test_a_withheld_caption_is_not_written_and_the_others_are(
    folder: Path,
    open_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "broken.jpg").unlink()
    caption = vlm.load(open_model_folder, device="cpu").caption(folder / "b.JPEG", max_tokens=5)
    (tmp_path / "one_caption.py").write_text(
        "class Said:\n"
        "    def classify(self, content):\n"
        f"        return {{'said': float(content.text.strip() == {caption!r})}}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rules = {"classifiers": [{"kind": "one_caption:Said"}], "input": None}
    (tmp_path / "policy.yaml").write_text(json.dumps(rules))
    out = tmp_path / "captions.jsonl"
    assert run(open_model_folder, folder, "--out", out, "--safety", tmp_path / "policy.yaml") == 2
    assert list(rows(out)) == ["a.png", "below/c.webp"]
    errors = capsys.readouterr().err
    assert "b.JPEG: This answer was withheld" in errors and "1 left out" in errors


def test_a_run_goes_on_where_it_was(
    folder: Path, open_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "captions.jsonl", tmp_path / "whole.jsonl"
    (folder / "broken.jpg").unlink()
    assert run(open_model_folder, folder, "--out", whole) == 0
    _, rest = whole.read_bytes().split(b"\n", 1)
    kept = json.dumps({"image": "a.png", "caption": "kept"}).encode() + b"\n"
    out.write_bytes(kept + rest[:20])
    capsys.readouterr()
    assert run(open_model_folder, folder, "--out", out) == 0
    assert out.read_bytes() == kept + rest
    assert "has 1 of 3 captions" in capsys.readouterr().err


def test_the_commands_of_the_page_run(
    folder: Path,
    open_model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also the one that makes training data of the captions."""
    (folder / "broken.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(open_model_folder, tmp_path / "runs" / "quickstart" / "finetune")
    commands = re.findall(r"^vlm (caption .*)$", PAGE.read_text(), re.MULTILINE)
    commands += re.findall(r"`vlm (shards pack captions.*?)`", PAGE.read_text())
    assert len(commands) == 3
    for command in commands:
        assert cli.main(shlex.split(command)) == 0, command
    num_captions = sum(1 for text in rows(tmp_path / "captions.jsonl").values() if text)
    assert f"OUT: samples {num_captions}," in capsys.readouterr().out


@pytest.mark.slow  # imports everything in a process of its own
def test_a_killed_run_loses_no_caption_and_makes_none_twice(
    folder: Path, open_model_folder: Path, tmp_path: Path
) -> None:
    (folder / "broken.jpg").unlink()
    for number in range(200):
        shutil.copy(folder / "a.png", folder / f"copy-{number}.png")
    out = tmp_path / "captions.jsonl"
    command = [sys.executable, "-m", "vlm", "caption", str(open_model_folder), str(folder)]
    options = ["--out", str(out), "--device", "cpu", "--max-tokens", "12"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen([*command, *options], env=environment) as process:
        end = time.monotonic() + 100
        while not (out.exists() and out.read_bytes().count(b"\n") >= 32):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    num_lines = len(out.read_text().splitlines())
    assert 32 <= num_lines < 203
    arguments = ["caption", str(open_model_folder), str(folder), *options]
    assert cli.main(arguments) == 0
    lines = out.read_text().splitlines()
    assert len(lines) == len(rows(out)) == 203
