"""The arrows between the rooms, and what their files may be called, read from the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What each room may import of the project. A name stands for itself and everything below it.
MAY_IMPORT = {
    "encoders": ("encoders",),
    "projector": ("projector",),
    "vlm": ("vlm", "encoders", "projector"),
    "data": (
        "data",
        "vlm.config",
        "vlm.chat",
        "vlm.images",
        "vlm.inputs",
        "vlm.errors",
        "encoders.tiling",
    ),
    "eval": ("eval", "data", "vlm", "encoders"),
    "training": ("training", "eval", "data", "vlm", "encoders", "projector"),
}
# Commands import these inside functions, so that `vlm COMMAND --help` answers at once.
HEAVY = ("torch", "torchvision", "transformers", "timm", "open_clip", "webdataset", "accelerate")
NAMES_WITHOUT_A_NOUN = ("utils", "util", "common", "helpers", "helper", "misc")

FILES = [file for room in MAY_IMPORT for file in sorted((ROOT / room).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of everything that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def forbidden_imports(source: str, room: str) -> list[str]:
    """Return the project imports of a file that its room may not make, and relative imports."""
    allowed = MAY_IMPORT[room]
    return [
        name
        for name in imported_names(ast.parse(source))
        if name.startswith(".")
        or (
            name.split(".")[0] in MAY_IMPORT
            and not any(name == known or name.startswith(f"{known}.") for known in allowed)
        )
    ]


def heavy_imports_at_the_top(source: str) -> list[str]:
    top = ast.Module([n for n in ast.parse(source).body if not isinstance(n, ast.FunctionDef)], [])
    return [name for name in imported_names(top) if name.split(".")[0] in HEAVY]


def test_rooms_have_files() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    assert forbidden_imports(file.read_text(), room) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("encoders", "from projector.mlp import Projector"),
        ("projector", "import vlm.errors"),
        ("vlm", "def f():\n    from data.schema import Sample"),
        ("vlm", "import training"),
        ("data", "from vlm.model import VLM"),
        ("data", "from vlm import load"),
        ("data", "import vlm"),
        ("data", "from encoders.vit import VisionEncoder"),
        ("eval", "from training.loss import loss"),
        ("training", "from . import loss"),
        ("vlm", "if TYPE_CHECKING:\n    from eval.run import Report"),
    ],
)
def test_forbidden_imports_are_found(room: str, source: str) -> None:
    assert len(forbidden_imports(source, room)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("data", "from vlm import images\nfrom encoders.tiling import tile_picture"),
        ("eval", "import vlm\nfrom data.shards import read_folder"),
        ("vlm", "import datasets\nfrom evaluate import load"),
    ],
)
def test_allowed_imports_pass(room: str, source: str) -> None:
    assert forbidden_imports(source, room) == []


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.name in ("commands.py", "cli.py", "__main__.py")],
    ids=name_of,
)
def test_commands_import_nothing_heavy_at_the_top(file: Path) -> None:
    assert heavy_imports_at_the_top(file.read_text()) == []
    assert heavy_imports_at_the_top("import torch\ndef f():\n    import timm") == ["torch"]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_only_the_front_door_imports_by_string(file: Path) -> None:
    if name_of(file) != "vlm/cli.py":
        assert not re.search(r"\b(import_module|__import__)\(", file.read_text())


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.name == "__init__.py"], ids=name_of
)
def test_package_files_hold_a_docstring_only(file: Path) -> None:
    if name_of(file) == "vlm/__init__.py":  # the public API, looked up when used
        return
    tree = ast.parse(file.read_text())
    assert len(tree.body) == 1 and ast.get_docstring(tree)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_file_is_named_for_a_noun_and_opens_with_a_docstring(file: Path) -> None:
    assert file.stem not in NAMES_WITHOUT_A_NOUN and file.parent.name not in NAMES_WITHOUT_A_NOUN
    assert ast.get_docstring(ast.parse(file.read_text()))


@pytest.mark.parametrize("file", [*FILES, *TESTS], ids=name_of)
def test_every_ignored_type_error_is_named(file: Path) -> None:
    assert not re.search(r"#\s*type:\s*ignore(?!\[)", file.read_text())


def test_tests_are_not_packages() -> None:
    assert not [name_of(file) for file in TESTS if file.name == "__init__.py"]
