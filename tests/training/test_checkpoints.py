"""Checkpoint folders: a name means a whole one, whatever is cut, missing or foreign."""

from pathlib import Path

import pytest

from training.checkpoints import (
    CheckpointManifest,
    checkpoint_path,
    commit,
    list_checkpoints,
    newest_whole,
    open_temporary,
    prune,
    seal,
    temporary_path,
    verify,
)
from vlm.errors import UserError

FILES = {"a.safetensors": b"first" * 100, "b.safetensors": b"second", "state.json": b"{}"}


def write(folder: Path, step: int) -> Path:
    path = checkpoint_path(folder, step)
    open_temporary(path, 1000)
    temporary = temporary_path(path)
    for name, content in FILES.items():
        (temporary / name).write_bytes(content)
    return commit(temporary, CheckpointManifest(step=step, files=seal(temporary, FILES)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_what_was_written_and_its_manifest(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    assert names(tmp_path) == ["step-00000007"]
    assert names(path) == [*sorted([*FILES, "manifest.json"])]
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    manifest = verify(path)
    assert manifest.step == 7 and manifest.files["a.safetensors"].num_bytes == 500


def test_checkpoints_are_listed_by_step_and_nothing_else_is(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
    for step in (123456789, 10, 200):
        write(tmp_path, step)
    (tmp_path / ".step-00000300.writing").mkdir()
    (tmp_path / "damaged-step-00000400").mkdir()
    found = [path.name for path in list_checkpoints(tmp_path)]
    assert found == ["step-00000010", "step-00000200", "step-123456789"]


def test_only_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in (5, 10, 15, 200)]
    prune(tmp_path, 2, [paths[0], tmp_path / "step-00000001"])
    assert names(tmp_path) == ["step-00000005", "step-00000015", "step-00000200"]


def test_the_same_step_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    (write(tmp_path, 5) / "old.safetensors").touch()
    verify(write(tmp_path, 5))
    assert names(tmp_path) == ["step-00000005"]


def test_what_a_kill_has_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    for leftover in (".step-00000004.writing", ".step-00000003.deleted"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "a.safetensors").touch()
    write(tmp_path, 5)
    assert names(tmp_path) == ["step-00000005"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "a.safetensors has 490 bytes, needed: 500"),
        ("bit", "a.safetensors has another sha256 than when it was written"),
        ("gone", "a.safetensors is missing"),
        ("more", "its manifest.json has no c.safetensors"),
        ("pickle", "optimizer.pt is neither safetensors nor JSON"),
        ("no manifest", "cannot be read: manifest.json"),
        ("bad manifest", "cannot be read: manifest.json"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_it_takes_its_place(
    damage: str, message: str, tmp_path: Path
) -> None:
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    file = newer / "a.safetensors"
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "bit":
        file.write_bytes(content[:-1] + b"T")
    elif damage == "gone":
        file.unlink()
    elif damage == "no manifest":
        (newer / "manifest.json").unlink()
    elif damage == "bad manifest":
        (newer / "manifest.json").write_text('{"step": 10')
    else:
        (newer / {"more": "c.safetensors", "pickle": "optimizer.pt"}[damage]).touch()
    with pytest.raises(UserError, match=message):
        verify(newer)
    before = names(newer)
    said: list[str] = []
    assert newest_whole(tmp_path, said.append) == older
    (line,) = said
    assert message in line and str(older) in line
    # Nothing is overwritten: the damaged one lies there under a name of its own.
    assert names(tmp_path) == ["damaged-step-00000010", "step-00000005"]
    assert names(tmp_path / "damaged-step-00000010") == before


def test_without_a_whole_checkpoint_nothing_is_begun_or_changed(tmp_path: Path) -> None:
    assert newest_whole(tmp_path, print) is None
    for step in (5, 10):
        (write(tmp_path, step) / "b.safetensors").write_bytes(b"sec")
    with pytest.raises(UserError, match=r"no checkpoint .* is whole: .*00010 .*; .*00005 "):
        newest_whole(tmp_path, print)
    assert names(tmp_path) == ["step-00000005", "step-00000010"]


def test_a_disk_without_room_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only [\d,]+ bytes are free; nothing was written"):
        open_temporary(checkpoint_path(tmp_path, 5), 1 << 60)
    assert names(tmp_path) == []
