"""vlm convert: what is typed, what is printed, what is refused."""

from pathlib import Path

import pytest

from vlm import cli
from vlm.weights.folder import read_folder_config, read_provenance


def run(*arguments: str | Path) -> int:
    return cli.main(["convert", *map(str, arguments)])


def test_a_folder_goes_in_and_out(
    mllama_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert run("from-hf", mllama_source, ours) == 0
    assert read_provenance(ours)["source"] == {"folder": str(mllama_source)}
    assert run("to-hf", ours, back) == 0
    assert read_folder_config(back).model == read_folder_config(ours).model
    assert capsys.readouterr().out == f"{mllama_source} -> {ours}\n{ours} -> {back}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("from-hf", "./nowhere", "out"), "./nowhere is neither a folder here nor an id"),
        (("from-hf", ".", "out", "--revision", "main"), "--revision belongs to an id on the hub"),
        (("from-hf", ".", "out"), ". is not a model folder: it has no config.json"),
        (("to-hf", "nowhere", "out"), "nowhere is not a model folder: there is no such folder"),
    ],
)
def test_a_wrong_source_is_one_line(
    arguments: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
