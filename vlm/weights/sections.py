"""The shape of a configuration's section, read from a folder of weights."""

from pathlib import Path

from pydantic import BaseModel

from encoders.config import TextTowerConfig, VisionConfig
from projector.config import ProjectorConfig
from vlm.config import VLMConfig
from vlm.decoder.config import DecoderConfig
from vlm.errors import UserError
from vlm.weights.folder import CONFIG_FILE, is_model_folder, read_folder_config
from vlm.weights.llm import read_llm
from vlm.weights.tower_folders import is_tower_folder
from vlm.weights.towers import tower_config


def read_section(kind: type[BaseModel], folder: Path) -> BaseModel:
    """Return the section of type `kind` that describes what a folder holds.

    Args:
        folder: a model folder of ours, or, for the decoder, the folder of a Llama-shaped LLM; for
            the encoder, that of a vision tower.
    Raises:
        UserError: the folder holds nothing of this kind, or what it holds cannot be expressed.
    """
    if kind is DecoderConfig and (folder / CONFIG_FILE).is_file() and not is_model_folder(folder):
        return read_llm(folder).config
    if kind is VisionConfig and is_tower_folder(folder):
        return tower_config(folder)
    config = read_folder_config(folder)
    found: dict[type[BaseModel], BaseModel | None] = {
        VLMConfig: config.model,
        VisionConfig: config.model.vision,
        ProjectorConfig: config.model.projector,
        DecoderConfig: config.model.decoder,
        TextTowerConfig: config.text_tower,
    }
    section = found.get(kind)
    if section is None:
        raise UserError(f"{folder} holds nothing that is described by a {kind.__name__}")
    return section
