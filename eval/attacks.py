"""Attacks on pictures: small changes, or a small patch, that lead a model to a wrong answer.

What is bounded are the pixels of the resized canvas: a picture is resized for its tiles as the
model's preprocessing does it, and the 8-bit values (0..255) of these pixels change, before they are
normalised. Tiles' padding, where no picture reaches, stays black. The attacked canvas is then a
picture of its own, a PNG whose sides are whole tiles: read again, it is cut into exactly the tiles
that were attacked, without resizing. So it is asked as every other picture is.

Gradients flow from the likelihood of the right answer through decoder, projector and encoder into
the pixels; the weights stay as they are.

Axes: `A` attacked items, `C` choices of an item, `B` rows, `S` text length, `T` tiles of all.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from encoders.tiling import TiledImage, cut_tiles, join_tiles, place
from eval.benchmark import BenchmarkConfig
from eval.conditions import LEVELS, Attack, PgdAttack
from eval.fitting import Fitting
from eval.items import Item, Picture
from eval.predictions import AttackFacts
from eval.prompts import Message, Pictures, choice_texts, conversation, shown_answer
from vlm.api import Model
from vlm.errors import UserError
from vlm.images import read_image
from vlm.inputs import Example, ModelInputs, stack_examples
from vlm.model import VisionLanguageModel

# Of the attack's way from one bound to the other in all its steps, so that what the gradient says
# at first can be taken back: A. Madry's library, https://github.com/MadryLab/robustness.
STEPS_FACTOR = 2.5


@dataclass(frozen=True)
class Attacked:
    """An item with attacked pictures."""

    item: Item
    facts: AttackFacts


@dataclass(frozen=True)
class _Space:
    """A picture's tiles, and where they may change.

    free: (T, 1, px, px) bool.
    draw: at the state from which the start is drawn.
    """

    picture: TiledImage
    free: Tensor
    draw: np.random.Generator

    def bounds(self, attack: Attack) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The pixels, the least and the most that they may become, and where the attack starts.

        All (T, 3, px, px) float32, 0..255; made when they are needed, for they are large.
        """
        pixels = self.picture.tiles.float()
        reach = attack.levels if isinstance(attack, PgdAttack) else LEVELS
        low = torch.where(self.free, (pixels - reach).clamp(min=0), pixels)
        high = torch.where(self.free, (pixels + reach).clamp(max=LEVELS), pixels)
        if isinstance(attack, PgdAttack) and not attack.random_start:
            return pixels, low, high, pixels
        share = deepcopy(self.draw).random(tuple(pixels.shape), np.float32)
        return pixels, low, high, low + torch.from_numpy(share) * (high - low)


@dataclass(frozen=True)
class Victim:
    """What is attacked: the pictures of an item, by the likelihood of its answers.

    rows: the prompt with each answer that is compared, the right one or the target at `aim`; one
        row where nothing is compared. `loss_mask` marks the answer.
    lengths: what the log probability of each row's answer is divided by.
    spaces: of each picture, in the order in which the rows show them.
    places: which of them each picture of the item is, by its name.
    """

    rows: tuple[Example, ...]
    lengths: tuple[float, ...]
    aim: int
    spaces: tuple[_Space, ...]
    places: Mapping[str, int]


def attack_items(
    model: Model, benchmark: BenchmarkConfig, items: Sequence[Item], batch_size: int
) -> list[Attacked | None]:
    """Attack the pictures of items, a batch at a time; None for those that show none.

    Items of like size share a batch. They do not see each other, but sums run in another order in
    another batch, so that single pixels may end elsewhere.

    Raises:
        UserError: an item has no right answer, or not the target among its choices.
    """
    attack = benchmark.attack
    assert attack is not None
    found: list[Attacked | None] = [None] * len(items)
    victims = {
        index: make_victim(model, benchmark, item)
        for index, item in enumerate(items)
        if item.images
    }
    order = sorted(victims, key=lambda index: _size(victims[index]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        outcomes = perturb(model.network, [victims[index] for index in batch], attack)
        for index, outcome in zip(batch, outcomes, strict=True):
            found[index] = _attacked(items[index], victims[index], outcome)
    return found


def keep_pictures(outcomes: Sequence[Attacked | None], folder: Path, limit: int) -> None:
    """Write attacked pictures into a folder, by their SHA-256, until it has `limit` of them."""
    folder.mkdir(parents=True, exist_ok=True)
    room = limit - len(list(folder.glob("*.png")))
    attacked = [outcome for outcome in outcomes if outcome is not None]
    for outcome in attacked[: max(room, 0)]:
        for picture in outcome.item.images:
            content = picture.read()
            (folder / f"{hashlib.sha256(content).hexdigest()}.png").write_bytes(content)


def make_victim(model: Model, benchmark: BenchmarkConfig, item: Item) -> Victim:
    """What there is to attack of an item.

    Raises:
        UserError: it has no right answer, or not the target among its choices.
    """
    attack = benchmark.attack
    assert attack is not None
    pictures = Pictures()
    answers, aim = _answers(benchmark, item)
    messages = _fitting(model, benchmark, conversation(benchmark, item, (), pictures), answers)
    contents = list(_shown(messages))
    numbers: dict[int, int] = {}
    for content in contents:
        numbers.setdefault(id(content), len(numbers))
    distinct = {numbers[id(content)]: content for content in contents}
    spaces = [_space(model, distinct[n], attack, _draw(attack, item, n)) for n in sorted(distinct)]
    shown = [spaces[numbers[id(content)]].picture for content in contents]
    prompt = model.processor.encode(messages, shown, add_generation_prompt=True)
    rows = [
        _answered(model.processor.encode([*messages, _reply(answer)], shown), prompt)
        for answer in answers
    ]
    by_length = len(rows) == 1 or benchmark.normalise == "tokens"
    lengths = [float(row.loss_mask.sum()) if by_length else 1.0 for row in rows]
    if benchmark.normalise == "characters" and len(rows) > 1:
        lengths = [float(len(choice)) for choice in item.choices]
    places = {picture.name: numbers[id(pictures.read(picture))] for picture in item.images}
    return Victim(tuple(rows), tuple(lengths), aim, tuple(spaces), places)


def canvas_file(tiled: TiledImage) -> bytes:
    """The canvas as a PNG, which is cut into the same tiles when it is read."""
    pixels = join_tiles(tiled.tiles, tiled.canvas)  # (3, H, W)
    file = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()


@dataclass(frozen=True)
class _Outcome:
    """Attacked pictures of a victim, in the order of its spaces, and its losses."""

    tiles: tuple[Tensor, ...]
    loss_before: float
    loss: float


def perturb(
    network: VisionLanguageModel, victims: Sequence[Victim], attack: Attack
) -> list[_Outcome]:
    """Move the pixels of victims so that their loss rises, or falls if there is a target.

    The loss is the mean negative log likelihood of the answer's tokens; of multiple choice, the
    cross-entropy of the right choice among all. Projected sign-gradient steps; each point is
    rounded to 8 bits before it is looked at, and the best one that was seen is kept, the picture as
    it was included.

    Args:
        network: its parameters must not require gradients.
    """
    device = network.decoder.embed_tokens.weight.device
    objective = _Objective(network, victims, device)
    spaces = [space for victim in victims for space in victim.spaces]
    clean, low, high, point = (
        torch.cat(tensors).to(device)
        for tensors in zip(*(space.bounds(attack) for space in spaces), strict=True)
    )  # (T, 3, px, px)
    sign = 1 if attack.target is None else -1
    reach = attack.levels if isinstance(attack, PgdAttack) else LEVELS
    step = STEPS_FACTOR * reach / attack.steps
    if attack.step_size is not None:
        step = attack.step_size * LEVELS
    with torch.no_grad():
        before = objective.losses(clean)  # (A,)
    best, best_losses = clean, before
    for number in range(attack.steps + 1):
        point.requires_grad_()
        # Rounding has no gradient; it is taken as if nothing had been rounded.
        seen = point + (point.round() - point).detach()
        losses = objective.losses(seen)
        better = sign * losses.detach() > sign * best_losses
        best_losses = torch.where(better, losses.detach(), best_losses)
        best = torch.where(objective.of_tiles(better), seen.detach(), best)
        if number < attack.steps:
            (gradient,) = torch.autograd.grad(sign * losses.sum(), point)
            moved = point.detach() + step * gradient.sign()
            point = torch.minimum(torch.maximum(moved, low), high)
    counts = [space.picture.num_tiles for space in spaces]
    tiles = iter(torch.split(best.round().to(torch.uint8).cpu(), counts))
    return [
        _Outcome(tuple(next(tiles) for _ in victim.spaces), float(old), float(new))
        for victim, old, new in zip(victims, before.tolist(), best_losses.tolist(), strict=True)
    ]


class _Objective:
    """The loss of each of some victims as a function of all their pixels."""

    def __init__(
        self, network: VisionLanguageModel, victims: Sequence[Victim], device: torch.device
    ) -> None:
        self.network = network
        rows = [row for victim in victims for row in victim.rows]
        # What stands at padding reaches nothing, so any id will do.
        self.inputs: ModelInputs = stack_examples(rows, pad_id=0).to(device)
        mask = torch.nn.utils.rnn.pad_sequence([row.loss_mask for row in rows], batch_first=True)
        self.mask = mask[:, 1:].to(device)  # (B, S - 1), of what is predicted
        self.row_of_token = self.mask.nonzero()[:, 0]
        self.targets = self.inputs.input_ids[:, 1:][self.mask]
        counts = torch.tensor([len(victim.rows) for victim in victims], device=device)
        self.victim_of_row = torch.arange(len(victims), device=device).repeat_interleave(counts)
        self.choice_of_row = torch.cat([torch.arange(n, device=device) for n in counts.tolist()])
        lengths = [length for victim in victims for length in victim.lengths]
        self.lengths = torch.tensor(lengths, device=device)
        self.aims = torch.tensor([victim.aim for victim in victims], device=device)
        self.shape = len(victims), int(counts.max())
        tiles = [sum(space.picture.num_tiles for space in victim.spaces) for victim in victims]
        self.victim_of_tile = torch.arange(len(victims), device=device).repeat_interleave(
            torch.tensor(tiles, device=device)
        )

    def losses(self, pixels: Tensor) -> Tensor:
        """(A,) float32 of pixels (T, 3, px, px) float32, 0..255."""
        assert self.inputs.images is not None
        inputs = replace(self.inputs, images=replace(self.inputs.images, pixels=pixels))
        hidden = self.network(inputs)[:, :-1][self.mask]  # (answers' tokens, D)
        logits = self.network.decoder.logits(hidden).float()
        logprobs = -F.cross_entropy(logits, self.targets, reduction="none")
        sums = logprobs.new_zeros(len(self.lengths)).index_add(0, self.row_of_token, logprobs)
        scores = logprobs.new_full(self.shape, -math.inf).index_put(
            (self.victim_of_row, self.choice_of_row), sums / self.lengths
        )  # (A, C)
        aimed = scores.gather(1, self.aims.unsqueeze(1)).squeeze(1)
        return -aimed if self.shape[1] == 1 else scores.logsumexp(dim=1) - aimed

    def of_tiles(self, of_victims: Tensor) -> Tensor:
        """What holds of victims (A,) for each of their tiles, (T, 1, 1, 1)."""
        return of_victims[self.victim_of_tile].view(-1, 1, 1, 1)


def _space(model: Model, content: bytes, attack: Attack, draw: np.random.Generator) -> _Space:
    """A picture on its canvas, and which of its pixels may change."""
    image = read_image(content)
    tiled = model.processor.tile(image)
    vision = model.processor.vision
    _, size = place(image.height, image.width, vision.tile_size_px, vision.max_num_tiles)
    where = torch.zeros(1, *size)
    if isinstance(attack, PgdAttack):
        where[:] = 1
    else:
        side = min(max(1, round(math.sqrt(attack.share * math.prod(size)))), *size)
        top, left = (int(draw.integers(length - side + 1)) for length in size)
        where[:, top : top + side, left : left + side] = 1
    free = cut_tiles(where, tiled.canvas, vision.tile_size_px) > 0  # (T, 1, px, px)
    return _Space(tiled, free, draw)


def _answers(benchmark: BenchmarkConfig, item: Item) -> tuple[list[str], int]:
    """The answers whose likelihoods make the loss, and which of them is right, or the target."""
    attack = benchmark.attack
    assert attack is not None
    if benchmark.ask == "choose":
        texts = choice_texts(benchmark, item)
        if attack.target is None:
            if not item.correct:
                raise UserError(f"item {item.id!r} has no right choice to attack")
            return texts, item.correct[0]
        if attack.target not in item.choices:
            raise UserError(
                f"item {item.id!r} has no choice {attack.target!r}, the attack's target"
            )
        return texts, item.choices.index(attack.target)
    return [shown_answer(benchmark, item) if attack.target is None else attack.target], 0


def _fitting(
    model: Model, benchmark: BenchmarkConfig, messages: list[Message], answers: Sequence[str]
) -> list[Message]:
    """The chat as it is asked: cut where it is too long for the model."""
    fitting = Fitting(model.processor, model.network.decoder.config.max_positions)
    room = fitting.num_answer_tokens(answers)
    if benchmark.ask == "generate":
        room = max(room, min(benchmark.decoding.max_tokens, fitting.max_tokens // 2))
    fitted, _ = fitting.fit(messages, room)
    assert not isinstance(fitted, str)
    return fitted


def _answered(row: Example, prompt: Example) -> Example:
    """The row with only what follows the prompt supervised."""
    mask = row.loss_mask.clone()
    mask[: len(prompt.input_ids)] = False
    return replace(row, loss_mask=mask)


def _reply(answer: str) -> Message:
    return {"role": "assistant", "content": answer}


def _shown(messages: Sequence[Message]) -> Iterator[bytes]:
    for message in messages:
        for part in message["content"]:
            if isinstance(part, dict) and part["type"] == "image":
                yield part["image"]


def _draw(attack: Attack, item: Item, number: int) -> np.random.Generator:
    words = f"{attack.seed}\n{number}\n{item.id}".encode("utf-8", "surrogatepass")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(words).digest()))


def _size(victim: Victim) -> tuple[int, int]:
    """What a victim's cost depends on."""
    return (
        sum(space.picture.num_tiles for space in victim.spaces),
        max(len(row.input_ids) for row in victim.rows),
    )


def _attacked(item: Item, victim: Victim, outcome: _Outcome) -> Attacked:
    """The item with the attacked canvases as its pictures, and what became of it."""
    changes = [
        (tiles.int() - space.picture.tiles.int()).abs().max().item()
        for tiles, space in zip(outcome.tiles, victim.spaces, strict=True)
    ]
    files = [
        canvas_file(replace(space.picture, tiles=tiles))
        for space, tiles in zip(victim.spaces, outcome.tiles, strict=True)
    ]
    images = tuple(
        # Another item has other pixels of the same picture.
        Picture(f"{item.id} {picture.name}", _reader(files[victim.places[picture.name]]))
        for picture in item.images
    )
    facts = AttackFacts(
        distance=max(changes) / LEVELS, loss_before=outcome.loss_before, loss=outcome.loss
    )
    return Attacked(replace(item, images=images), facts)


def _reader(content: bytes) -> Callable[[], bytes]:
    return lambda: content
