"""Decoding against transformers' Mllama: tokens a second, and the time to the first token.

Both hold the same weights and answer the same prompts: a picture of one tile, then words, greedily.
transformers runs through `generate`, which is how it is used; we through the engine.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

from encoders.tiling import TiledImage
from eval.speed.encode import SIZES as ENCODERS
from eval.speed.harness import Row, finish_queue, rate_row, take_turns, time_row
from vlm.config import PACKAGE_ROOT, VLMConfig, load_config
from vlm.engine.engine import Engine, EngineConfig
from vlm.engine.image_cache import ImageCache
from vlm.engine.request import Request
from vlm.engine.sampling import SamplingConfig
from vlm.inputs import Example
from vlm.model import VisionLanguageModel
from vlm.weights.mllama import config_to_mllama
from vlm.weights.mllama_names import our_name

# Padding tiles are attended to, as transformers does, so that both compute the same function.
LIKE_LLAMA = {"max_num_tiles": 4, "local_attention": "image", "padding_tiles": "attend"}
# Shapes by name. `30m` has half the 11B's layers and its tiles' share of image tokens in small:
# 257 a tile. `tiny` is for tests.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision": {**ENCODERS["tiny"], **LIKE_LLAMA},
        "decoder": {
            "vocab_size": 128,
            "num_extra_embeddings": 8,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_layers": 5,
            "num_heads": 4,
            "num_kv_heads": 2,
            "max_positions": 512,
        },
        "projector": {"kind": "linear"},
    },
    "30m": {
        "vision": {
            "tile_size_px": 224,
            "patch_size_px": 14,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_heads": 2,
            "num_local_layers": 4,
            "num_global_layers": 1,
            "intermediate_layers": (1, 2, 3),
            **LIKE_LLAMA,
        },
        "decoder": {
            "vocab_size": 8192,
            "num_extra_embeddings": 8,
            "hidden_size": 320,
            "intermediate_size": 896,
            "num_layers": 20,
            "num_heads": 10,
            "num_kv_heads": 5,
            "max_positions": 4096,
        },
        "projector": {"kind": "linear"},
    },
}
PRESETS = {"11b": "llama3_2_11b.yaml"}
LIKE_INSTRUCT = ("vision.tile_size_px=560", "projector.kind=linear")


@dataclass(frozen=True)
class Load:
    """So many prompts at the same time, the tokens of each, and those of each answer."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int


def read_size(size: str) -> VLMConfig:
    """The configuration of a size."""
    if size in PRESETS:
        path = PACKAGE_ROOT / "configs" / "model" / PRESETS[size]
        like_llama = [f"vision.{name}={value}" for name, value in LIKE_LLAMA.items()]
        return load_config(VLMConfig, path, [*like_llama, *LIKE_INSTRUCT])
    return VLMConfig.model_validate(SIZES[size])


class Comparison:
    """Both models with the same weights, and prompts as each of them wants them."""

    def __init__(self, size: str, load: Load, device: torch.device, dtype: str) -> None:
        self.load, self.device, self.dtype = load, device, dtype
        self.config = read_size(size)
        self.vocab_size = self.config.decoder.vocab_size
        torch.manual_seed(0)
        with device:
            self.ours = VisionLanguageModel(self.config, self.vocab_size)
        for name, parameter in self.ours.named_parameters():
            if "gate" in name.rpartition(".")[2]:  # a closed gate would hide what lies behind it
                nn.init.constant_(parameter, 0.5)
        self.ours.to(getattr(torch, dtype)).requires_grad_(False).eval()
        self.peer: Any = transformers_twin(self.ours, dtype)
        limit = load.prompt_tokens + load.new_tokens
        # Nothing else waits, so that all prompts may be run in one piece, as on the other side.
        chunk = load.batch_size * load.prompt_tokens
        self.engine = Engine(
            self.ours,
            (),
            (),
            EngineConfig(
                slots=load.batch_size, max_tokens=limit, prefill_chunk_tokens=max(chunk, 1)
            ),
        )
        self.images = self._draw_images()
        self.peer_images = self._peer_images()

    def draw_prompts(self) -> Tensor:
        """(B, S) int64: `<|image|>`, then words that no earlier prompt had."""
        shape = self.load.batch_size, self.load.prompt_tokens
        input_ids = torch.randint(0, self.vocab_size, shape)
        input_ids[:, 0] = self.vocab_size
        return input_ids

    def run_ours(self, input_ids: Tensor, num_new: int, seen: bool) -> tuple[Tensor, list[float]]:
        """Return (B, num_new) tokens, and when each step's were there, from the start in seconds.

        Args:
            seen: whether the keys and values of the pictures may have been kept.
        """
        if not seen:
            self.engine.images = ImageCache(self.engine.images.max_bytes)
        finish_queue(self.device)
        start = time.perf_counter()
        numbers = [
            self.engine.submit(
                Request.of(Example(row, row > 0, (image,)), SamplingConfig(), num_new)
            )
            for row, image in zip(input_ids, self.images, strict=True)
        ]
        written: dict[int, list[int]] = {number: [] for number in numbers}
        seconds: list[float] = []
        while self.engine.num_active or self.engine.num_waiting:
            for event in self.engine.step():
                if event.token is None:
                    raise RuntimeError(f"our side failed: {event.error}")
                written[event.request_id].append(event.token)
            seconds.append(time.perf_counter() - start)
        return torch.tensor(list(written.values())), seconds

    def run_peer(self, input_ids: Tensor, num_new: int) -> tuple[Tensor, list[float]]:
        """The same of the peer, which keeps no pictures."""
        clock = _Clock()
        num_rows, num_tokens = input_ids.shape
        first_tile = torch.tensor([1, 0, 0, 0], device=self.device)
        inputs = input_ids.to(self.device)
        finish_queue(self.device)
        start = time.perf_counter()
        written = self.peer.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            cross_attention_mask=first_tile.expand(num_rows, num_tokens, 1, 4),
            **self.peer_images,
            max_new_tokens=num_new,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return written[:, num_tokens:].cpu(), [moment - start for moment in clock.moments]

    def check(self) -> str:
        """Say in one line whether both write the same.

        Raises:
            RuntimeError: they do not, in float32. In other dtypes the roundings decide near ties.
        """
        prompts = self.draw_prompts()
        ours, _ = self.run_ours(prompts, self.load.new_tokens, seen=False)
        theirs, _ = self.run_peer(prompts, self.load.new_tokens)
        same = int((ours == theirs).cumprod(dim=1).sum())
        line = (
            f"batch {self.load.batch_size}: {same} of {ours.numel()} greedy tokens equal "
            "transformers', up to the first difference of each answer"
        )
        if self.dtype == "float32" and same < ours.numel():
            raise RuntimeError(f"the answers differ. {line}")
        return line

    def _draw_images(self) -> list[TiledImage]:
        px = self.config.vision.tile_size_px
        return [
            TiledImage(
                # Noise alone looks alike; so each picture is brighter than the one before.
                torch.randint(0, 256 * (row + 1) // self.load.batch_size, (1, 3, px, px)).byte(),
                aspect_ratio_id=1,
                canvas=(1, 1),
            )
            for row in range(self.load.batch_size)
        ]

    def _peer_images(self) -> dict[str, Tensor]:
        vision, num_rows = self.config.vision, self.load.batch_size
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (vision.image_mean, vision.image_std))
        tiles = torch.stack([image.tiles for image in self.images])  # (B, 1, 3, px, px)
        pixels = torch.zeros(num_rows, 1, 4, *tiles.shape[2:])
        pixels[:, 0, :1] = (tiles.float() / 255 - mean) / std
        mask = torch.zeros(num_rows, 1, 4, dtype=torch.int64)
        mask[:, :, 0] = 1
        return {
            "pixel_values": pixels.to(self.device, getattr(torch, self.dtype)),
            "aspect_ratio_ids": torch.ones(num_rows, 1, dtype=torch.int64, device=self.device),
            "aspect_ratio_mask": mask.to(self.device),
        }


def compare_with_transformers(
    size: str,
    batch_sizes: Sequence[int],
    prompt_tokens: int,
    new_tokens: int,
    device: torch.device,
    dtype: str,
    repeats: int,
) -> tuple[list[Row], list[str]]:
    """Measure both models.

    Returns:
        rows, and for each batch size a line that says how far the answers agree.
    """
    rows, agreements = [], []
    for batch_size in batch_sizes:
        load = Load(batch_size, prompt_tokens, new_tokens)
        comparison = Comparison(size, load, device, dtype)
        agreements.append(comparison.check())
        rows += _measure(comparison, f"{size} batch {batch_size} {dtype} {device.type}", repeats)
    return rows, agreements


def transformers_twin(ours: VisionLanguageModel, dtype: str) -> nn.Module:
    """Return transformers' model of the same shape, which holds copies of the same weights."""
    config = config_to_mllama(
        ours.config,
        image_token_id=ours.image_token_id,
        bos_id=0,
        eos_ids=[1],
        pad_id=2,
        dtype=dtype,
    )
    weight = ours.decoder.embed_tokens.weight
    default = torch.get_default_dtype()
    torch.set_default_dtype(weight.dtype)  # casting the module would cast its rotary table too
    try:
        with weight.device:
            peer: Any = MllamaForConditionalGeneration(MllamaConfig.from_dict(config))
    finally:
        torch.set_default_dtype(default)
    state = ours.state_dict()
    peer.load_state_dict({name: state[str(our_name(name))] for name in peer.state_dict()})
    peer.set_attn_implementation("sdpa")
    peer.generation_config.eos_token_id = None  # an answer has as many tokens as are asked for
    twin: nn.Module = peer.requires_grad_(False).eval()
    return twin


class _Clock(StoppingCriteria):
    """Notes when each step's tokens were there; never stops."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        finish_queue(input_ids.device)
        self.moments.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _measure(comparison: Comparison, setting: str, repeats: int) -> list[Row]:
    load = comparison.load

    def ours_first(seen: bool) -> float:
        return comparison.run_ours(comparison.draw_prompts(), 1, seen)[1][0]

    def peer_first() -> float:
        return comparison.run_peer(comparison.draw_prompts(), 1)[1][0]

    def after_first(seconds: list[float]) -> float:
        return seconds[-1] - seconds[0]

    with torch.inference_mode():
        new = take_turns(lambda: ours_first(False), peer_first, repeats)
        seen = take_turns(lambda: ours_first(True), peer_first, repeats)
        decode = take_turns(
            lambda: after_first(
                comparison.run_ours(comparison.draw_prompts(), load.new_tokens, True)[1]
            ),
            lambda: after_first(comparison.run_peer(comparison.draw_prompts(), load.new_tokens)[1]),
            repeats,
        )
    count = load.batch_size * (load.new_tokens - 1)
    return [
        rate_row("decode", setting, count, *decode, "tokens/s"),
        time_row("first token, new picture", setting, *new),
        time_row("first token, seen picture", setting, *seen),
    ]
