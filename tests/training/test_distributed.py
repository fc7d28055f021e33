"""Ranks with unlike rows never wait for each other, and learn what one process would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data.collate import ChatBatch
from training.distributed import num_ranks, share_of_step, sum_over_ranks, with_unseen_image
from training.objectives import NextToken
from vlm.config import VLMConfig
from vlm.inputs import ModelInputs
from vlm.model import VisionLanguageModel

PROGRAM = Path(__file__).parent / "ranks_program.py"
ROOT = PROGRAM.parents[2]
RANKS = {
    "text_beside_pictures": 2,
    "align_text_beside_pictures": 2,
    "one_of_four_has_pictures": 4,
    "no_rank_has_pictures": 4,
    "packed": 2,
    "sharded_text_beside_pictures": 2,
}


@pytest.fixture(scope="module")
def results(tiny_config: VLMConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks of every case computed: gloo processes, with timeouts."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "config.json").write_text(tiny_config.model_dump_json())
    command = [sys.executable, str(PROGRAM), str(out / "config.json"), str(out), *RANKS]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


@pytest.mark.parametrize("case", RANKS)
def test_gradients_of_every_rank_equal_those_of_one_process_on_all_rows(
    case: str, results: Path
) -> None:
    alone = load_file(results / f"{case}.alone.safetensors")
    for rank in range(RANKS[case]):
        found = load_file(results / f"{case}.rank{rank}.safetensors")
        torch.testing.assert_close(found.pop("loss"), alone["loss"])
        expected = {name: tensor for name, tensor in alone.items() if name != "loss"}
        # A part that no row of any rank reads has gradients of zero here and none in one process.
        idle = {name: found.pop(name) for name in set(found) - set(expected)}
        assert not any(gradient.any() for gradient in idle.values())
        assert bool(idle) == (case == "no_rank_has_pictures")
        assert set(found) == set(expected)
        if expected:
            # Sums of float32 in another order.
            assert (flat(found) - flat(expected)).norm() <= 2e-6 * flat(expected).norm()
            assert flat(expected).norm() > 0.1


def text_inputs() -> ModelInputs:
    ids = torch.randint(0, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    return ModelInputs(ids, torch.tensor([9, 4, 7]), None)


@pytest.mark.parametrize("has_features", [False, True])
def test_an_unseen_image_changes_no_bit_and_gives_every_parameter_that_runs_a_gradient(
    has_features: bool, open_model: VisionLanguageModel
) -> None:
    open_model.requires_grad_(True)
    plain = text_inputs()
    inputs = with_unseen_image(plain, open_model.config.vision, has_features)
    hidden = open_model(inputs)
    assert torch.equal(hidden, open_model(plain))
    open_model.decoder.logits(hidden).logsumexp(-1).sum().backward()
    for name, parameter in open_model.named_parameters():
        if has_features and name.startswith("encoder."):
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        sees = name.startswith(("encoder.", "projector.")) or ".cross_attn." in name
        assert not sees or not parameter.grad.any(), name


def test_a_batch_with_pictures_stays_as_it_is(open_model: VisionLanguageModel) -> None:
    vision = open_model.config.vision
    inputs = with_unseen_image(text_inputs(), vision)
    assert with_unseen_image(inputs, vision) is inputs


def test_one_process_exchanges_nothing_and_looks_at_nothing_unseen(
    open_model: VisionLanguageModel,
) -> None:
    assert num_ranks() == 1
    assert sum_over_ranks(3.5, torch.device("cpu")) == 3.5
    total = torch.tensor(7.0)
    assert torch.equal(share_of_step(total, 3), total / 3)
    open_model.encoder.requires_grad_(True)
    inputs = text_inputs()
    batch = ChatBatch(("a",), inputs, torch.ones_like(inputs.input_ids, dtype=torch.bool))
    assert not NextToken(open_model).loss(batch).total.requires_grad
