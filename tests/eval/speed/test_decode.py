"""`vlm bench decode` compares like with like, and refuses to time sides that answer differently."""

import json
from pathlib import Path

import pytest
import torch

from eval.speed.decode import Comparison, Load, read_size
from vlm import cli
from vlm.weights.mllama import config_to_mllama

TINY = ("bench", "decode", "--size", "tiny", "--repeats", "1", "--device", "cpu")
SHORT = ("--prompt-tokens", "9", "--new-tokens", "6")
LOAD = Load(batch_size=2, prompt_tokens=9, new_tokens=12)


@pytest.fixture(scope="module")
def sides() -> Comparison:
    return Comparison("tiny", LOAD, torch.device("cpu"), "float32")


def test_the_command_measures_both_batch_sizes_and_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed" / "decode.json"
    assert cli.main([*TINY, *SHORT, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["setting"]) for row in rows] == [
        (name, f"tiny batch {size} float32 cpu")
        for size in (1, 8)
        for name in ("decode", "first token, new picture", "first token, seen picture")
    ]
    for row in rows:
        inverse = row["unit"] == "ms"
        ratio = row["peer"] / row["ours"] if inverse else row["ours"] / row["peer"]
        assert row["ratio"] == pytest.approx(ratio) and row["ours"] > 0
    printed = capsys.readouterr().out
    assert "batch 1: 6 of 6 greedy tokens" in printed
    assert "batch 8: 48 of 48 greedy tokens" in printed


def test_other_dtypes_and_batch_sizes_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--dtype", "bfloat16", "--batch-size", "3")
    assert cli.main([*TINY, *SHORT, *options]) == 0
    printed = capsys.readouterr().out
    assert "batch 3: " in printed and "batch 8" not in printed


def test_pictures_and_words_decide_what_both_write(sides: Comparison) -> None:
    prompts = sides.draw_prompts()
    ours, seconds = sides.run_ours(prompts, 12, seen=False)
    theirs, peer_seconds = sides.run_peer(prompts, 12)
    assert torch.equal(ours, theirs) and ours.shape == (2, 12)
    assert len(seconds) == len(peer_seconds) == 12
    assert seconds == sorted(seconds) and peer_seconds == sorted(peer_seconds)
    assert not torch.equal(sides.run_ours(sides.draw_prompts(), 12, True)[0], ours)
    both = sides.images, sides.peer_images
    sides.images, sides.peer_images = (
        sides.images[::-1],
        {name: tensor.flip(0) for name, tensor in sides.peer_images.items()},
    )
    swapped, _ = sides.run_ours(prompts, 12, seen=True)
    assert torch.equal(swapped, sides.run_peer(prompts, 12)[0])
    sides.images, sides.peer_images = both
    assert not torch.equal(swapped, ours)


def test_a_seen_picture_is_not_encoded_and_a_new_one_is(sides: Comparison) -> None:
    calls: list[int] = []
    hook = sides.ours.encoder.register_forward_hook(lambda *_: calls.append(1))
    sides.run_ours(sides.draw_prompts(), 2, seen=False)
    assert len(calls) == 1
    sides.run_ours(sides.draw_prompts(), 2, seen=True)
    assert len(calls) == 1
    hook.remove()


def test_sides_that_answer_differently_are_not_timed() -> None:
    sides = Comparison("tiny", LOAD, torch.device("cpu"), "float32")
    sides.check()
    sides.ours.decoder.lm_head.weight.neg_()
    with pytest.raises(RuntimeError, match="the answers differ"):
        sides.check()


@pytest.mark.parametrize("size", ["tiny", "30m", "11b"])
def test_every_size_can_be_expressed_by_mllama(size: str) -> None:
    config = read_size(size)
    behind = config.decoder.vocab_size
    config_to_mllama(
        config, image_token_id=behind, bos_id=1, eos_ids=[2], pad_id=3, dtype="float32"
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--against", "vllm"), "'vllm' is not"),
        (("--size", "huge"), "'huge' is not one of"),
        (("--batch-size", "0"), "--batch-size"),
        (("--new-tokens", "1"), "--new-tokens"),
        (("--json", "report.txt"), "needed: a file that ends in .json"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    options: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TINY, *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and named in told and told.count("\n") == 1
