"""What each source's part of the samples must be, from the weights of a configuration.

Weights by tokens need each source's mean length. It is counted once for each source and tokenizer
and kept in the user's cache folder.
"""

import json
from collections.abc import Sequence
from fractions import Fraction

from data.cache import cache_file, keep
from data.config import DataConfig
from data.shards import ShardSet
from data.stats import Ruler
from vlm.chat.processor import Processor


def sample_shares(
    config: DataConfig, sources: Sequence[ShardSet], processor: Processor
) -> list[Fraction] | None:
    """The sources' shares of the samples, of any sum; None where they are joined.

    Raises:
        UserError: a source whose tokens are to be counted cannot be read.
    """
    weights = [Fraction(source.weight) for source in config.sources if source.weight is not None]
    if not weights:
        return None
    if config.mix_by == "samples":
        return weights
    tokens = [count_tokens(source, processor) for source in sources]
    return [
        weight * sum(source.num_samples) / total
        for weight, source, total in zip(weights, sources, tokens, strict=True)
    ]


def count_tokens(source: ShardSet, processor: Processor) -> int:
    """The text tokens of all chats of a source, the template's among them; counted once.

    Raises:
        UserError: the source cannot be read, or the template refuses a chat.
    """
    cached = cache_file("tokens", f"{source.fingerprint} {processor.fingerprint}")
    if cached.is_file():
        return int(json.loads(cached.read_text("utf-8")))
    ruler = Ruler(processor.vision.tile_size_px, processor.vision.max_num_tiles, processor)
    total = sum(map(ruler.length, source.read_all()))
    keep(cached, json.dumps(total))
    return total
