"""Steps of single tokens give what the decoder gives, whatever it is made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from encoders.tiling import TiledImage
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.decoder.config import DecoderConfig
from vlm.engine.engine import Engine, EngineConfig
from vlm.engine.request import Event, Request
from vlm.engine.sampling import SamplingConfig
from vlm.engine.single_tokens import SingleTokens, can_run, packed_bytes
from vlm.inputs import Example
from vlm.model import VisionLanguageModel

NUM_NEW = 10
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_embeddings": True},
    "qwen2": {"attention_bias": "qkv", "num_kv_heads": 4},
    "qwen3": {"qk_norm": True, "attention_bias": "qkvo", "head_size": 16, "num_kv_heads": 1},
    "dynamic": {"rope_scaling": {"kind": "dynamic", "factor": 4, "original_max_positions": 16}},
    "yarn": {"rope_scaling": {"kind": "yarn", "factor": 4, "original_max_positions": 64}},
}


@pytest.fixture
def prompts(processor: Processor, picture: Callable[..., Image.Image]) -> list[Example]:
    """Two, no, one, the same and a larger image."""

    def prompt(text: str, *images: TiledImage) -> Example:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        return processor.encode([{"role": "user", "content": content}], images, True)

    small, other = (processor.tile(picture(seed)) for seed in range(2))
    return [
        prompt("Which is red?", small, other),
        prompt("How many?"),
        prompt("What colour is the large square?", small),
        prompt("Is there a circle?", small),
        prompt("Two?", processor.tile(picture(2, 32, 32))),
    ]


def make_model(
    config: VLMConfig, processor: Processor, decoder: dict[str, Any]
) -> VisionLanguageModel:
    changed = DecoderConfig.model_validate({**config.decoder.model_dump(), **decoder})
    torch.manual_seed(0)
    model = VisionLanguageModel(
        config.model_copy(update={"decoder": changed}), processor.tokenizer.image_id
    )
    for name, parameter in model.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            torch.nn.init.constant_(parameter, 0.5)
        elif name.endswith((".bias", "norm.weight")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.requires_grad_(False).eval()


def write(
    model: VisionLanguageModel, prompts: list[Example], slots: int, way: str
) -> list[list[Event]]:
    config = EngineConfig(
        slots=slots, max_tokens=96, packed_weights_mb=1 if way == "packed" else None
    )
    engine = Engine(model, (), (), config)
    assert isinstance(engine._decode_pass.__self__, SingleTokens)  # type: ignore[attr-defined]
    if way == "plain":
        engine._decode_pass = engine._passes.decode
    sampling = SamplingConfig(logprobs=True, top_logprobs=5)
    told: dict[int, list[Event]] = {
        # Of unequal lengths, so that free slots lie between busy ones.
        engine.submit(Request.of(prompt, sampling, NUM_NEW - 2 * number % 7)): []
        for number, prompt in enumerate(prompts)
    }
    while engine.num_active or engine.num_waiting:
        for event in engine.step():
            told[event.request_id].append(event)
    return list(told.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("slots", "way"), [(1, "unpacked"), (4, "unpacked"), (4, "packed")])
def test_a_step_gives_what_the_decoder_gives(
    tiny_config: VLMConfig,
    processor: Processor,
    prompts: list[Example],
    kind: str,
    slots: int,
    way: str,
) -> None:
    model = make_model(tiny_config, processor, KINDS[kind])
    plain, stepped = write(model, prompts, slots, "plain"), write(model, prompts, slots, way)
    for expected, events in zip(plain, stepped, strict=True):
        assert [event.token for event in events] == [event.token for event in expected]
        for event, other in zip(events, expected, strict=True):
            # Other kernels add in another order: float32 rounding over nine layers.
            likely = [logprob for _, logprob in event.top_logprobs]
            assert likely == pytest.approx([logprob for _, logprob in other.top_logprobs], abs=5e-5)


def test_weights_are_packed_if_there_is_room_and_more_than_two_slots(
    open_model: VisionLanguageModel,
) -> None:
    def packed(model: VisionLanguageModel, slots: int, mb: int | None) -> bool:
        config = EngineConfig(slots=slots, max_tokens=96, packed_weights_mb=mb)
        step = Engine(model, (), (), config)._decode_pass.__self__  # type: ignore[attr-defined]
        assert isinstance(step, SingleTokens)
        return step._output.packed is not None

    assert packed(open_model, 3, 1) and not packed(open_model, 2, 1)
    assert not packed(open_model, 3, None)
    open_model.decoder.lm_head = torch.nn.Linear(32, 10_000, bias=False).requires_grad_(False)
    assert packed_bytes(open_model.decoder) > 2**20
    assert not packed(open_model, 3, 1)


def test_other_dtypes_and_layers_are_left_to_the_decoder(open_model: VisionLanguageModel) -> None:
    class Adapted(torch.nn.Linear):
        """A layer that computes more than its weight says."""

    assert can_run(open_model.decoder)
    mlp = open_model.decoder.layers[0].mlp
    plain, mlp.up_proj = mlp.up_proj, Adapted(32, 48)
    assert not can_run(open_model.decoder)
    mlp.up_proj = plain
    assert can_run(open_model.decoder)
    assert not can_run(open_model.decoder.to(torch.bfloat16))
