"""A loaded model as a service."""

from vlm.api import Model
from vlm.engine.engine import EngineConfig
from vlm.errors import UserError
from vlm.server.config import ServerConfig
from vlm.server.service import Service

DEFAULT_CONTEXT = 8192


def service_of(model: Model, config: ServerConfig) -> Service:
    """Return the service of a model, with an engine of its own.

    Raises:
        UserError: the model's chat template cannot be used, or a setting does not suit the model.
    """
    try:  # a folder's template is foreign code: better refused here than in every answer
        model.processor.encode([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    except UserError as error:
        raise UserError(f"{model.folder} cannot be served: {error}") from error
    limit = model.network.config.decoder.max_positions
    max_context = config.max_context or min(limit, DEFAULT_CONTEXT)
    if max_context > limit:
        raise UserError(f"max_context is {max_context}; the model has {limit} positions")
    engine = model.answering.engine(
        EngineConfig(
            slots=config.slots, max_tokens=max_context, image_cache_mb=config.image_cache_mb
        )
    )
    return Service(model.processor, engine, max_context, config, model.folder.resolve().name)
