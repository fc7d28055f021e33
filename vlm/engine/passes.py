"""The network run over slots: chunks of prompts, single tokens.

Axes: `B` rows of a pass, `S` their new tokens, `V` vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.decoder.cache import ImageGroup, KeptImages, TextCache
from vlm.engine.image_cache import Layers
from vlm.engine.row_images import group_images, row_index
from vlm.engine.slots import Slot
from vlm.model import VisionLanguageModel


@dataclass(frozen=True)
class Chunk:
    """The next tokens of a slot's prompt.

    start: the position of the first; those before it are in the slot's cache.
    """

    slot: Slot
    start: int
    ids: list[int]

    @property
    def end(self) -> int:
        """The position behind the last."""
        return self.start + len(self.ids)


class Passes:
    """A network and the text cache of its slots."""

    def __init__(self, network: VisionLanguageModel, num_slots: int, max_tokens: int) -> None:
        weight = network.decoder.embed_tokens.weight
        self.network, self.device = network, weight.device
        self.cache = TextCache(
            network.decoder.config, num_slots, max_tokens, weight.device, weight.dtype
        )

    def forget(self, slot: Slot) -> None:
        """Clear a slot. What is no number would spoil later answers, even behind a mask."""
        slot.tokens = []
        for layer in self.cache.layers.values():
            layer[:, slot.index] = 0

    def prefill(self, chunks: Sequence[Chunk]) -> Tensor:
        """Run chunks of prompts together; return the logits (B, V) after each one's last token."""
        device = self.device
        input_ids = pad_sequence(
            [torch.tensor(chunk.ids) for chunk in chunks], batch_first=True
        ).to(device)  # (B, S)
        starts = torch.tensor([chunk.start for chunk in chunks], device=device)
        positions = starts.unsqueeze(1) + torch.arange(input_ids.shape[1], device=device)
        # Padding behind a long row's last chunk is written where nothing is read.
        positions = positions.clamp(max=self.cache.max_tokens)
        slots = [chunk.slot.index for chunk in chunks]
        lengths = [len(chunk.slot.running.prompt) for chunk in chunks]
        if not any(chunk.start for chunk in chunks):
            rows = self.cache.chosen(torch.tensor(slots, device=device), None)
        elif len(chunks) == 1:
            rows = self.cache.rows(slots[0], slots[0] + 1, chunks[0].end, at_end=True)
        else:
            num_tokens = max(chunk.end for chunk in chunks)
            rows = self.cache.chosen(torch.tensor(slots, device=device), num_tokens)
        hidden = self.network.decoder(
            input_ids,
            positions,
            _prompt_images(chunks, input_ids.shape[1], device),
            rows,
            torch.tensor(lengths, device=device),
        )
        last = torch.tensor([len(chunk.ids) - 1 for chunk in chunks], device=device)
        every = torch.arange(len(chunks), device=device)
        return self.network.decoder.logits(hidden[every, last])

    def decode(self, slots: Sequence[Slot]) -> Tensor:
        """Run the last token of answers; return the logits (B, V) of the next.

        Every slot between the first and the last of them is computed, and what free ones compute
        is not used.
        """
        first, end = slots[0].index, slots[-1].index + 1
        ids, positions = [0] * (end - first), [self.cache.max_tokens] * (end - first)
        for slot in slots:
            token = slot.running.next_token
            assert token is not None
            ids[slot.index - first] = token
            positions[slot.index - first] = len(slot.tokens)
        num_tokens = 1 + max(len(slot.tokens) for slot in slots)
        hidden = self.network.decoder(
            torch.tensor(ids, device=self.device).unsqueeze(1),
            torch.tensor(positions, device=self.device).unsqueeze(1),
            answer_images(slots, end - first, self.device),
            self.cache.rows(first, end, num_tokens, at_end=end - first == 1),
        )
        hidden = hidden[:, -1]
        if len(slots) < end - first:
            hidden = hidden[[slot.index - first for slot in slots]]
        return self.network.decoder.logits(hidden)


def _prompt_images(
    chunks: Sequence[Chunk], num_tokens: int, device: torch.device
) -> KeptImages | None:
    """What the tokens of chunks see, those that show the same images as a group."""
    rows = {
        row: (images, images.visible[chunk.start : chunk.end])
        for row, chunk in enumerate(chunks)
        if (images := chunk.slot.running.images) is not None
    }
    return group_images(rows, len(chunks), num_tokens, device)


def answer_images(slots: Sequence[Slot], num_rows: int, device: torch.device) -> KeptImages | None:
    """What answers see: all tokens of the images that their prompt's last token saw."""
    first = slots[0].index
    seeing: dict[int, tuple[tuple[str, ...], Layers]] = {}
    for slot in slots:
        images = slot.running.images
        if images is not None and images.last_layers is not None:
            seeing[slot.index - first] = images.last_key, images.last_layers
    if not seeing:
        return None
    ordered = sorted(seeing, key=lambda row: seeing[row][0])
    groups = []
    for _, members in groupby(ordered, key=lambda row: seeing[row][0]):
        rows = list(members)
        groups.append(ImageGroup(len(rows), seeing[rows[0]][1], None))
    return KeptImages(tuple(groups), row_index(ordered, num_rows, device), None)
