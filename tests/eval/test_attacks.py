"""Attacks on pictures, on tiny models: what they may change, and what they achieve."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.tiling import cut_tiles, join_tiles, supported_canvases, tile_picture
from eval.attacks import Attacked, attack_items, make_victim, perturb
from eval.benchmark import BenchmarkConfig
from eval.conditions import Attack, PatchAttack, PgdAttack, read_attack
from eval.items import Item, Picture
from eval.prompts import Pictures, conversation
from vlm.api import Model
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.images import read_image
from vlm.model import VisionLanguageModel

# Shrunk to a part of three tiles, enlarged to one, a part of four tiles, and exactly one.
SIZES_PX = ((70, 33), (9, 12), (17, 20), (16, 16))


def encode(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def benchmark(attack: Attack, **settings: Any) -> BenchmarkConfig:
    source = {"homepage": "", "get": ""}
    return BenchmarkConfig.model_validate(
        {
            "name": "shapes",
            "title": "shapes",
            "source": source,
            "format": "shards",
            "metrics": ["answers"],
            "attack": attack.model_dump(),
            **settings,
        }
    )


@pytest.fixture
def model(open_model: VisionLanguageModel, processor: Processor) -> Model:
    return Model(open_model, processor, Path())


@pytest.fixture
def items(picture: Callable[..., Image.Image]) -> list[Item]:
    """One question for each size of picture, and one that shows two."""
    contents = [encode(picture(seed, *size)) for seed, size in enumerate(SIZES_PX)]
    pictures = [Picture(f"{n}.png", lambda c=c: c) for n, c in enumerate(contents)]
    single = [
        Item(f"item {n}", "How many red circles are there?", (p,), answers=("Two.",))
        for n, p in enumerate(pictures)
    ]
    return [*single, Item("both", "What colour is it?", (pictures[2], pictures[0]), ("blue",))]


def tiles(model: Model, item: Item) -> list[torch.Tensor]:
    """The tiles of an item's pictures as the model is asked with them."""
    return [model.processor.tile_file(image.read()).tiles.int() for image in item.images]


def answers(model: Model, items: list[Item], config: BenchmarkConfig) -> list[str]:
    chats = [conversation(config, item, (), Pictures()) for item in items]
    return [reply.text for reply in model.chat_batch(chats, max_tokens=6)]


def attacked(model: Model, items: list[Item], attack: Attack, **settings: Any) -> list[Attacked]:
    found = attack_items(model, benchmark(attack, **settings), items, batch_size=4)
    assert all(outcome is not None for outcome in found)
    return [outcome for outcome in found if outcome is not None]


@pytest.mark.parametrize("canvas", supported_canvases(4))
def test_a_canvas_of_whole_tiles_is_cut_into_the_tiles_it_was_joined_from(
    canvas: tuple[int, int],
) -> None:
    """Also where its picture fills a part only: else an attacked picture would be resized."""
    rows, columns = canvas
    content = torch.randint(0, 256, (3, rows * 16 - 7, columns * 16), dtype=torch.uint8)
    cut = cut_tiles(content, canvas, 16)
    joined = join_tiles(cut, canvas)
    assert torch.equal(joined[:, : content.shape[1]], content)
    again = tile_picture(Image.fromarray(joined.permute(1, 2, 0).numpy()), 16, 4)
    assert again.canvas == canvas
    assert torch.equal(again.tiles, cut)


def test_an_attack_of_no_size_leaves_tiles_and_answers_as_they_were(
    model: Model, items: list[Item]
) -> None:
    config = benchmark(PgdAttack(eps=0.0, steps=2))
    same = attacked(model, items, PgdAttack(eps=0.0, steps=2))
    for item, outcome in zip(items, same, strict=True):
        assert outcome.facts.distance == 0
        assert outcome.facts.loss == outcome.facts.loss_before
        for before, after in zip(tiles(model, item), tiles(model, outcome.item), strict=True):
            assert torch.equal(before, after)
    assert answers(model, [o.item for o in same], config) == answers(model, items, config)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("levels", [1, 8])
def test_no_pixel_changes_by_more_than_eps_and_padding_not_at_all(
    model: Model, items: list[Item], levels: int, random_start: bool
) -> None:
    attack = PgdAttack(eps=levels / 255, steps=3, random_start=random_start)
    for item, outcome in zip(items, attacked(model, items, attack), strict=True):
        changes = []
        for image, before, after in zip(
            item.images, tiles(model, item), tiles(model, outcome.item), strict=True
        ):
            changes.append((after - before).abs().max().item())
            assert 0 <= after.min() and after.max() <= 255
            white = Image.new("RGB", read_image(image.read()).size, (255, 255, 255))
            reached = tile_picture(white, 16, 4).tiles > 0
            assert torch.equal(after[~reached], before[~reached])
        assert 0 < max(changes) <= levels
        assert outcome.facts.distance == max(changes) / 255


def test_a_patch_changes_a_square_of_its_area_and_nothing_else(
    model: Model, items: list[Item]
) -> None:
    item = items[0]  # 33 px wide and 16 high on its canvas of 48 x 16
    [outcome] = attacked(model, [item], PatchAttack(share=0.1, steps=3))
    before, after = tiles(model, item)[0], tiles(model, outcome.item)[0]
    changed = join_tiles((before != after).any(dim=1, keepdim=True), (1, 3))[0]
    down, right = np.nonzero(changed.numpy())
    side = round((0.1 * 33 * 16) ** 0.5)
    # A pixel at the edge may happen to keep its value.
    assert side - 1 <= np.ptp(down) + 1 <= side and side - 1 <= np.ptp(right) + 1 <= side
    assert changed.float().sum() > 0.9 * side**2
    assert outcome.facts.distance > 0.5


def test_the_loss_that_is_told_is_that_of_the_picture_that_is_shown(
    model: Model, items: list[Item]
) -> None:
    """Rounded to 8 bits, written as a PNG, read and tiled again."""
    attack = PgdAttack(eps=8 / 255, steps=3)
    for outcome in attacked(model, items, attack):
        again = make_victim(model, benchmark(PgdAttack(eps=0.0, steps=1)), outcome.item)
        [told] = perturb(model.network, [again], PgdAttack(eps=0.0, steps=1))
        # Batches of another size sum in another order.
        assert told.loss_before == pytest.approx(outcome.facts.loss, abs=1e-4)


def test_the_loss_rises_with_the_steps_and_with_eps(model: Model, items: list[Item]) -> None:
    def mean_loss(attack: Attack) -> float:
        return float(np.mean([outcome.facts.loss for outcome in attacked(model, items, attack)]))

    before = [outcome.facts.loss_before for outcome in attacked(model, items, PgdAttack(eps=0.0))]
    by_steps = [
        mean_loss(PgdAttack(eps=8 / 255, steps=steps, step_size=2 / 255, random_start=False))
        for steps in (1, 4, 12)
    ]
    assert np.mean(before) < by_steps[0] < by_steps[1] < by_steps[2]
    by_eps = [mean_loss(PgdAttack(eps=levels / 255, steps=5)) for levels in (1, 4, 16)]
    assert np.mean(before) < by_eps[0] < by_eps[1] < by_eps[2]


def test_steps_along_the_gradient_reach_further_than_noise_of_the_same_size(
    model: Model, items: list[Item]
) -> None:
    """One step of no length sees the random start only."""
    noise = attacked(model, items, PgdAttack(eps=8 / 255, steps=1, step_size=0.0))
    steps = attacked(model, items, PgdAttack(eps=8 / 255, steps=5))
    for random, directed in zip(noise, steps, strict=True):
        assert directed.facts.loss - directed.facts.loss_before > 2 * (
            random.facts.loss - random.facts.loss_before
        )


def test_an_untargeted_attack_changes_what_the_model_says(model: Model, items: list[Item]) -> None:
    config = benchmark(PgdAttack(eps=0.0))
    said = answers(model, items, config)
    own = [Item(i.id, i.question, i.images, (text,)) for i, text in zip(items, said, strict=True)]
    outcomes = attacked(model, own, PgdAttack(eps=32 / 255, steps=10))
    after = answers(model, [outcome.item for outcome in outcomes], config)
    assert sum(a != b for a, b in zip(said, after, strict=True)) >= 3


def test_a_targeted_attack_makes_its_target_likelier(model: Model, items: list[Item]) -> None:
    for outcome in attacked(model, items, PgdAttack(eps=16 / 255, steps=8, target="Three.")):
        assert outcome.facts.loss < 0.95 * outcome.facts.loss_before


def test_of_choices_the_right_one_loses_to_the_others(model: Model, items: list[Item]) -> None:
    asked = [Item(i.id, i.question, i.images, choices=("one", "two"), correct=(1,)) for i in items]
    settings = {"ask": "choose"}
    for outcome in attacked(model, asked, PgdAttack(eps=16 / 255, steps=8), **settings):
        assert outcome.facts.loss > outcome.facts.loss_before
    aimed = PgdAttack(eps=16 / 255, steps=8, target="one")
    for outcome in attacked(model, asked, aimed, **settings):
        assert outcome.facts.loss < outcome.facts.loss_before
    with pytest.raises(UserError, match="no choice 'three'"):
        attacked(model, asked, PgdAttack(eps=0.1, target="three"), **settings)


def test_the_loss_of_choices_is_the_cross_entropy_of_their_likelihoods(
    model: Model, items: list[Item]
) -> None:
    asked = Item("1", "How many?", items[0].images, choices=("one", "two", "a few"), correct=(2,))
    attack = PgdAttack(eps=0.0, steps=1)
    victim = make_victim(model, benchmark(attack, ask="choose"), asked)
    [together] = perturb(model.network, [victim], attack)
    alone = []
    for choice in asked.choices:
        single = Item("1", "How many?", items[0].images, answers=(choice,))
        row = make_victim(model, benchmark(attack), single)
        [outcome] = perturb(model.network, [row], attack)
        alone.append(-outcome.loss * row.lengths[0])
    expected = torch.logsumexp(torch.tensor(alone), 0) - alone[2]
    assert together.loss == pytest.approx(expected.item(), abs=1e-4)


def test_an_item_is_attacked_alike_in_any_company(model: Model, items: list[Item]) -> None:
    attack = PgdAttack(eps=8 / 255, steps=2)
    together = attacked(model, items, attack)
    [alone] = attacked(model, items[1:2], attack)
    # Signs of gradients near nothing may differ.
    [a], [b] = tiles(model, alone.item), tiles(model, together[1].item)
    assert (a != b).float().mean() < 0.01
    [other_seed] = attacked(model, items[1:2], PgdAttack(eps=8 / 255, steps=2, seed=1))
    assert not torch.equal(a, tiles(model, other_seed.item)[0])


def test_an_item_without_pictures_is_not_attacked_and_weights_stay(
    model: Model, items: list[Item]
) -> None:
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    config = benchmark(PgdAttack(eps=4 / 255, steps=2))
    blind, seen = attack_items(model, config, [items[0].blind(), items[0]], batch_size=2)
    assert blind is None and seen is not None
    assert all(parameter.grad is None for parameter in model.network.parameters())
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, weights[name])


@pytest.mark.gpu
def test_on_cuda_bounds_hold_and_losses_are_those_of_the_cpu(
    model: Model, items: list[Item], processor: Processor
) -> None:
    attack = PgdAttack(eps=4 / 255, steps=2)
    expected = attacked(model, items, attack)
    on_gpu = Model(model.network.cuda(), processor, Path())
    for here, there in zip(expected, attacked(on_gpu, items, attack), strict=True):
        assert 0 < there.facts.distance <= 4 / 255
        # TF32 is off; signs of gradients near nothing may differ.
        assert there.facts.loss_before == pytest.approx(here.facts.loss_before, rel=1e-3)
        assert there.facts.loss == pytest.approx(here.facts.loss, rel=2e-2)


def test_words_name_attacks() -> None:
    assert read_attack("pgd:eps=4/255,steps=20") == PgdAttack(eps=4 / 255, steps=20)
    assert read_attack("pgd:eps=4/255").label == "pgd 4/255, 10 steps"
    assert read_attack("pgd: eps = 8/255, target=no, random_start=false") == PgdAttack(
        eps=8 / 255, target="no", random_start=False
    )
    assert read_attack("patch") == PatchAttack()
    assert read_attack("patch:share=0.1").label == "patch 10 %, 40 steps"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("fgsm:eps=4/255", "fgsm"),
        ("pgd", "eps"),
        ("pgd:eps=1/300", "1/255"),
        ("pgd:eps=4/0", "eps"),
        ("pgd:eps=4", "eps"),
        ("pgd:eps=4/255,step=3", "step"),
        ("patch:eps=4/255", "eps"),
    ],
)
def test_wrong_words_are_named(words: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        read_attack(words)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"chat": False}, "chat"),
        ({"few_shot": {"num_examples": 1}}, "few_shot"),
        ({"ask": "perplexity"}, "perplexity"),
    ],
)
def test_what_cannot_be_attacked_is_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        benchmark(PgdAttack(eps=0.1), **settings)
