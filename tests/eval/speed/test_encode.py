"""`vlm bench encode` compares like with like, and refuses to time sides that answer differently."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from encoders.config import VisionConfig
from eval.speed.encode import (
    MAX_NUM_TILES,
    SIZES,
    TOLERANCES,
    Comparison,
    PaddingTiles,
    parse_tile_mix,
)
from vlm import cli
from vlm.config import VLMConfig, load_config
from vlm.errors import UserError

TINY = ("bench", "encode", "--size", "tiny", "--repeats", "1", "--device", "cpu")
MODES: tuple[PaddingTiles, ...] = ("drop", "attend")


def comparison(padding_tiles: PaddingTiles) -> Comparison:
    return Comparison("tiny", (1, 3, 4), padding_tiles, torch.device("cpu"), "float32")


def test_the_command_measures_both_ways_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed" / "encode.json"
    assert cli.main([*TINY, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert set(report) == {"machine", "rows"} and report["machine"]["torch"] == version("torch")
    settings = [row["setting"] for row in report["rows"]]
    assert settings == [f"tiny 1,1,2,4 {mode} float32 cpu" for mode in MODES]
    for row in report["rows"]:
        assert set(row) == {"name", "setting", "ours", "peer", "ratio", "unit"}
        assert row["name"] == "encode" and row["unit"] == "ms"
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"]) and row["ours"] > 0
    printed = capsys.readouterr().out
    assert printed.count("of its length (allowed: 2e-05)") == 2
    assert "transformers with its padding masked" in printed and "ratio" in printed


def test_one_way_another_mix_and_another_dtype_can_be_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--padding-tiles", "drop", "--tile-mix", "2,1", "--dtype", "bfloat16")
    assert cli.main([*TINY, *options]) == 0
    printed = capsys.readouterr().out
    assert "tiny 2,1 drop bfloat16 cpu" in printed and "attend" not in printed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--tile-mix", "1,5"), "--tile-mix is '1,5', needed: the tiles of each image, 1 to 4"),
        (("--tile-mix", ""), "--tile-mix is '', needed"),
        (("--against", "vllm"), "'vllm' is not"),
        (("--padding-tiles", "keep"), "'keep' is not one of 'drop', 'attend'"),
        (("--size", "huge"), "'huge' is not one of 'tiny', 'small', '11b'"),
        (("--dtype", "int8"), "'int8' is not one of"),
        (("--device", "abacus"), "unknown device 'abacus'"),
        (("--repeats", "0"), "--repeats"),
        (("--json", "report.txt"), "--json is report.txt, needed: a file that ends in .json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    options: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TINY, *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and named in told and told.count("\n") == 1


def test_a_tile_mix_is_read() -> None:
    assert parse_tile_mix("1, 1,2,4") == (1, 1, 2, 4)
    for wrong in ("1;2", "0", "-1", "1,,2", "four", "1.0"):
        with pytest.raises(UserError, match="--tile-mix"):
            parse_tile_mix(wrong)


@pytest.mark.parametrize("padding_tiles", MODES)
@torch.inference_mode()
def test_sides_that_answer_differently_are_not_timed(padding_tiles: PaddingTiles) -> None:
    sides = comparison(padding_tiles)
    sides.check()
    layer = sides.ours.global_layers[0]
    layer.gate_ffn.add_(1e-3)
    with pytest.raises(RuntimeError, match="the answers differ"):
        sides.check()


@torch.inference_mode()
def test_both_sides_hold_equal_weights_of_their_own() -> None:
    sides = comparison("drop")
    ours, peer = dict(sides.ours.named_parameters()), dict(sides.peer.named_parameters())
    assert sum(p.numel() for p in ours.values()) == sum(p.numel() for p in peer.values())
    assert not {p.data_ptr() for p in ours.values()} & {p.data_ptr() for p in peer.values()}


@torch.inference_mode()
def test_transformers_lets_pictures_see_padding_unless_it_is_masked() -> None:
    """Why `drop` is compared with a masked peer: unmasked, even full images differ."""
    sides = Comparison("tiny", (4, 4), "drop", torch.device("cpu"), "float32")
    theirs = sides.run_peer()[:, 0][sides.tile_mask]
    apart = (sides.run_ours() - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    assert apart.max() > 100 * TOLERANCES["float32"]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_shape(size: str) -> None:
    config = VisionConfig.model_validate({**SIZES[size], "max_num_tiles": MAX_NUM_TILES})
    assert config.num_local_layers > config.num_global_layers > 0


def test_the_largest_size_is_the_encoder_of_the_11b_preset() -> None:
    """With the tiles of the instruct checkpoint; the preset has those of the pretrained one."""
    path = Path(cli.__file__).parents[1] / "configs" / "model" / "llama3_2_11b.yaml"
    preset = load_config(VLMConfig, path, ["vision.tile_size_px=560"])
    assert preset.vision.model_dump(include=set(SIZES["11b"])) == SIZES["11b"]
