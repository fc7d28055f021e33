"""The losses against their definitions, and the figures of validation on known cases."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.collate import ChatBatch, PairBatch, collate_chats
from data.loader import LoaderState
from training.config import TrainConfig
from training.objectives import Contrastive, NextToken, recall
from training.run import train_stage
from training.setup import Setup, build_setup
from vlm.contrastive import ContrastiveHead, load_two_towers
from vlm.inputs import ImageInputs, ModelInputs
from vlm.model import VisionLanguageModel


def first_batch(setup: Setup) -> Any:
    setup.train.state = LoaderState.start(1)
    return next(setup.train.batches())


def contrastive_setup(
    stage_config: Callable[..., TrainConfig], out: Path, loss: str, **changes: Any
) -> tuple[Setup, Contrastive]:
    plain = stage_config("encoder", out)
    assert plain.contrastive is not None
    section = {"loss": loss, "text_tower": plain.contrastive.text_tower.model_dump()}
    torch.manual_seed(0)
    setup = build_setup(stage_config("encoder", out, contrastive=section, **changes))
    assert isinstance(setup.objective, Contrastive)
    return setup, setup.objective


def text_batch(ids: list[list[int]], supervised: list[list[int]]) -> ChatBatch:
    input_ids = torch.tensor(ids)
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, places in enumerate(supervised):
        mask[row, places] = True
    lengths = torch.full((len(ids),), input_ids.shape[1])
    return ChatBatch(("a",), ModelInputs(input_ids, lengths, None), mask)


@torch.no_grad()
def test_next_token_loss_is_cross_entropy_over_the_supervised_tokens(
    finetune_setup: Setup,
) -> None:
    objective = finetune_setup.objective
    assert isinstance(objective, NextToken)
    batch = first_batch(finetune_setup)
    assert batch.inputs.images is not None and not batch.loss_mask.all()
    logits = objective.model.decoder.logits(objective.model(batch.inputs))  # (B, S, V)
    terms = [
        F.cross_entropy(logits[row, place - 1], batch.inputs.input_ids[row, place])
        for row, place in batch.loss_mask.nonzero().tolist()
    ]
    loss = objective.loss(batch)
    assert len(terms) == loss.weight == objective.weight(batch) == batch.loss_mask.sum()
    torch.testing.assert_close(loss.total, torch.stack(terms).sum())


def greedy_row(model: VisionLanguageModel, start: list[int], wrong: set[int]) -> list[int]:
    """Six tokens, each the model's own best guess, or another one at the places in `wrong`."""
    ids = list(start)
    while len(ids) < 6:
        hidden = model(text_batch([ids], [[]]).inputs)
        best = int(model.decoder.logits(hidden[0, -1]).argmax())
        ids.append((best + 1) % 300 if len(ids) in wrong else best)
    return ids


@torch.no_grad()
def test_validation_counts_right_tokens_and_wholly_right_turns(
    tiny_model: VisionLanguageModel,
) -> None:
    first = greedy_row(tiny_model, [5, 6], wrong={4})
    second = greedy_row(tiny_model, [9], wrong={5})
    third = greedy_row(tiny_model, [11], wrong=set())
    # Turns: right [2], wrong in its second token [4 5 reaches the end of the row]; the next row
    # begins with a right one [1 2 3] and ends with a wrong one [5]; the last is right, [1].
    supervised = [[2, 4, 5], [1, 2, 3, 5]]
    batches = [text_batch([first, second], supervised), text_batch([third], [[1]])]
    figures = NextToken(tiny_model).validate(batches)
    assert figures["turn_accuracy"] == 3 / 5
    assert figures["token_accuracy"] == 6 / 8
    loss = sum(NextToken(tiny_model).loss(given).total.item() for given in batches)
    assert figures["loss"] == pytest.approx(loss / 8)


def test_packing_changes_neither_loss_nor_gradient_nor_the_figures_of_validation(
    finetune_setup: Setup,
) -> None:
    objective, setup = finetune_setup.objective, finetune_setup
    assert isinstance(objective, NextToken)
    raws = itertools.islice(setup.train.sources[0].read_all(), 5)
    samples = [setup.train.reader.encode(raw, random.Random(0)) for raw in raws]
    pad_id = setup.processor.tokenizer.pad_id
    apart, packed = (collate_chats(samples, pad_id, length) for length in (None, 160))
    assert len(packed.inputs.input_ids) <= len(apart.inputs.input_ids) / 2
    parameters = list(objective.model.parameters())
    losses = [objective.loss(batch) for batch in (apart, packed)]
    gradients = [torch.autograd.grad(loss.total, parameters) for loss in losses]
    assert losses[0].weight == losses[1].weight
    # Sums of float32 in another order.
    torch.testing.assert_close(losses[1].total, losses[0].total, rtol=2e-6, atol=0.0)
    flat, other = (torch.cat([g.flatten() for g in found]) for found in gradients)
    assert (flat - other).norm() <= 1e-5 * flat.norm()
    with torch.no_grad():
        figures = [objective.validate([batch]) for batch in (apart, packed)]
    assert figures[1] == pytest.approx(figures[0], rel=2e-6)


def test_an_image_is_the_mean_of_all_tokens_of_its_tiles() -> None:
    head = ContrastiveHead(features_size=2, embedding_size=2, sigmoid=False)
    with torch.no_grad():
        head.image_projection.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    features = torch.tensor([[[1.0, 1.0], [3.0, 1.0]], [[4.0, 5.0], [8.0, 5.0]], [[7.0, 9.0]] * 2])
    counts = torch.tensor([2, 1])
    images = ImageInputs(torch.zeros(3), counts, torch.ones(2), torch.ones(2), torch.arange(2))
    assert head(features, images).tolist() == [[4.0, 6.0], [7.0, 18.0]]


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_a_finished_encoder_stage_gives_back_its_towers(
    loss: str, stage_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    plain = stage_config("encoder", tmp_path / "plain")
    assert plain.contrastive is not None
    section = {"loss": loss, "text_tower": plain.contrastive.text_tower.model_dump()}
    config = stage_config("encoder", tmp_path / "out", contrastive=section, steps=1)
    result = train_stage(config)
    towers, processor, max_tokens = load_two_towers(config.out, torch.device("cpu"), torch.float32)
    assert max_tokens == plain.contrastive.text_tower.max_tokens
    setup = build_setup(stage_config("encoder", tmp_path / "other", contrastive=section))
    assert setup.validation is not None and setup.config.contrastive is not None
    objective = Contrastive(towers, setup.config.contrastive, processor.tokenizer.pad_id)
    found = setup.validation.figures(objective, torch.device("cpu"))["validation"]
    assert {name: found[name] for name in result.figures} == result.figures
    assert result.figures["loss"] > 0


@torch.no_grad()
@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_contrastive_losses_equal_their_definitions(
    loss: str, stage_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    setup, objective = contrastive_setup(stage_config, tmp_path / "out", loss)
    batch = first_batch(setup)
    images, texts = objective.embed(batch)
    size = len(batch.keys)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(size))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(size))
    if loss == "clip":  # https://arxiv.org/abs/2103.00020, figure 3
        logits = images @ texts.T / 0.07
        right = torch.arange(size)
        expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    else:  # https://arxiv.org/abs/2303.15343, algorithm 1
        logits = 10 * images @ texts.T - 10
        expected = -F.logsigmoid(logits * (2 * torch.eye(size) - 1)).sum() / size
    found = objective.loss(batch)
    assert found.weight == objective.weight(batch) == size
    torch.testing.assert_close(found.total / size, expected)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_contrastive_training_tells_the_pairs_of_a_batch_apart(
    loss: str, stage_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    data = {"batch_samples": 2}
    setup, objective = contrastive_setup(stage_config, tmp_path / "out", loss, data=data)
    batch: PairBatch = first_batch(setup)
    parameters = [p for module in setup.modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        total = objective.loss(batch).total
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        figures = objective.validate([batch])
    assert figures["loss"] < 0.2  # chance is log 2 for clip, 2 log 2 for siglip
    assert figures["image_to_text_recall@1"] == figures["text_to_image_recall@1"] == 1.0


def test_the_temperature_stops_at_one_hundred(
    stage_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    setup, objective = contrastive_setup(stage_config, tmp_path / "out", "clip")
    batch = first_batch(setup)
    with torch.no_grad():
        totals = []
        for scale in (100.0, 10_000.0, 50.0):
            objective.model.head.log_scale.fill_(scale).log_()
            totals.append(objective.loss(batch).total.item())
    assert totals[0] == pytest.approx(totals[1], rel=1e-5) != pytest.approx(totals[2], rel=1e-5)


def on_circle(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_recall_counts_the_right_text_among_the_nearest() -> None:
    images = on_circle(0, 10, 20, 30, 40, 50, 180)
    texts = on_circle(0, 10, 24, 30, 40, 50, 21)
    figures = recall(images, texts, [(index,) for index in range(7)])
    # Text 6 (21) is the nearest to picture 2 (20), and picture 6's are 50, 40, 30, 24, its own.
    assert figures["image_to_text_recall@1"] == pytest.approx(5 / 7)
    assert figures["image_to_text_recall@5"] == 1.0
    # Text 2 (24) is nearest to its own picture still, and text 6 farthest from its own.
    assert figures["text_to_image_recall@1"] == pytest.approx(6 / 7)
    assert figures["text_to_image_recall@5"] == pytest.approx(6 / 7)


def test_recall_takes_an_equal_text_for_the_right_one() -> None:
    images, texts = on_circle(0, 90, 180), on_circle(90, 0, 180)  # the first two are swapped
    assert recall(images, texts, [(1,), (2,), (3,)])["image_to_text_recall@1"] == pytest.approx(
        1 / 3
    )
    assert recall(images, texts, [(1,), (1,), (3,)])["image_to_text_recall@1"] == 1.0
    assert recall(images, texts, [(1,), (1,), (3,)])["text_to_image_recall@5"] == 1.0  # of three


def test_recall_keeps_full_precision_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.tensor([1.0, 0.0]) + 1e-3 * torch.randn(50, 2, generator=generator)
    embeddings = F.normalize(near, dim=1)
    ids = [(index,) for index in range(50)]
    plain = recall(embeddings, embeddings, ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert recall(embeddings, embeddings, ids) == plain


def test_recall_of_random_embeddings_is_at_chance() -> None:
    rng = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(200, 8, generator=rng), dim=1) for _ in range(2))
    figures = recall(images, texts, [(index,) for index in range(200)])
    assert all(value < 0.08 for value in figures.values())
