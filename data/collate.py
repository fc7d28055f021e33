"""Encoded rows to batches.

Axes: `B` batch, `S` text length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.encode import ChatRows, PairRow
from vlm.inputs import ImageInputs, ModelInputs, stack_examples, stack_images


@dataclass(frozen=True)
class ChatBatch:
    """Rows of chats; `keys` name the samples they come from.

    loss_mask: (B, S) bool; True where the token is supervised.
    """

    keys: tuple[str, ...]
    inputs: ModelInputs
    loss_mask: Tensor

    @property
    def num_tokens(self) -> int:
        """Text tokens without padding."""
        return int(self.inputs.lengths.sum())

    def to(self, device: torch.device) -> "ChatBatch":
        """The same batch on `device`."""
        return ChatBatch(self.keys, self.inputs.to(device), self.loss_mask.to(device))


@dataclass(frozen=True)
class PairBatch:
    """Pictures and their texts.

    text_ids: (B, S) int64, padded on the right.
    """

    keys: tuple[str, ...]
    images: ImageInputs
    text_ids: Tensor
    num_tokens: int

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch on `device`."""
        return PairBatch(
            self.keys, self.images.to(device), self.text_ids.to(device), self.num_tokens
        )


def collate_chats(samples: Sequence[ChatRows], pad_id: int) -> ChatBatch:
    """Stack the rows of samples, padded on the right to the longest.

    The first token of a row has nothing to be predicted from, so it is never supervised.
    """
    rows = [example for sample in samples for example in sample.examples]
    mask = pad_sequence([row.loss_mask for row in rows], batch_first=True)
    mask[:, 0] = False
    return ChatBatch(
        keys=tuple(sample.key for sample in samples),
        inputs=stack_examples(rows, pad_id),
        loss_mask=mask,
    )


def collate_pairs(rows: Sequence[PairRow], pad_id: int) -> PairBatch:
    """Stack pictures and texts, texts padded on the right to the longest."""
    images = stack_images([[row.image] for row in rows])
    assert images is not None
    return PairBatch(
        keys=tuple(row.key for row in rows),
        images=images,
        text_ids=pad_sequence(
            [row.text_ids for row in rows], batch_first=True, padding_value=pad_id
        ),
        num_tokens=sum(len(row.text_ids) for row in rows),
    )
