"""Strict configuration: what is right arrives typed, what is wrong is named in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vlm.config import PACKAGE_ROOT, VLMConfig, dump_config, load_config
from vlm.errors import UserError

MODEL = {
    "vision": {
        "tile_size_px": 32,
        "patch_size_px": 8,
        "max_num_tiles": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "num_local_layers": 4,
        "num_global_layers": 2,
        "intermediate_layers": [1, 3],
    },
    "projector": {"kind": "mlp"},
    "decoder": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 5,
        "num_heads": 4,
        "num_kv_heads": 2,
        "max_positions": 256,
    },
}


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Optimiser(Strict):
    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["cosine", "constant"] = "cosine"


class Source(Strict):
    path: Path
    weight: float = 1.0


class Run(Strict):
    name: str = "run"
    num_steps: int = Field(default=10, gt=0)
    batch: int | Literal["auto"] = "auto"
    compile_model: bool = False
    optimiser: Optimiser = Optimiser(lr=3e-4, schedule="constant")
    sources: tuple[Source, ...] = ()
    labels: dict[str, Source] = {}
    model: VLMConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "Run":
        if self.num_steps == 13:
            raise ValueError("num_steps 13 brings bad luck")
        return self


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], Path]:
    monkeypatch.chdir(tmp_path)

    def write_file(name: str, content: Any) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return Path(name)

    return write_file


Write = Callable[[str, Any], Path]


def complaint(path: Path, *overrides: str, cls: type[BaseModel] = Run) -> str:
    with pytest.raises(UserError) as caught:
        load_config(cls, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_values_arrive_with_their_declared_types(write: Write) -> None:
    run = load_config(
        Run,
        write(
            "run.yaml",
            "name: yes\noptimiser: {lr: 1e-4, betas: [0.9, 1]}\nbatch: 0x10\n"
            "sources: [{path: shards/a, weight: 2}]\ncompile_model: true\n",
        ),
    )
    assert run.optimiser.lr == 1e-4
    assert run.optimiser.betas == (0.9, 1.0)
    assert run.sources == (Source(path=Path("shards/a"), weight=2.0),)
    assert (run.name, run.batch, run.compile_model) == ("yes", 16, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("-.5e3", -500.0), ("1.", 1.0), ("+2.5", 2.5), ("7", 7.0)],
)
def test_every_way_to_write_a_float_is_a_float(write: Write, text: str, value: float) -> None:
    optimiser = load_config(Optimiser, write("o.yaml", f"lr: {text}"))
    assert optimiser.lr == value and type(optimiser.lr) is float


@pytest.mark.parametrize("text", ["2024-01-31", "12:30:00", "010", "on", "e5", "1e", "1_000e-x"])
def test_words_that_older_yaml_reads_as_something_else_stay_text(write: Write, text: str) -> None:
    assert load_config(Run, write("run.yaml", f"name: {text}")).name == text


@pytest.mark.parametrize("name", ["1e-4", "null", "yes", "010", "0x1", "a: b", "é", "1", ""])
def test_dumped_configuration_loads_back_equal(write: Write, name: str) -> None:
    run = Run(
        name=name,
        optimiser=Optimiser(lr=float("inf")),
        sources=(Source(path=Path("a/b"), weight=1e-9),),
        model=VLMConfig.model_validate(MODEL),
    )
    assert load_config(Run, write("run.yaml", dump_config(run))) == run


def test_empty_file_is_all_defaults(write: Write) -> None:
    assert load_config(Run, write("run.yaml", "# nothing\n")) == Run()


@pytest.mark.parametrize("file", sorted((PACKAGE_ROOT / "configs/model").glob("*.yaml")))
def test_every_model_preset_loads(file: Path) -> None:
    assert load_config(VLMConfig, file).decoder.cross_attention_layers[0] == 3


def test_section_may_be_the_path_of_another_file(write: Write) -> None:
    write("models/decoder.yaml", MODEL["decoder"])
    write("models/tiny.yaml", {**MODEL, "decoder": "decoder.yaml"})  # beside the including file
    path = write("run.yaml", "model: models/tiny.yaml")  # from the working folder
    run = load_config(Run, path, ["model.decoder.num_layers=9"])
    assert run.model is not None
    assert run.model.decoder.num_layers == 9
    assert run.model.vision.hidden_size == 64


def test_section_file_is_found_beside_the_installed_packages(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("installed/configs/model/tiny.yaml", MODEL)
    monkeypatch.setattr("vlm.config.PACKAGE_ROOT", tmp_path / "installed")
    path = write("elsewhere/run.yaml", "model: configs/model/tiny.yaml")
    model = load_config(Run, path).model
    assert model == load_config(VLMConfig, Path("configs/model/tiny.yaml"))


def test_list_items_and_dictionary_values_may_be_files_too(write: Write) -> None:
    write("a.yaml", "path: shards/a")
    run = load_config(Run, write("run.yaml", "sources: [a.yaml]\nlabels: {x: a.yaml}"))
    assert run.sources[0] == run.labels["x"] == Source(path=Path("shards/a"))


def test_overrides_set_single_keys_and_the_last_one_wins(write: Write) -> None:
    write("tiny.yaml", MODEL)
    run = load_config(
        Run,
        write("run.yaml", "sources: [{path: a}, {path: b}]\nlabels: {x: {path: c}}"),
        [
            "optimiser.lr=1e-5",  # the section's other defaults stay
            "sources.1.weight=3",
            "labels.y.path=d",
            "num_steps=1",
            "num_steps=2",
            "model=tiny.yaml",
            "model.vision.intermediate_layers=[2]",
            "optimiser.betas=[0.8, 0.9]",
        ],
    )
    assert run.optimiser == Optimiser(lr=1e-5, betas=(0.8, 0.9), schedule="constant")
    assert [source.weight for source in run.sources] == [1.0, 3.0]
    assert run.labels == {"x": Source(path=Path("c")), "y": Source(path=Path("d"))}
    assert run.num_steps == 2
    assert run.model is not None and run.model.vision.intermediate_layers == (2,)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("num_step: 3", "run.yaml: unknown key num_step; did you mean num_steps?"),
        ("optimiser: {lr: 1, beta: 3}", "unknown key optimiser.beta; did you mean optimiser.betas"),
        ("schedule: cosine", "unknown key schedule; did you mean optimiser.schedule?"),
        ("zzz: 1", "unknown key zzz; the keys here are name, num_steps, batch"),
        ("sources: [{path: a, wait: 1}]", "sources.0.wait; did you mean sources.0.weight?"),
        ("optimiser: {}", "run.yaml: optimiser.lr is missing"),
        ("num_steps: '5'", 'run.yaml: num_steps must be a valid integer, not "5"'),
        ("num_steps: true", "num_steps must be a valid integer, not true"),
        ("num_steps: 1.5", "num_steps must be a valid integer"),
        ("num_steps: 0", "num_steps must be greater than 0, not 0"),
        ("compile_model: yes", 'compile_model must be a valid boolean, not "yes"'),
        ("name: 3", "name must be a valid string, not 3"),
        ("name: null", "name must be a valid string, not null"),
        ("optimiser: 3", "optimiser must be a section, or the path of a YAML file"),
        ("optimiser: {lr: 1, schedule: fast}", "must be 'cosine' or 'constant', not \"fast\""),
        ("optimiser: {lr: 1, betas: [1, 2, 3]}", "optimiser.betas: tuple should have at most 2"),
        ("batch: many", "batch must be a valid integer or 'auto', not \"many\""),
        ("num_steps: 13", "run.yaml: num_steps 13 brings bad luck"),
        ("- a\n- b", 'run.yaml: must hold keys and values, not ["a", "b"]'),
        ("name: a\nname: b", "run.yaml, line 2: the key 'name' is given twice"),
        ("optimiser: {lr: 1, lr: 2}", "run.yaml, line 1: the key 'lr' is given twice"),
        ("name: [a", "run.yaml, line 1: while parsing a flow sequence expected ',' or ']'"),
        ("name: !!python/name:os.system", "run.yaml, line 1: could not determine a constructor"),
        ("name: a\x00b", "run.yaml: "),
        ("sources: [{path: 1}, {path: 2}, {path: 3}, {path: 4}]", "; and 1 more"),
    ],
)
def test_mistake_in_a_file_is_named_in_one_line(write: Write, content: str, expected: str) -> None:
    assert expected in complaint(write("run.yaml", content))


def test_checks_of_nested_sections_name_their_path_and_file(write: Write) -> None:
    write("tiny.yaml", {**MODEL, "decoder": {**MODEL["decoder"], "num_kv_heads": 3}})
    message = complaint(write("run.yaml", "model: tiny.yaml"))
    assert message.startswith("tiny.yaml: model.decoder: num_heads 4 is not a multiple")


def test_unknown_key_is_reported_before_the_missing_one_that_it_explains(write: Write) -> None:
    decoder = {("hiden_size" if k == "hidden_size" else k): v for k, v in MODEL["decoder"].items()}
    message = complaint(write("tiny.yaml", {**MODEL, "decoder": decoder}), cls=VLMConfig)
    assert message == (
        "tiny.yaml: unknown key decoder.hiden_size; did you mean decoder.hidden_size?; "
        "tiny.yaml: decoder.hidden_size is missing"
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("num_steps", "override 'num_steps' is not of the form dotted.key=value"),
        ("=3", "override '=3' is not of the form dotted.key=value"),
        ("num_step=3", "override 'num_step': unknown key num_step; did you mean num_steps?"),
        ("optimizer.lr=3", "unknown key optimizer; did you mean optimiser?"),
        ("optimiser.l=3", "unknown key optimiser.l; did you mean optimiser.lr?"),
        ("lr=3", "override 'lr': unknown key lr; did you mean optimiser.lr?"),
        ("optimiser.lr=fast", "override 'optimiser.lr': optimiser.lr must be a valid number"),
        ("optimiser.lr=[1", "override 'optimiser.lr', line 1: "),
        ("optimiser.lr.x=1", "override 'optimiser.lr.x': optimiser.lr is 0.0003, not a section"),
        ("sources.2.path=x", "override 'sources.2.path': sources has 1 items, and no '2'"),
        ("sources.first.path=x", "sources has 1 items, and no 'first'"),
        ("model=tini.yaml", "override 'model': model: no file 'tini.yaml'; did you mean tiny.yaml"),
        ("model.decoder.num_heads=3", "override 'model.decoder.num_heads'"),
    ],
)
def test_mistake_in_an_override_is_named_in_one_line(
    write: Write, override: str, expected: str
) -> None:
    write("tiny.yaml", MODEL)
    path = write("run.yaml", "sources: [{path: a}]\nmodel: tiny.yaml")
    if override == "model.decoder.num_heads=3":  # the section's own check: its file is to blame
        expected = "tiny.yaml: model.decoder: hidden_size 64 / num_heads 3"
    assert expected in complaint(path, override)


def test_error_in_a_replaced_section_no_longer_blames_the_replaced_files(write: Write) -> None:
    write("decoder.yaml", MODEL["decoder"])
    write("tiny.yaml", {**MODEL, "decoder": "decoder.yaml"})
    write("bad.yaml", {**MODEL, "decoder": {**MODEL["decoder"], "num_layers": 0}})
    message = complaint(write("run.yaml", "model: tiny.yaml"), "model=bad.yaml")
    assert message == "bad.yaml: model.decoder.num_layers must be greater than 0, not 0"


def test_missing_file_is_named_with_the_nearest_one(write: Write) -> None:
    write("configs/tiny.yaml", MODEL)
    assert complaint(Path("configs/tny.yaml")) == (
        "no file 'configs/tny.yaml'; did you mean configs/tiny.yaml?"
    )
    message = complaint(write("run.yaml", "model: nowhere/x.yaml"))
    assert message.startswith(
        "run.yaml: model: no file or folder 'nowhere/x.yaml' (looked in nowhere, "
    )


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xff\xd8\xff\xe0")
    assert "run.yaml: cannot be read as text" in complaint(file)


def test_a_section_may_change_some_keys_of_a_file(write: Write) -> None:
    write("base.yaml", {**MODEL, "image_visibility": "all_previous"})
    changes = {"from": "base.yaml", "vision": {"num_heads": 2}, "image_visibility": "latest"}
    path = write("run.yaml", {"model": changes})
    expected = {**MODEL, "vision": {**MODEL["vision"], "num_heads": 2}}
    assert load_config(Run, path).model == VLMConfig.model_validate(expected)
    # A whole file may start from another, and an override still comes last.
    top = write("top.yaml", {"from": "run.yaml", "name": "other"})
    run = load_config(Run, top, ["model.vision.num_heads=1"])
    assert run.name == "other" and run.model is not None and run.model.vision.num_heads == 1


def test_what_is_wrong_with_a_changed_section_names_its_file(write: Write) -> None:
    write("base.yaml", MODEL)
    path = write("run.yaml", {"model": {"from": "base.yaml", "vision": {"num_head": 2}}})
    assert complaint(path) == (
        "run.yaml: unknown key model.vision.num_head; did you mean model.vision.num_heads?"
    )
    broken = {**MODEL, "vision": {**MODEL["vision"], "num_heads": "many"}}
    write("base.yaml", broken)
    path = write("run.yaml", {"model": {"from": "base.yaml", "image_visibility": "latest"}})
    assert complaint(path).startswith("base.yaml: model.vision.num_heads must be")
    for wrong, shown in ((3, "3"), (None, "null")):
        path = write("run.yaml", {"model": {"from": wrong}})
        assert complaint(path) == f"run.yaml: model: from must be a path, not {shown}"
