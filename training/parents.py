"""What a stage starts from: folders checked against its model, and loaded into it."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torch import nn

from encoders.vit import VisionEncoder
from training.config import TrainConfig
from training.stages import Stage
from vlm.decoder.stack import Decoder
from vlm.errors import UserError
from vlm.weights.folder import (
    check_component,
    check_same_config,
    is_model_folder,
    load_component,
    read_component,
    stored_component,
)
from vlm.weights.graft import check_llm, graft_llm
from vlm.weights.sections import read_section
from vlm.weights.tower_folders import is_tower_folder
from vlm.weights.towers import load_tower


def check_parents(config: TrainConfig, stage: Stage) -> None:
    """Check that `init_from` names what the stage needs, of the shapes that the model has.

    Raises:
        UserError: a folder is missing, of no use, or of another shape.
    """
    given = {name for name, path in config.init_from if path is not None}
    missing = [name for name in stage.parents if name not in given]
    if missing:
        raise UserError(
            f"stage {config.stage} starts from init_from.{missing[0]}; set it to a model folder"
        )
    allowed = {*stage.parents, *stage.options}
    if given - allowed:
        raise UserError(
            f"stage {config.stage} takes no init_from.{sorted(given - allowed)[0]}; "
            f"it takes {', '.join(sorted(allowed))}"
        )
    for component, source in _sources(config).items():
        _check_shape(config, component, source)


def load_parents(config: TrainConfig, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Load each component from where the stage starts; return notes on others' folders."""
    notes: list[str] = []
    for component, source in _sources(config).items():
        module = modules[component]
        if isinstance(module, VisionEncoder) and is_tower_folder(source):
            notes += load_tower(module, source)
        elif isinstance(module, Decoder) and not is_model_folder(source):
            notes += graft_llm(module, source)
        else:
            load_component(module, read_component(source, component), component, source)
    return tuple(notes)


def check_weights(config: TrainConfig, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Check that each component fits what the stage starts from; return notes as when loading."""
    notes: list[str] = []
    for component, source in _sources(config).items():
        module = modules[component]
        if isinstance(module, VisionEncoder) and is_tower_folder(source):
            notes += load_tower(VisionEncoder(config.model.vision), source)
        elif isinstance(module, Decoder) and not is_model_folder(source):
            notes += check_llm(module, source)
        else:
            check_component(module, stored_component(source, component), component, source)
    return tuple(notes)


def tokenizer_folder(config: TrainConfig) -> Path | None:
    """Where the stage's tokenizer comes from; None where it is trained."""
    start = config.init_from
    return {"align": start.decoder, "finetune": start.model}.get(config.stage, start.tokenizer)


def _check_shape(config: TrainConfig, component: str, source: Path) -> None:
    """Check that a component's section is the shape of what it starts from.

    A tower decides a part of its section, which is compared when it is loaded.
    """
    if component == "encoder" and is_tower_folder(source):
        return
    section = {"encoder": "vision"}.get(component, component)
    ours = getattr(config.model, section)
    check_same_config(ours, read_section(type(ours), source), f"model.{section}", source)


def _sources(config: TrainConfig) -> dict[str, Path]:
    """Which folder each component of a stage starts from."""
    start = config.init_from
    if config.stage == "encoder" and start.encoder is not None:
        return {"encoder": start.encoder}
    if config.stage == "align":
        return {"decoder": cast(Path, start.decoder), "encoder": cast(Path, start.encoder)}
    if config.stage == "finetune":
        model = cast(Path, start.model)
        return {"encoder": model, "projector": model, "decoder": model}
    return {}
