"""A training step beside transformers' MllamaForConditionalGeneration: forward, backward, AdamW.

Both hold the same weights and learn from the same rows: pictures of different tile counts, texts
of different lengths, half of whose tokens are supervised. Two more rows have no picture for us; in
transformers they would change with their batch-mates (huggingface/transformers#39379), so there
they show a picture of one tile. Our rows are packed, as `data.packing` does it; transformers pads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, MllamaConfig, MllamaForConditionalGeneration

from data.collate import ChatBatch, collate_chats
from data.encode import ChatRows
from data.prefetch import map_tensors
from encoders.tiling import TiledImage, supported_canvases
from eval.speed.encode import MASKED_PADDING, MAX_NUM_TILES, PaddingTiles, masked_padding
from eval.speed.encode import SIZES as VISION_SIZES
from eval.speed.harness import Row, rate_row, time_in_turn
from training.objectives import NextToken
from training.rehearsal import LiveMemory
from vlm.config import VLMConfig
from vlm.inputs import Example, stack_examples
from vlm.model import VisionLanguageModel
from vlm.weights.mllama import config_to_mllama
from vlm.weights.mllama_names import our_name

# Decoders by name, beside the encoders of `vlm bench encode`. `small` is the 11B's in miniature:
# four layers to a cross-attention layer, and a vocabulary that is large for its width.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 5,
        "num_heads": 4,
        "num_kv_heads": 2,
    },
    "small": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1792,
        "num_layers": 10,
        "num_heads": 8,
        "num_kv_heads": 2,
    },
    "11b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_layers": 40,
        "num_heads": 32,
        "num_kv_heads": 8,
    },
}
# Tokens of the rows with pictures, over and over, and of the two without.
TEXT_TOKENS = (64, 192, 48, 128)
PLAIN_TEXT_TOKENS = (256, 32)
PAD_ID = 0
LEARNING_RATE = 1e-4
# The mean losses may differ by this share: the roundings of a forward pass, of 2^-24 and 2^-8.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}


class StepComparison:
    """Both models with the same weights, their optimizers, and a batch as each of them wants it."""

    def __init__(
        self,
        size: str,
        num_tiles: Sequence[int],
        padding_tiles: PaddingTiles,
        device: torch.device,
        dtype: str,
    ) -> None:
        self.device, self.dtype, self.padding_tiles = device, dtype, padding_tiles
        config = step_config(size, padding_tiles)
        torch.manual_seed(0)
        self.image_id = config.decoder.vocab_size
        ours = VisionLanguageModel(config, self.image_id)
        for name, parameter in ours.named_parameters():
            if "gate" in name.rpartition(".")[2]:  # a closed gate would hide what lies behind it
                nn.init.constant_(parameter, 0.5)
        self.ours = ours.to(device, getattr(torch, dtype)).train()
        self.peer: Any = transformers_twin(self.ours).train()  # not all of it is annotated
        self.objective = NextToken(self.ours)
        self.optimizers = [
            torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
            for model in (self.ours, self.peer)
        ]
        shown = [_row(config, TEXT_TOKENS[i % 4], num) for i, num in enumerate(num_tiles)]
        plain = [_row(config, length, 0) for length in PLAIN_TEXT_TOKENS]
        pictured = [_row(config, length, 1) for length in PLAIN_TEXT_TOKENS]
        self.mixed = _to(_packed([*shown, *plain]), device)
        self.pictures_only = _to(_packed([*shown, *pictured]), device)
        self.peer_inputs = _to(peer_inputs(self.ours, [*shown, *pictured]), device)
        self.num_samples = len(num_tiles) + len(PLAIN_TEXT_TOKENS)

    def check(self) -> str:
        """Say in one line how closely the losses of the batch of pictures agree.

        transformers' encoder sees tiles and tokens of padding; `drop` has none, and is compared
        with transformers after masking them there. That masked model is not what is timed.

        Raises:
            RuntimeError: the losses differ.
        """
        masked = self.padding_tiles == "drop"
        if masked:
            AttentionInterface.register(MASKED_PADDING, masked_padding)
            self.peer.model.vision_model.set_attn_implementation(MASKED_PADDING)
        with torch.no_grad():
            ours = self.objective.loss(self.pictures_only)
            theirs = self.peer(**self.peer_inputs).loss.item()
        self.peer.model.vision_model.set_attn_implementation("sdpa")
        loss = (ours.total / ours.weight).item()
        peer = "transformers with its padding masked" if masked else "transformers"
        line = f"{self.padding_tiles}: the loss is {loss:.6f}, that of {peer} {theirs:.6f}"
        if not abs(loss - theirs) <= TOLERANCES[self.dtype] * theirs:
            raise RuntimeError(f"the losses differ. {line}, allowed: {TOLERANCES[self.dtype]:.0e}")
        return f"{line} (allowed: {TOLERANCES[self.dtype]:.0e} of it)"

    def step_ours(self) -> None:
        """One step of ours on the mixed batch."""
        loss = self.objective.loss(self.mixed)
        (loss.total / loss.weight).backward()  # type: ignore[no-untyped-call]
        self.optimizers[0].step()
        self.optimizers[0].zero_grad()

    def step_peer(self) -> None:
        """One step of transformers on the batch of pictures."""
        self.peer(**self.peer_inputs).loss.backward()
        self.optimizers[1].step()
        self.optimizers[1].zero_grad()

    def peak_bytes(self) -> tuple[int, int]:
        """The most that a step of each has alive at once; its weights and states included."""
        found = []
        sides = ((self.ours, self.step_ours), (self.peer, self.step_peer))
        for optimizer, (model, step) in zip(self.optimizers, sides, strict=True):
            states = [t for state in optimizer.state.values() for t in state.values()]
            held = [*model.parameters(), *model.buffers(), *states]
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
                before = torch.cuda.memory_allocated(self.device)
                step()
                grown = torch.cuda.max_memory_allocated(self.device) - before
                found.append(grown + sum(t.numel() * t.element_size() for t in held))
                continue
            live = LiveMemory(self.device)
            for tensor in held:
                live.count(tensor)
            with live:
                step()
            found.append(live.peak)
        return found[0], found[1]


def compare_steps(
    size: str,
    num_tiles: Sequence[int],
    padding_tiles: PaddingTiles,
    device: torch.device,
    dtype: str,
    repeats: int,
) -> tuple[list[Row], str]:
    """Measure a step of both.

    Returns:
        the rows, and a line that says how closely the losses agree.
    """
    comparison = StepComparison(size, num_tiles, padding_tiles, device, dtype)
    agreement = comparison.check()
    seconds = time_in_turn(comparison.step_ours, comparison.step_peer, device, repeats)
    ours, peer = comparison.peak_bytes()
    mix = ",".join(map(str, num_tiles))
    setting = f"{size} {mix} and text, {padding_tiles} {dtype} {device.type}"
    rate = rate_row("train", setting, comparison.num_samples, *seconds, "samples/s")
    memory = Row(
        name="train, peak memory",
        setting=setting,
        ours=ours / 1e6,
        peer=peer / 1e6,
        ratio=peer / ours,
        unit="MB",
    )
    return [rate, memory], agreement


def step_config(size: str, padding_tiles: PaddingTiles) -> VLMConfig:
    """The model of a size: an encoder of `vlm bench encode`, a linear projector, a decoder."""
    vision = {
        **VISION_SIZES[size],
        "max_num_tiles": MAX_NUM_TILES,
        "local_attention": "image",
        "padding_tiles": padding_tiles,
    }
    decoder = {**SIZES[size], "num_extra_embeddings": 8, "max_positions": 8192}
    return VLMConfig.model_validate(
        {"vision": vision, "projector": {"kind": "linear"}, "decoder": decoder}
    )


def transformers_twin(ours: VisionLanguageModel) -> nn.Module:
    """Return transformers' model of the same shape with copies of the same weights."""
    vision = ours.config.vision.model_copy(update={"padding_tiles": "attend"})
    written = config_to_mllama(
        ours.config.model_copy(update={"vision": vision}),
        image_token_id=ours.image_token_id,
        bos_id=1,
        eos_ids=[2],
        pad_id=PAD_ID,
        dtype="float32",
    )
    parameter = next(ours.parameters())
    with parameter.device:
        peer: Any = MllamaForConditionalGeneration(MllamaConfig.from_dict(written))
    peer.to(parameter.dtype).set_attn_implementation("sdpa")
    state, copies = ours.state_dict(), {}
    for name in peer.state_dict():
        known = our_name(name)
        assert known is not None, name
        copies[name] = state[known]
    peer.load_state_dict(copies)
    twin: nn.Module = peer
    return twin


def peer_inputs(model: VisionLanguageModel, rows: Sequence[Example]) -> dict[str, Any]:
    """Rows that start with their only picture, as a batch for transformers' model."""
    inputs = stack_examples(rows, PAD_ID)
    ids, images = inputs.input_ids, inputs.images
    supervised = nn.utils.rnn.pad_sequence([row.loss_mask for row in rows], batch_first=True)
    assert images is not None and images.pixels is not None
    places = torch.arange(ids.shape[1])
    tile_mask = torch.arange(MAX_NUM_TILES) < images.num_tiles.unsqueeze(1)  # (B, 4)
    parameter = next(model.parameters())
    pixels = model.encoder._normalise(images.pixels.to(parameter.device))
    padded = pixels.new_zeros(*tile_mask.shape, *pixels.shape[1:])
    padded[tile_mask.to(pixels.device)] = pixels
    return {
        "input_ids": ids,
        "attention_mask": (places < inputs.lengths.unsqueeze(1)).long(),
        "pixel_values": padded.unsqueeze(1),  # (B, 1, 4, 3, px, px)
        "aspect_ratio_ids": images.aspect_ratio_ids.unsqueeze(1),
        "aspect_ratio_mask": tile_mask.long().unsqueeze(1),
        "cross_attention_mask": tile_mask.long()[:, None, None].expand(-1, ids.shape[1], -1, -1),
        "labels": torch.where(supervised, ids, -100),
        "use_cache": False,
    }


def _row(config: VLMConfig, length: int, num_tiles: int) -> Example:
    """Random words, the second half supervised, behind a picture of `num_tiles` tiles if any."""
    ids = torch.randint(3, config.decoder.vocab_size, (length,))
    images: tuple[TiledImage, ...] = ()
    if num_tiles:
        px = config.vision.tile_size_px
        canvas_id = supported_canvases(MAX_NUM_TILES).index((1, num_tiles)) + 1
        tiles = torch.randint(0, 256, (num_tiles, 3, px, px), dtype=torch.uint8)
        images = (TiledImage(tiles, canvas_id, (1, num_tiles)),)
        ids[0] = config.decoder.vocab_size  # <|image|>, the first row behind the vocabulary
    return Example(ids, torch.arange(length) >= length // 2, images)


def _packed(rows: Sequence[Example]) -> ChatBatch:
    """Rows as documents of sequences as long as the longest of them."""
    samples = [ChatRows(str(index), (row,)) for index, row in enumerate(rows)]
    return collate_chats(samples, PAD_ID, max(len(row.input_ids) for row in rows))


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _to(item, device) for name, item in value.items()}
    return map_tensors(value, lambda tensor: tensor.to(device))
