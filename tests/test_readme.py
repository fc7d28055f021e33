"""The README tells the truth: its commands parse, its code runs, its paths exist."""

import json
import re
import shlex
import textwrap
import tomllib
from importlib import import_module
from pathlib import Path, PurePosixPath
from random import Random
from types import ModuleType
from typing import Any

import pytest

from data.shapes import make_scene, render
from data.sources import open_source
from training.config import TrainConfig
from vlm import cli
from vlm.chat.processor import Processor
from vlm.config import VLMConfig, load_config
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("encoders", "projector", "vlm", "data", "eval", "training")
THE_TWO_COMMANDS = ("pip install uv && uv run vlm quickstart", "uv run --extra test pytest")


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of a language, those inside of lists too."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, name, text in found if name == language]


def shell_lines() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def vlm_commands() -> list[list[str]]:
    """The arguments of every call of `vlm` in the shell blocks."""
    calls = [shlex.split(call) for line in shell_lines() for call in line.split("&&")]
    calls = [call[2:] if call[:2] == ["uv", "run"] else call for call in calls]
    return [call[1:] for call in calls if call[0] == "vlm"]


def file_map() -> dict[str, str]:
    """Path to description; folders end in a slash."""
    (tree,) = (block for block in blocks("") if block.startswith("encoders/"))
    paths: dict[str, str] = {}
    parents: list[str] = []
    for line in tree.splitlines():
        name, description = line.split(maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        path = "".join(parents[:depth]) + name
        assert path not in paths, path
        paths[path] = description
        parents[depth:] = [name]
    return paths


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse a command line as `vlm` does, without running it; return the parameters.

    Raises:
        typer's usage error: no such command or option, or a missing or malformed argument.
    """
    import typer

    app = import_module(cli.COMMANDS[arguments[0]].module).app
    command: Any = typer.main.get_group(app)
    rest = arguments
    while hasattr(command, "commands"):
        context = command.make_context(command.name, list(rest))
        # As the group itself would: `vlm eval MODEL` is `vlm eval run MODEL`.
        _, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
    with command.make_context(command.name, list(rest)) as context:
        parameters: dict[str, Any] = context.params
    return parameters


@pytest.fixture
def here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: VisionLanguageModel,
    tiny_config: VLMConfig,
    processor: Processor,
) -> Path:
    """A working folder with what the README's examples take for granted: a model and pictures."""
    components = {name: getattr(tiny_model, name) for name in ("encoder", "projector", "decoder")}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=tiny_config
    )
    model = tmp_path / "runs" / "quickstart" / "finetune"
    save_folder(model, described, components, processor, {})
    (tmp_path / "pictures").mkdir()
    for seed, name in enumerate(("photo.jpg", "drawing.png", "pictures/one.png")):
        render(make_scene(Random(seed))).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_commands_do_everything() -> None:
    for command in THE_TWO_COMMANDS:
        assert shell_lines().count(command) == 1
    extras = re.findall(r"--extra (\w+)", README)
    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    assert PROJECT["project"]["scripts"] == {"vlm": "vlm.cli:main"}


def test_every_shell_line_is_one_that_these_tests_understand() -> None:
    """A new kind of line needs a test of its own."""
    known = ("vlm ", "pip install -e .", "tensorboard --logdir runs", *THE_TWO_COMMANDS)
    assert [line for line in shell_lines() if not line.startswith(known)] == []


@pytest.mark.parametrize("arguments", vlm_commands(), ids=" ".join)
def test_every_command_line_parses(arguments: list[str]) -> None:
    parameters = parse(arguments)
    if arguments[0] == "train":
        config = load_config(TrainConfig, ROOT / parameters["config"], parameters["overrides"])
        assert config.stage == arguments[1]


def test_every_command_is_shown() -> None:
    assert {arguments[0] for arguments in vlm_commands()} == set(cli.COMMANDS)
    trained = {arguments[1] for arguments in vlm_commands() if arguments[0] == "train"}
    assert trained == {"text", "encoder", "align", "finetune"}


def test_a_wrong_command_line_does_not_parse() -> None:
    for wrong in (["ask", "model"], ["eval", "model"], ["shards", "pack", "a", "b", "--gruop"]):
        with pytest.raises(Exception, match=r"Missing|No such option"):
            parse(wrong)


def test_every_command_line_in_the_configs_parses() -> None:
    commands = 0
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        for line in path.read_text().splitlines():
            found = re.match(r"#.*?\bvlm ((?:train|shards) .*)|# vlm (eval .*)", line)
            if found:
                arguments = shlex.split(found[1] or found[2])
                named = parse(arguments).get("config")
                assert named is None or (ROOT / named) == path
                commands += 1
    assert commands >= len(list((ROOT / "configs").glob("*/finetune.yaml"))) * 4


def test_the_python_block_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    namespace: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    model, reply = namespace["model"], namespace["reply"]
    assert model.folder == Path("runs/quickstart/finetune")
    assert reply.finish_reason in ("stop", "length") and reply.usage.prompt_tokens > 0
    assert [type(answer) for answer in namespace["answers"]] == [str, str]
    assert reply.text in capsys.readouterr().out


def test_the_asking_commands_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [call for call in vlm_commands() if call[0] in ("ask", "caption")]
    commands = [call for call in commands if "runs/quickstart/finetune" in call]
    for arguments in commands:
        assert cli.main([*arguments, "--max-tokens", "4"]) == 0, capsys.readouterr().err
    assert len(commands) == 4


@pytest.mark.parametrize("text", blocks("json"), ids=["captions", "chat"])
def test_the_rows_shown_can_be_packed(text: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in text.splitlines()]
    names = [name for row in rows for name in row.get("images", [row.get("image")])]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        render(make_scene(Random(seed))).save(tmp_path / name)
    (tmp_path / "captions.jsonl").write_text(text)
    source = open_source(tmp_path)
    assert source.rejects == []
    assert [type(item).__name__ for item in source.read()] == ["RawSample"] * len(rows)


def test_the_file_map_shows_what_there_is() -> None:
    for path, description in file_map().items():
        assert description.strip()
        found = ROOT / path
        assert found.is_dir() if path.endswith("/") else found.is_file(), path


def test_the_file_map_leaves_no_module_out() -> None:
    modules = {
        str(PurePosixPath(path.relative_to(ROOT)))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py"
    }
    folders = {f"{path}/" for module in modules for path in PurePosixPath(module).parents[:-1]}
    assert (modules | folders) - set(file_map()) == set()
    configs = {f"configs/{path.name}/" for path in (ROOT / "configs").iterdir() if path.is_dir()}
    assert configs - set(file_map()) == set()


def test_every_path_named_exists() -> None:
    named = re.findall(r"\b(?:configs|docs|tests|vlm|data)/[\w/.-]*\w", README)
    assert "configs/quickstart" in named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_link_leads_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.removeprefix("#") in anchors or (ROOT / target).exists(), target


def test_the_presets_named_are_those_there_are() -> None:
    listed = re.findall(r"\w+", file_map()["configs/model/"].split("shapes:")[1])
    presets = {path.stem for path in (ROOT / "configs" / "model").glob("*.yaml")}
    assert presets <= set(listed)


def test_every_name_that_the_python_block_uses_is_public() -> None:
    vlm: ModuleType = import_module("vlm")
    used = re.findall(r"\bvlm\.(\w+)", blocks("python")[0])
    assert used and set(used) <= set(vlm.__all__)
