"""Steps of fixed shapes write what the others write; on CUDA they are recorded."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from encoders.tiling import TiledImage
from vlm.chat.processor import Processor
from vlm.engine.engine import Engine, EngineConfig
from vlm.engine.graphs import FixedDecode
from vlm.engine.request import Request
from vlm.engine.sampling import SamplingConfig
from vlm.inputs import Example
from vlm.model import VisionLanguageModel

NUM_NEW = 10


@pytest.fixture
def prompts(processor: Processor, picture: Callable[..., Image.Image]) -> list[Example]:
    """Two, no, one and one larger image; of which the last needs more room than the others."""

    def prompt(text: str, *images: TiledImage) -> Example:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        return processor.encode([{"role": "user", "content": content}], images, True)

    small, other = (processor.tile(picture(seed)) for seed in range(2))
    return [
        prompt("Which is red?", small, other),
        prompt("How many?"),
        prompt("What colour is the large square?", small),
        prompt("Two?", processor.tile(picture(2, 32, 32))),
    ]


def make_engine(model: VisionLanguageModel, **config: bool) -> Engine:
    return Engine(model, (), (), EngineConfig(slots=2, max_tokens=256, **config))


def write(engine: Engine, prompts: list[Example]) -> list[list[int | None]]:
    numbers = [engine.submit(Request.of(p, SamplingConfig(), NUM_NEW)) for p in prompts]
    written: dict[int, list[int | None]] = {number: [] for number in numbers}
    while engine.num_active or engine.num_waiting:
        for event in engine.step():
            written[event.request_id].append(event.token)
    return list(written.values())


def test_fixed_shapes_write_the_same_tokens(
    open_model: VisionLanguageModel, prompts: list[Example]
) -> None:
    expected = write(make_engine(open_model), prompts)
    engine = make_engine(open_model)
    fixed = FixedDecode(open_model, engine._passes.cache, engine.config.slots)
    engine._decode_pass = fixed.decode
    for _ in range(2):  # the second time slots have other images than before
        assert write(engine, prompts) == expected
    assert write(engine, prompts[::-1]) == expected[::-1]
    assert len(set(map(tuple, expected))) == len(prompts)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_write_what_unrecorded_ones_do(
    open_model: VisionLanguageModel, prompts: list[Example], dtype: torch.dtype
) -> None:
    network = open_model.to("cuda", dtype)
    expected = write(make_engine(network, cuda_graphs=False), prompts)
    engine = make_engine(network)
    assert write(engine, prompts) == expected
    assert write(engine, prompts[::-1]) == expected[::-1]
