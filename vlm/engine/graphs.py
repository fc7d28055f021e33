"""Decoding with fixed shapes, so that CUDA runs a whole step as one graph.

A step of many small kernels is bound by launching them; a graph launches them at once. Its shapes
and addresses are fixed, so all slots are computed in every step, over a number of positions that
doubles, and what they see of images is copied into tensors of its own.

Axes: `B` slots, `L` image tokens of a slot, `H` key/value heads, `d` head width, `V` vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.decoder.cache import KeyValues, TextCache
from vlm.decoder.stack import ImageContext
from vlm.engine.slots import Slot
from vlm.model import VisionLanguageModel

LEAST_POSITIONS = 256
# The allocator and the libraries settle down within a few calls, which a graph must not record.
WARM_UP_STEPS = 3


class FixedDecode:
    """The step that gives every answer its next token; elsewhere than on CUDA without a graph."""

    def __init__(self, network: VisionLanguageModel, cache: TextCache, num_slots: int) -> None:
        weight = network.decoder.embed_tokens.weight
        self.network, self.cache, self.num_slots = network, cache, num_slots
        self.device, self.dtype = weight.device, weight.dtype
        self.input_ids = torch.zeros(num_slots, 1, dtype=torch.int64, device=self.device)
        self.positions = torch.full_like(self.input_ids, cache.max_tokens)
        self._images: ImageContext | None = None  # of the longest images so far
        self._shown: list[int | None] = [None] * num_slots  # the request whose images a slot has
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def decode(self, slots: Sequence[Slot]) -> Tensor:
        """Run the last token of answers; return the logits (B, V) of the next."""
        self._show_images(slots)
        ids, positions = [0] * self.num_slots, [self.cache.max_tokens] * self.num_slots
        for slot in slots:
            token = slot.running.next_token
            assert token is not None
            ids[slot.index], positions[slot.index] = token, len(slot.tokens)
        self.input_ids.copy_(torch.tensor(ids).unsqueeze(1))
        self.positions.copy_(torch.tensor(positions).unsqueeze(1))
        num_tokens = LEAST_POSITIONS
        while num_tokens <= max(len(slot.tokens) for slot in slots):
            num_tokens *= 2
        logits = self._run(min(num_tokens, self.cache.max_tokens))
        return logits[[slot.index for slot in slots]]

    def _run(self, num_tokens: int) -> Tensor:
        if self.device.type != "cuda":
            return self._step(num_tokens)
        if num_tokens not in self._graphs:
            self._graphs[num_tokens] = self._capture(num_tokens)
        graph, logits = self._graphs[num_tokens]
        graph.replay()
        return logits

    def _capture(self, num_tokens: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record a step. It writes what the replay writes again, so nothing is lost."""
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self._step(num_tokens)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step(num_tokens)
        return graph, logits

    def _step(self, num_tokens: int) -> Tensor:
        rows = self.cache.rows(0, self.num_slots, num_tokens)
        hidden = self.network.decoder(self.input_ids, self.positions, self._images, rows)
        return self.network.decoder.logits(hidden[:, -1])

    def _show_images(self, slots: Sequence[Slot]) -> None:
        """Bring each slot's images to where the step reads them."""
        for slot in slots:
            if self._shown[slot.index] == slot.running.request_id:
                continue
            self._shown[slot.index] = slot.running.request_id
            images = slot.running.images
            layers = None if images is None else images.last_layers
            if layers is None:
                if self._images is not None:
                    self._images.mask[slot.index] = False
                continue
            num_tokens = next(iter(layers.values())).keys.shape[2]
            context = self._room_for(num_tokens)
            assert isinstance(context.tokens, dict)
            for layer, kept in context.tokens.items():
                kept.keys[slot.index, :, :num_tokens] = layers[layer].keys[0]
                kept.values[slot.index, :, :num_tokens] = layers[layer].values[0]
            context.mask[slot.index, 0] = (
                torch.arange(context.mask.shape[2], device=self.device) < num_tokens
            )

    def _room_for(self, num_tokens: int) -> ImageContext:
        """Tensors for so many image tokens a slot; larger ones are recorded anew."""
        held = self._images
        if held is not None and held.mask.shape[2] >= num_tokens:
            return held
        self._graphs.clear()
        config = self.network.decoder.config
        shape = self.num_slots, config.num_kv_heads, num_tokens, config.head_size
        layers = {
            layer: KeyValues(
                torch.zeros(shape, dtype=self.dtype, device=self.device),
                torch.zeros(shape, dtype=self.dtype, device=self.device),
            )
            for layer in config.cross_attention_layers
        }
        mask = torch.zeros(self.num_slots, 1, num_tokens, dtype=torch.bool, device=self.device)
        if held is not None:
            assert isinstance(held.tokens, dict)
            before = held.mask.shape[2]
            mask[:, :, :before] = held.mask
            for layer, kept in held.tokens.items():
                layers[layer].keys[:, :, :before] = kept.keys
                layers[layer].values[:, :, :before] = kept.values
        self._images = ImageContext(layers, mask)
        return self._images
