"""`vlm bench preprocess` compares the same tiles, group by group, with the faster peer."""

import json
from pathlib import Path

import pytest
from PIL import Image

from eval.speed.photos import encode_jpeg, make_photo
from eval.speed.preprocess import Comparison, Tiling, made_groups
from vlm import cli

TINY = ("bench", "preprocess", "--tile-size", "28", "--repeats", "1")
SETTINGS = ("same bits", "exact", "draft", "files")


def test_the_command_measures_every_size_and_all_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "preprocess.json"
    assert cli.main([*TINY, "--sizes", "40x30,200x150", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "rows"}
    names = ("40x30", "200x150", "all")
    expected = [f"{setting} {name}" for name in names for setting in SETTINGS]
    assert [row["setting"] for row in report["rows"]] == expected
    for row in report["rows"]:
        assert row["name"] == "preprocess" and row["unit"] == "pictures/s" and row["peer"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert capsys.readouterr().out.count("of 255 steps, a JPEG's drafts by") == 2


def test_a_folder_of_pictures_can_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "a.jpg").write_bytes(encode_jpeg(make_photo(100, 60, 0)))
    Image.new("L", (9, 9), 70).save(tmp_path / "real" / "b.PNG")
    (tmp_path / "real" / "notes.txt").write_text("no picture")
    assert cli.main([*TINY, "--images", str(tmp_path / "real")]) == 0
    printed = capsys.readouterr().out
    assert all(f"{setting} real" in printed for setting in SETTINGS)
    (tmp_path / "empty").mkdir()
    assert cli.main([*TINY, "--images", str(tmp_path / "empty")]) == 2
    assert "needed: a folder with pictures in it" in capsys.readouterr().err


def test_another_canvas_or_other_pixels_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    (files,) = made_groups([(100, 60)]).values()
    comparison = Comparison(files, Tiling(28, 4))
    assert "at most" in comparison.check()
    monkeypatch.setattr(comparison, "files", files[::-1])  # as if they were decoded otherwise
    with pytest.raises(RuntimeError):
        comparison.check()
    monkeypatch.setattr(comparison, "files", files)
    monkeypatch.setattr(comparison, "tiling", Tiling(28, 1))
    with pytest.raises(RuntimeError, match="different canvases for 100x60"):
        comparison.check()
