import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from data.pack import Manifest
from data.shards import read_folder
from vlm.cli import main

EASY_VQA = Path(__file__).parents[2].parent / "shared/data/easy-vqa"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures with captions; one picture is damaged and one caption is missing."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for index in range(6):
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4), (index, 0, 0)).save(buffer, "PNG")
        content = buffer.getvalue()
        (folder / f"{index}.png").write_bytes(content[:20] if index == 2 else content)
        rows.append({"image": f"{index}.png", "caption": f"Number {index}.", "split": "train"})
    del rows[4]["caption"]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def vlm(*arguments: object) -> int:
    return main(["shards", *map(str, arguments)])


def test_pack_check_show_from_start_to_end(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert vlm("pack", photos, out, "--samples-per-shard", 3) == 0
    printed = capsys.readouterr().out
    assert "samples 4, pictures 4, questions 4, shards 2" in printed
    assert "2 rejects, listed in" in printed and str(out / "rejects.jsonl") in printed
    assert "1 x bad picture" in printed and "1 x no caption" in printed
    assert [raw.key for raw in read_folder(out)] == ["0", "1", "3", "5"]

    assert vlm("check", out) == 0
    assert capsys.readouterr().out.endswith("good\n")
    assert vlm("show", out, "--limit", 2) == 0
    assert (out / "contact_sheet.html").read_text().count("<article>") == 2
    assert vlm("show", out, "--out", tmp_path / "new/page.html") == 0
    assert (tmp_path / "new/page.html").is_file()
    assert vlm("check", out) == 0

    shard = out / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes().replace(b"Number 5.", b"Number 6."))
    capsys.readouterr()
    assert vlm("check", out) == 1
    assert "shard-000001.tar has sha256" in capsys.readouterr().out


def test_hold_out_last_makes_train_and_validation(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert vlm("pack", photos, out, "--hold-out-last", 2, "--split", "train") == 0
    assert [raw.key for raw in read_folder(out / "train")] == ["0", "1"]
    assert [raw.key for raw in read_folder(out / "validation")] == ["3", "5"]
    assert vlm("check", out) == 0 and vlm("show", out) == 0
    assert (out / "contact_sheet.html").read_text().count("<section>") == 2


def test_limit_and_images_reach_the_source(photos: Path, tmp_path: Path) -> None:
    rows = photos / "captions.jsonl"
    moved = rows.rename(tmp_path / "list.jsonl")
    arguments = ("pack", moved, tmp_path / "out", "--images", photos, "--limit", 2)
    assert vlm(*arguments, "--format", "captions") == 0
    assert Manifest.read(tmp_path / "out").num_samples == 2


def test_mistakes_give_one_line_and_exit_code_2(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").write_text("x")
    for arguments, complaint in [
        (("pack", tmp_path / "none", out), "does not exist"),
        (("pack", photos, tmp_path / "used"), "is not empty"),
        (("pack", photos, tmp_path / "used", "--hold-out-last", 1), "is not empty"),
        (("pack", photos, out, "--format", "coco"), "is not coco"),
        (("pack", photos, out, "--split", "dev"), "its splits: train"),
        (("pack", photos, out, "--hold-out-last", 9), "must be from 1 to 4"),
        (("pack", photos, out, "--images", tmp_path / "used"), "5 x missing picture"),
        (("pack", photos, out, "--limit", 0), "limit"),
        (("check", tmp_path), "holds no manifest.json"),
        (("show", tmp_path), "holds no manifest.json"),
    ]:
        assert vlm(*arguments) == 2, arguments
        lines = capsys.readouterr().err.strip().splitlines()
        assert complaint in lines[-1] and lines[-1].startswith("error: ")
    assert not out.exists()


def test_help_of_the_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys; from vlm.cli import main; main(['shards', 'pack', '--help']); "
        "heavy = {'torch', 'webdataset', 'PIL', 'numpy'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TERM": "dumb"},
    )
    assert result.returncode == 0, result.stderr
    assert "--hold-out-last" in result.stdout and "--group-by-image" in result.stdout


@pytest.mark.real_data
def test_easy_vqa_packs_from_its_folder(tmp_path: Path) -> None:
    if not EASY_VQA.is_dir():
        pytest.skip("../shared/data/easy-vqa is not there")
    options = ("--group-by-image", "--limit", 50, "--hold-out-last", 10)
    assert vlm("pack", EASY_VQA, tmp_path / "out", *options) == 0
    held = list(read_folder(tmp_path / "out/validation"))
    assert [raw.key for raw in held] == [str(i) for i in range(40, 50)]
    assert all(turn.type for raw in held for turn in raw.sample.turns)


def test_a_killed_pack_is_continued_to_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(300):
        Image.new("RGB", (200, 200), (index % 256, 0, 0)).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"Number {index}.")
    pack = ["pack", folder, tmp_path / "out", "--samples-per-shard", 3, "--max-side", 90]
    code = f"from vlm.cli import main; main({['shards', *map(str, pack)]!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    unfinished = tmp_path / ".out.unfinished"
    while not list(unfinished.glob("*.state")) and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists() and list(unfinished.glob("*.state"))
    assert vlm(*pack) == 2
    assert "continue with --resume" in capsys.readouterr().err
    assert vlm(*pack, "--resume", "--num-workers", 1) == 0
    assert vlm("pack", folder, tmp_path / "whole", *pack[3:]) == 0
    assert Manifest.read(tmp_path / "out") == Manifest.read(tmp_path / "whole")
    assert vlm("check", tmp_path / "out") == 0 and not unfinished.exists()


def test_split_shares_make_parts_and_split_names_choose_rows(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--split", "train", "--split", "one=0.5,two=0.5")
    assert vlm("pack", photos, tmp_path / "out", *options) == 0
    keys = [[raw.key for raw in read_folder(tmp_path / "out" / part)] for part in ("one", "two")]
    assert sorted(keys[0] + keys[1]) == ["0", "1", "3", "5"] and all(keys)
    assert vlm("pack", photos, tmp_path / "bad", "--split", "one=0.5,two=0.6") == 2
    assert "add up to 1.1, not 1" in capsys.readouterr().err


def test_filters_reach_the_contact_sheet(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert vlm("pack", photos, out) == 0
    assert vlm("show", out, "--contains", "number 3", "--type", "caption") == 0
    assert (out / "contact_sheet.html").read_text().count("<article>") == 1
    assert vlm("show", out, "--min-side", 5) == 0 and vlm("show", out, "--num-images", 0) == 0
    assert (out / "contact_sheet.html").read_text().count("<article>") == 0
