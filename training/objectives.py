"""What a stage minimises: next-token cross-entropy, or the image-text contrastive loss.

Axes: `B` batch, `S` text length, `V` vocabulary.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn

from data.collate import ChatBatch, PairBatch
from training.config import ContrastiveConfig
from training.cross_entropy import score_tokens, summed_cross_entropy
from training.distributed import (
    empty_image,
    gather,
    gather_rows,
    num_ranks,
    sum_over_ranks,
    with_unseen_image,
)
from vlm.contrastive import TwoTowers
from vlm.inputs import ModelInputs
from vlm.model import VisionLanguageModel

BatchT = TypeVar("BatchT")

# CLIP's bound of the temperature: https://arxiv.org/abs/2103.00020, section 2.5.
MAX_SCALE = 100.0


@dataclass(frozen=True)
class Loss:
    """A batch's loss, summed over `weight` terms; the optimised value is total / weight."""

    total: Tensor
    weight: Tensor


class Objective(Protocol[BatchT]):
    """How a stage turns a batch into a loss, and a validation set into figures.

    model: what holds all parameters.
    forward: what runs the model: itself, or torch's `DistributedDataParallel` around it.
    """

    forward: nn.Module

    @property
    def model(self) -> nn.Module: ...

    def weight(self, batch: BatchT) -> int:
        """The number of terms in the batch's loss, known before the forward pass."""
        ...

    def loss(self, batch: BatchT) -> Loss:
        """Forward pass; the batch lies on the model's device."""
        ...

    def validate(self, batches: Iterable[BatchT]) -> dict[str, float]:
        """Figures over a validation set, `loss` among them, the same on every rank.

        Ranks have their own batches, of an equal number: some may be `idle` ones.
        """
        ...

    def idle(self) -> BatchT:
        """A batch on the host, without weight, that runs every part of the model."""
        ...


class NextToken:
    """Cross-entropy of the supervised tokens.

    Logits are computed where a token is supervised and nowhere else, and never held for many
    tokens of a large vocabulary (training/cross_entropy.py).

    Args:
        pictures: whether chats may show pictures. On several ranks every batch then runs every
            part of the model.
        has_features: whether they come encoded; the encoder is then no part that runs.
    """

    def __init__(
        self, model: VisionLanguageModel, pictures: bool = True, has_features: bool = False
    ) -> None:
        self.model = model
        self.pictures = pictures
        self.has_features = has_features
        self.forward: nn.Module = model

    def weight(self, batch: ChatBatch) -> int:
        """Supervised tokens."""
        return int(batch.loss_mask.sum())

    def loss(self, batch: ChatBatch) -> Loss:
        """Cross-entropy summed over the supervised tokens."""
        hidden, targets, mask = self._supervised(batch)
        return Loss(summed_cross_entropy(self.model.decoder, hidden, targets), mask.sum())

    def validate(self, batches: Iterable[ChatBatch]) -> dict[str, float]:
        """`loss` per token; `token_accuracy`; `turn_accuracy`: turns whose every token is right.

        Each token is predicted with the true tokens before it given.
        """
        total = tokens = right_tokens = turns = right_turns = 0.0
        for batch in batches:
            hidden, targets, mask = self._supervised(batch)
            batch_total, batch_right = score_tokens(self.model.decoder, hidden, targets)
            total += batch_total
            right = torch.zeros_like(mask)
            right[mask] = batch_right
            tokens += mask.sum().item()
            right_tokens += right.sum().item()
            runs, right_runs = _count_runs(mask, right)
            turns += runs
            right_turns += right_runs
        total, tokens, right_tokens, turns, right_turns = (
            sum_over_ranks(value, mask.device)
            for value in (total, tokens, right_tokens, turns, right_turns)
        )
        return {
            "loss": total / tokens,
            "token_accuracy": right_tokens / tokens,
            "turn_accuracy": right_turns / turns,
        }

    def idle(self) -> ChatBatch:
        """A row of two tokens, none of them supervised."""
        ids = torch.zeros(1, 2, dtype=torch.int64)
        return ChatBatch((), ModelInputs(ids, torch.tensor([2]), None), ids.bool())

    def _supervised(self, batch: ChatBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (n, D) and targets (n,) of the n supervised tokens; their mask (B, S-1)."""
        input_ids, mask = batch.inputs.input_ids, batch.loss_mask[:, 1:]
        # Nothing is predicted from the last token.
        inputs = replace(batch.inputs, input_ids=input_ids[:, :-1])
        if self.pictures and num_ranks() > 1:
            inputs = with_unseen_image(inputs, self.model.config.vision, self.has_features)
        hidden = self.forward(inputs)
        return hidden[mask], input_ids[:, 1:][mask], mask


class Contrastive:
    """open_clip's CLIP or SigLIP loss between image and text embeddings.

    On several ranks, which may have unlike numbers of pairs, each contrasts its own with those of
    all ranks: together that is the loss of one large batch.
    """

    def __init__(self, model: TwoTowers, config: ContrastiveConfig, pad_id: int) -> None:
        self.model = model
        self.forward: nn.Module = model
        self.pad_id = pad_id
        self.loss_function = SigLipLoss() if config.loss == "siglip" else ClipLoss()

    def weight(self, batch: PairBatch) -> int:
        """Pairs."""
        return len(batch.keys)

    def loss(self, batch: PairBatch) -> Loss:
        """Contrastive loss, scaled by the number of pairs."""
        images, texts = self.embed(batch)
        weight = torch.tensor(len(batch.keys), device=images.device)
        if num_ranks() > 1:
            return Loss(self._contrast_with_all(images, texts), weight)
        return Loss(self._contrast(images, texts) * weight, weight)

    def validate(self, batches: Iterable[PairBatch]) -> dict[str, float]:
        """`loss` per batch, and recall@1 and @5 among all pairs of the set, both directions.

        A rank's batch is contrasted with itself.

        Recall counts the text that belongs to the picture (or the picture to the text) among the
        k most similar; texts that are equal to the right one count as it.
        """
        losses, images, texts, all_ids = [], [], [], []
        for batch in batches:
            image, text = self.embed(batch)
            if not batch.keys:
                continue
            losses.append(self._contrast(image, text).item())
            images.append(image)
            texts.append(text)
            all_ids += [
                tuple(i for i in row if i != self.pad_id) for row in batch.text_ids.tolist()
            ]
        ranks = gather((losses, [t.cpu() for t in images], [t.cpu() for t in texts], all_ids))
        losses, images, texts, all_ids = (
            [item for part in parts for item in part] for parts in zip(*ranks, strict=True)
        )
        figures = {"loss": sum(losses) / len(losses)}
        return {**figures, **recall(torch.cat(images), torch.cat(texts), all_ids)}

    def idle(self) -> PairBatch:
        """A pair of an empty picture and an empty text, which counts as none."""
        image = empty_image(1, self.model.encoder.config, torch.device("cpu"))
        text_ids = torch.tensor([[self.model.text_tower.eos_id]])
        return PairBatch((), image, text_ids, num_tokens=0)

    def embed(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Unit-length image and text embeddings, each (B, E)."""
        embeddings: tuple[Tensor, Tensor] = self.forward(batch.images, batch.text_ids)
        return embeddings

    def _contrast(self, images: Tensor, texts: Tensor) -> Tensor:
        scale, bias = self._temperature()
        # Scaled similarities of up to 100 are too coarse in bf16.
        with torch.autocast(images.device.type, enabled=False):
            loss: Tensor = self.loss_function(images.float(), texts.float(), scale, bias)
        return loss

    def _contrast_with_all(self, images: Tensor, texts: Tensor) -> Tensor:
        """The part of this rank's pairs in the loss of all ranks' pairs, times their number."""
        scale, bias = self._temperature()
        with torch.autocast(images.device.type, enabled=False):
            images, texts = images.float(), texts.float()
            joined, before = gather_rows(torch.cat([images, texts], dim=1))
            all_images, all_texts = joined.chunk(2, dim=1)
            own = torch.arange(before, before + len(images), device=images.device)
            by_image = scale * images @ all_texts.T  # (B, all)
            if bias is not None:
                signs = -torch.ones_like(by_image)
                signs[own - before, own] = 1.0
                return -F.logsigmoid(signs * (by_image + bias)).sum()
            by_text = scale * texts @ all_images.T
            by_both = (F.cross_entropy(side, own, reduction="sum") for side in (by_image, by_text))
            return sum(by_both, start=by_image.new_zeros(())) / 2

    def _temperature(self) -> tuple[Tensor, Tensor | None]:
        head = self.model.head
        return head.log_scale.float().exp().clamp(max=MAX_SCALE), head.bias


def recall(images: Tensor, texts: Tensor, text_ids: list[tuple[int, ...]]) -> dict[str, float]:
    """Retrieval recall@1 and @5 between unit embeddings (n, E), image to text and back."""
    same: dict[tuple[int, ...], int] = {}
    label = torch.tensor([same.setdefault(ids, len(same)) for ids in text_ids])
    with torch.autocast(images.device.type, enabled=False):  # bf16 would make ties
        similarity = (images.float() @ texts.float().T).cpu()
    figures = {}
    for name, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        for k in (1, 5):
            best = scores.topk(min(k, len(label)), dim=1).indices  # (n, k)
            found = (label[best] == label.unsqueeze(1)).any(dim=1)
            figures[f"{name}_recall@{k}"] = found.float().mean().item()
    return figures


def _count_runs(mask: Tensor, right: Tensor) -> tuple[int, int]:
    """Count runs of True in mask (B, S), and those wholly right."""
    padded = F.pad(mask, (1, 0))
    opens = mask & ~padded[:, :-1]  # (B, S)
    run = opens.flatten().cumsum(0) - 1  # run index at every position of a run
    flat = mask.flatten()
    num_runs = int(opens.sum())
    wrong = torch.zeros(num_runs, device=mask.device)
    wrong.index_add_(0, run[flat], (~right.flatten()[flat]).float())
    return num_runs, int((wrong == 0).sum())
