"""Encoded rows to batches.

Axes: `B` batch, `S` text length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.batches import pack_sequences
from data.encode import ChatRows, PairRow
from vlm.inputs import (
    Example,
    ImageInputs,
    ModelInputs,
    stack_documents,
    stack_examples,
    stack_images,
)


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

    @property
    def padded_tokens(self) -> int:
        """Text tokens, padding counted."""
        return self.inputs.input_ids.numel()

    @property
    def num_pictures(self) -> int:
        """Distinct pictures."""
        return 0 if self.inputs.images is None else len(self.inputs.images.num_tiles)

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

    @property
    def padded_tokens(self) -> int:
        """Text tokens, padding counted."""
        return self.text_ids.numel()

    @property
    def num_pictures(self) -> int:
        """Distinct pictures."""
        return len(self.images.num_tiles)

    def to(self, device: torch.device) -> "PairBatch":
        """The same batch on `device`."""
        return PairBatch(
            self.keys, self.images.to(device), self.text_ids.to(device), self.num_tokens
        )


def collate_chats(
    samples: Sequence[ChatRows], pad_id: int, sequence_tokens: int | None = None
) -> ChatBatch:
    """Stack the rows of samples, padded on the right to the longest.

    The first token of a row has nothing to be predicted from, so it is never supervised.

    Args:
        sequence_tokens: pack the rows into sequences of at most so many tokens, which are the rows
            of the batch then; None leaves them apart.
    """
    examples = [_without_first(example) for sample in samples for example in sample.examples]
    keys = tuple(sample.key for sample in samples)
    if sequence_tokens is None:
        mask = pad_sequence([example.loss_mask for example in examples], batch_first=True)
        return ChatBatch(keys, stack_examples(examples, pad_id), mask)
    lengths = [len(example.input_ids) for example in examples]
    rows = [[examples[i] for i in places] for places in pack_sequences(lengths, sequence_tokens)]
    masks = [torch.cat([example.loss_mask for example in row]) for row in rows]
    return ChatBatch(keys, stack_documents(rows, pad_id), pad_sequence(masks, batch_first=True))


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


def _without_first(example: Example) -> Example:
    mask = example.loss_mask.clone()
    mask[:1] = False
    return replace(example, loss_mask=mask)
