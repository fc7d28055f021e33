"""A loaded model as a service."""

from vlm.api import Model
from vlm.engine.engine import EngineConfig
from vlm.errors import UserError
from vlm.server.config import ServerConfig
from vlm.server.service import Service


def service_of(model: Model, config: ServerConfig) -> Service:
    """Return the service of a model, with an engine of its own.

    Raises:
        UserError: the model's chat template cannot be used, or a setting does not suit the model.
    """
    try:  # a folder's template is foreign code: better refused here than in every answer
        model.processor.encode([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    except UserError as error:
        raise UserError(f"{model.folder} cannot be served: {error}") from error
    max_context = model.network.config.decoder.max_positions
    try:
        engine = model.answering.engine(EngineConfig(slots=config.slots, max_tokens=max_context))
    except ValueError as error:
        raise UserError(str(error)) from error
    return Service(model.processor, engine, max_context, config, model.folder.resolve().name)
