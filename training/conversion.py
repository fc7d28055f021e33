"""A checkpoint of a run that is not finished, as a whole model folder or that of an adapter."""

from pathlib import Path

from torch import Tensor

from training.checkpoints import list_checkpoints, verify
from training.config import TrainConfig
from training.lora import adapter_name
from training.run import CONFIG_FILE, describe_origin, folder_config
from training.sharded import StoredParts
from training.stages import STAGES
from training.state import read_state
from training.trainer import CHECKPOINTS
from vlm.adapters.folder import AdapterConfig, save_adapter
from vlm.chat.processor import Processor
from vlm.config import load_config
from vlm.errors import UserError
from vlm.weights.folder import write_folder

# What begins the names of a checkpoint's tensors.
WEIGHTS, AVERAGES = "model.", "ema."


def convert_checkpoint(source: Path, out: Path) -> Path:
    """Write a model folder of a checkpoint, or of a run's newest; return the checkpoint.

    Of a run that trains adapters it is an adapter's folder. However many processes have written
    it, this one reads it alone.

    Raises:
        UserError: `source` is neither, the checkpoint is damaged, or `out` is taken.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: choose a folder that is new")
    checkpoint = _find_checkpoint(source)
    verify(checkpoint)
    run = checkpoint.parent.parent
    config = load_config(TrainConfig, run / CONFIG_FILE)
    progress, identity = read_state(checkpoint)
    tensors = _read_weights(StoredParts(checkpoint), config)
    provenance = {
        **describe_origin(config, progress.step),
        "figures": {},
        "checkpoint": str(checkpoint),
    }
    if config.lora is not None:
        assert config.init_from.model is not None
        adapter = AdapterConfig.on(config.init_from.model, config.lora)
        if adapter.base.sha256 != identity["base_sha256"]:
            raise UserError(
                f"{checkpoint} holds adapters on other weights than those that are in "
                f"{adapter.base.folder}: put back what the run began with"
            )
        named = {adapter_name(name): tensor for name, tensor in tensors.items()}
        save_adapter(out, adapter, config.model, named, provenance)
        return checkpoint
    processor = Processor.from_folder(run, config.model.vision)
    write_folder(out, folder_config(config), tensors, processor, provenance)
    return checkpoint


def _read_weights(stored: StoredParts, config: TrainConfig) -> dict[str, Tensor]:
    """What belongs into the folder, by name; the averages of weights where those are written."""
    components = STAGES[config.stage].components
    kinds = [WEIGHTS]
    if config.ema is not None and config.ema.write:
        kinds.append(AVERAGES)
    tensors = {}
    for kind in kinds:
        prefixes = tuple(f"{kind}{component}." for component in components)
        for name in stored.shapes:
            if name.startswith(prefixes):
                tensors[name.removeprefix(kind)] = stored.read(name)
    return tensors


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
