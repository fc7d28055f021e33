"""A checkpoint of a run that is not finished, as a whole model folder."""

from pathlib import Path

from training.checkpoints import list_checkpoints, verify
from training.config import TrainConfig
from training.run import CONFIG_FILE, describe_origin, folder_config
from training.sharded import StoredParts
from training.state import read_state
from training.trainer import CHECKPOINTS
from vlm.chat.processor import Processor
from vlm.config import load_config
from vlm.errors import UserError
from vlm.weights.folder import FolderConfig, write_folder

# What begins the names of a checkpoint's tensors.
WEIGHTS, AVERAGES = "model.", "ema."


def convert_checkpoint(source: Path, out: Path) -> Path:
    """Write a model folder of a checkpoint, or of a run's newest; return the checkpoint.

    However many processes have written it, this one reads it alone.

    Raises:
        UserError: `source` is neither, the checkpoint is damaged, or `out` is taken.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose a folder that is new")
    checkpoint = _find_checkpoint(source)
    verify(checkpoint)
    run = checkpoint.parent.parent
    config = load_config(TrainConfig, run / CONFIG_FILE)
    progress, _ = read_state(checkpoint)
    stored = StoredParts(checkpoint)
    described = folder_config(config)
    tensors = {name: stored.read(f"{WEIGHTS}{name}") for name in _names(stored, WEIGHTS, described)}
    if config.ema is not None and config.ema.write:
        averages = _names(stored, AVERAGES, described)
        tensors |= {name: stored.read(f"{AVERAGES}{name}") for name in averages}
    origin = {
        **describe_origin(config, progress.step),
        "figures": {},
        "checkpoint": str(checkpoint),
    }
    processor = Processor.from_folder(run, config.model.vision)
    write_folder(out, described, tensors, processor, {**origin, "figures": {}})
    return checkpoint


def _names(stored: StoredParts, kind: str, described: FolderConfig) -> list[str]:
    """The tensors of a kind that belong into the folder, by their names in it."""
    prefixes = tuple(f"{kind}{component}." for component in described.components)
    return [name.removeprefix(kind) for name in stored.shapes if name.startswith(prefixes)]


def _find_checkpoint(source: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest one of a run folder."""
    if (source / CONFIG_FILE).is_file():
        found = list_checkpoints(source / CHECKPOINTS)
        if not found:
            raise UserError(f"{source} has no checkpoint: its run has set no checkpoint_every")
        return found[-1]
    if (source.resolve().parent.parent / CONFIG_FILE).is_file():
        return source.resolve()
    raise UserError(
        f"{source} is neither the folder of a run nor a checkpoint in one "
        f"(RUN/{CHECKPOINTS}/step-...)"
    )
