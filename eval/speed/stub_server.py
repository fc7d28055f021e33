"""A server of its own process whose engine is a stub: `python -m eval.speed.stub_server`.

Its arguments are a `ServerConfig` in JSON and the seconds of a step. Tests send it signals,
`vlm bench serve` loads it.
"""

import sys

from encoders.config import VisionConfig
from eval.speed.stub_engine import StubEngine
from vlm.chat.processor import Processor
from vlm.server.config import ServerConfig
from vlm.server.run import serve
from vlm.server.service import Service

MAX_CONTEXT = 8192
VOCAB_SIZE = 300
WORDS = "Two red circles and a blue square on a table. "
VISION = VisionConfig(
    tile_size_px=64,
    patch_size_px=16,
    max_num_tiles=4,
    hidden_size=8,
    intermediate_size=8,
    num_heads=1,
    num_local_layers=1,
    num_global_layers=0,
    intermediate_layers=(),
)


def stub_service(config: ServerConfig, step_s: float) -> Service:
    """A service of a small vocabulary and tiles of 64 px that goes on talking."""
    processor = Processor.train([WORDS], VISION, VOCAB_SIZE)
    answer = processor.tokenizer.encode(WORDS)
    engine = StubEngine(answer, config.slots, step_s, processor.tokenizer.end_ids)
    return Service(processor, engine, MAX_CONTEXT, config, "stub")


def main(settings: str, step_s: str) -> None:
    """Serve with the settings of a `ServerConfig` in JSON; a step takes `step_s`."""
    serve(stub_service(ServerConfig.model_validate_json(settings), float(step_s)))


if __name__ == "__main__":
    main(*sys.argv[1:])
