"""`vlm bench train` compares like with like, and refuses to time sides that differ."""

import json
from pathlib import Path

import pytest
import torch

from training.speed import SIZES, StepComparison, step_config
from vlm import cli
from vlm.config import PACKAGE_ROOT, VLMConfig, load_config

TOKENS = [32, 48, 64, 192, 256]
TINY = ("bench", "train", "--size", "tiny", "--repeats", "1", "--device", "cpu")


def comparison(padding_tiles: str = "drop") -> StepComparison:
    return StepComparison("tiny", (1, 3, 4), padding_tiles, torch.device("cpu"), "float32")  # type: ignore[arg-type]


def test_the_command_measures_speed_and_memory_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.json"
    assert cli.main([*TINY, "--json", str(path)]) == 0
    rate, memory = json.loads(path.read_text())["rows"]
    assert (rate["name"], rate["unit"]) == ("train", "samples/s")
    assert rate["ratio"] == pytest.approx(rate["ours"] / rate["peer"])
    assert (memory["name"], memory["unit"]) == ("train, peak memory", "MB")
    assert memory["ratio"] == pytest.approx(memory["peer"] / memory["ours"])
    assert rate["setting"] == memory["setting"] == "tiny 1,1,2,4 and text, drop float32 cpu"
    printed = capsys.readouterr().out
    assert "drop: the loss is" in printed and "transformers with its padding masked" in printed


@pytest.mark.parametrize("padding_tiles", ["drop", "attend"])
def test_sides_whose_losses_differ_are_not_timed(padding_tiles: str) -> None:
    sides = comparison(padding_tiles)
    assert "allowed: 1e-05 of it" in sides.check()
    with torch.no_grad():
        sides.ours.decoder.norm.weight.mul_(1.001)
    with pytest.raises(RuntimeError, match="the losses differ"):
        sides.check()


def test_both_sides_have_the_same_gradient_where_they_compute_the_same() -> None:
    sides = comparison("attend")
    loss = sides.objective.loss(sides.pictures_only)
    (loss.total / loss.weight).backward()  # type: ignore[no-untyped-call]
    sides.peer(**sides.peer_inputs).loss.backward()
    ours, peer = (
        torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        for model in (sides.ours, sides.peer)
    )
    assert ours.item() == pytest.approx(peer.item(), rel=1e-4)


def test_the_mixed_batch_has_rows_without_pictures_and_the_peers_has_none() -> None:
    sides = comparison()
    found = []
    for batch in (sides.mixed, sides.pictures_only):
        inputs, images = batch.inputs, batch.inputs.images
        assert images is not None and inputs.document_lengths is not None
        assert sorted(inputs.document_lengths[inputs.document_lengths > 0].tolist()) == TOKENS
        assert inputs.input_ids.shape == (3, 256)  # packed; in transformers (5, 256)
        found.append((len(images.num_tiles), len(images.pixels)))
    assert found == [(3, 8), (5, 10)]
    assert torch.equal(sides.mixed.loss_mask, sides.pictures_only.loss_mask)
    assert sides.peer_inputs["aspect_ratio_mask"].sum() == 10
    assert sides.peer_inputs["attention_mask"].sum() == sum(TOKENS)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_a_shape(size: str) -> None:
    assert step_config(size, "drop").decoder.cross_attention_layers


def test_the_largest_size_is_the_11b() -> None:
    path = PACKAGE_ROOT / "configs" / "model" / "llama3_2_11b.yaml"
    preset = load_config(VLMConfig, path, ["vision.tile_size_px=560", "projector.kind=linear"])
    ours = step_config("11b", "drop")
    assert ours.decoder.model_dump(include=set(SIZES["11b"])) == SIZES["11b"]
    assert ours.vision.output_size == preset.vision.output_size
    assert ours.decoder.num_layers == preset.decoder.num_layers


def test_a_wrong_option_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*TINY, "--tile-mix", "5"]) == 2
    assert capsys.readouterr().err.startswith("error: --tile-mix is '5', needed:")
    assert cli.main(["bench", "encode", "--tile-mix", "5"]) == 2  # the other comparisons are there
