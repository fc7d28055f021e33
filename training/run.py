"""A stage from its configuration to its model folder: config -> objects -> fit."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data.rejects import REJECTS_NAME, RejectFile
from training.config import TrainConfig
from training.determinism import deterministic
from training.distributed import (
    is_first_rank,
    num_ranks,
)
from training.flops import StepFlops
from training.lock import locked
from training.lora import adapter_tensors
from training.memory import recompute_blocks
from training.metrics import MetricsLog, NoLog
from training.optim import build_optimizer
from training.parallel import check_shardable, parallelise
from training.sample_log import SampleLog
from training.setup import Setup, build_accelerator, build_setup, build_utilisation, describe_parts
from training.sharded import gather_whole
from training.signals import StopSignals
from training.stages import STAGES, freeze, parts_of
from training.state import Best
from training.summary import summarised
from training.trackers import check_trackers
from training.trainer import FitResult, Trainer
from vlm.adapters.folder import save_adapter
from vlm.config import dump_config
from vlm.errors import UserError
from vlm.provenance import commit, library_versions
from vlm.weights.folder import (
    ADAPTER_FILE,
    FORMAT,
    FolderConfig,
    component_tensors,
    write_folder,
)
from vlm.weights.folder import CONFIG_FILE as FOLDER_CONFIG_FILE

CONFIG_FILE = "train.yaml"
BEST_FOLDER = "best"


def train_stage(config: TrainConfig, resume: bool = False, force: bool = False) -> FitResult:
    """Run one stage and write its model folder to `config.out`. All ranks call it.

    Args:
        resume: go on from the newest whole checkpoint, if there is any.
        force: also under a configuration that has changed since.
    Raises:
        UserError: a parent does not match, the data is unusable, or the run folder is taken.
        RunStopped: a signal ended the run, which can be resumed.
    """
    _check_run_folder(config.out, resume)
    check_trackers(config.trackers)
    with deterministic(config.deterministic):
        torch.manual_seed(config.seed)
        accelerator = build_accelerator(config)
        setup = build_setup(config)
        freeze(setup.stage, parts_of(setup.modules))
        recomputed = recompute_blocks(setup.modules, config.memory)
        flops = StepFlops(setup.modules, recomputed)  # of whole weights
        check_shardable(config)
        parallel = parallelise(config.parallel, accelerator, setup.objective)
        parts = parts_of(setup.modules)  # sharded ones, if they are
        trainer = Trainer(
            config,
            accelerator,
            setup.modules,
            setup.objective,
            build_optimizer(setup.modules.values(), config.optim, parts),
            setup.train,
            setup.validation,
            run_identity(setup),
            setup.questions,
            build_utilisation(flops, accelerator),
            parallel,
        )
        with locked(config.out):
            _check_run_folder(config.out, resume)
            accelerator.wait_for_everyone()  # nobody writes before all have looked
            return _train(setup, trainer, resume, force)


def _train(setup: Setup, trainer: Trainer[Any, Any], resume: bool, force: bool) -> FitResult:
    config = setup.config
    notes: list[str] = []
    resumed = resume and trainer.resume(notes.append, force)
    if resumed:
        notes.append(f"resumed from {trainer.saver.last} at step {trainer.step}")
    elif resume:
        notes.append(f"no checkpoint in {trainer.saver.folder}; starting anew")
    if is_first_rank():
        _begin_run_folder(setup)
    with ExitStack() as stack:
        stop = stack.enter_context(StopSignals())
        first_step = trainer.step
        stack.enter_context(summarised(config.out, trainer.facts))
        log: MetricsLog | NoLog = NoLog()
        if is_first_rank():
            log = MetricsLog(config.out, config.stage, config.steps, first_step, config.trackers)
            stack.enter_context(log)
        samples = None
        if config.data.log_samples:
            samples = stack.enter_context(closing(SampleLog(config.out, first_step)))
        if num_ranks() > 1:
            notes.insert(0, f"{trainer.parallel}, on {trainer.accelerator.device.type}")
        for line in (describe_parts(setup), *notes):
            log.message(line)
        setup.train.on_reject = RejectFile(config.out).add
        result = trainer.fit(log, samples, stop)
        if setup.train.rejects:
            first = setup.train.rejects[0]
            log.message(
                f"{setup.train.num_rejects} samples rejected, see {config.out / REJECTS_NAME}; "
                f"the first: {first.key}: {first.reason}"
            )
        with trainer.written_weights():
            _save_model(setup, config.out, result)
        if result.best is not None and result.best.step < result.steps:
            _save_best(setup, trainer, result, result.best)
    trainer.accelerator.wait_for_everyone()  # the folder is whole when any rank ends
    return result


def _save_best(setup: Setup, trainer: Trainer[Any, Any], result: FitResult, best: Best) -> None:
    """Write the best step's model beside the last one's, whose weights it takes over."""
    trainer.saver.payload.restore_weights(trainer.saver.path(best.step))
    with trainer.written_weights():
        found = replace(result, steps=best.step, figures={best.figure: best.value})
        _save_model(setup, setup.config.out / BEST_FOLDER, found)


def run_identity(setup: Setup) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued: all but where and how often we log."""
    free = {"out", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "device"}
    free |= {"memory"}  # what is recomputed is the same to the bit
    free |= {"parallel", "keep_best", "evaluate", "trackers"}
    identity = setup.config.model_dump(mode="json", exclude=free)
    del identity["data"]["num_workers"]  # the order of samples does not depend on it
    del identity["optim"]["max_skipped_steps"]
    if setup.adapter is not None:
        identity["base_sha256"] = setup.adapter.base.sha256
    identity["manifests"] = [source.fingerprint for source in setup.train.sources]
    identity["batches_per_step"] = setup.train.order.num_streams
    if setup.config.contrastive is not None:  # pairs are contrasted with those of all ranks
        identity["ranks"] = num_ranks()
    return identity


def _begin_run_folder(setup: Setup) -> None:
    """Write what says how to read a checkpoint of the run."""
    (setup.config.out / CONFIG_FILE).write_text(dump_config(setup.config))
    setup.processor.save(setup.config.out)


def _check_run_folder(out: Path, resume: bool) -> None:
    if not resume and (out / CONFIG_FILE).exists():
        raise UserError(
            f"{out} already holds a run; resume it with --resume auto, or choose another out="
        )
    if resume and any((out / name).exists() for name in (FOLDER_CONFIG_FILE, ADAPTER_FILE)):
        raise UserError(
            f"{out} holds a finished model, so there is nothing to resume; "
            "train on from it in another out="
        )


def _save_model(setup: Setup, folder: Path, result: FitResult) -> None:
    """Write the model folder, on the first rank; the others give it their parts of the weights."""
    if setup.adapter is not None:
        tensors = gather_whole(adapter_tensors(setup.modules))
    else:
        components = {name: setup.modules[name] for name in setup.stage.components}
        tensors = gather_whole(component_tensors(components))
    if not is_first_rank():
        return
    held_out = None if setup.validation is None else setup.validation.together
    loaders = {"train": setup.train, "validation": held_out}
    data = {
        split: [
            {"folder": source.location, "manifest_sha256": source.fingerprint}
            for source in (loader.sources if loader is not None else ())
        ]
        for split, loader in loaders.items()
    }
    provenance = {
        **describe_origin(setup.config, result.steps),
        "figures": dict(result.figures),
        "data": data,
    }
    if setup.adapter is not None:
        save_adapter(folder, setup.adapter, setup.config.model, tensors, provenance)
        return
    write_folder(
        folder,
        folder_config(setup.config),
        tensors,
        setup.processor,
        provenance,
    )


def folder_config(config: TrainConfig) -> FolderConfig:
    """What a stage's model folder says of its tensors."""
    return FolderConfig(
        format=FORMAT,
        stage=config.stage,
        components=STAGES[config.stage].components,
        model=config.model,
        text_tower=config.contrastive.text_tower if config.contrastive else None,
    )


def describe_origin(config: TrainConfig, steps: int) -> dict[str, Any]:
    """Where a stage's weights come from, for a model folder's provenance."""
    return {
        "stage": config.stage,
        "steps": steps,
        "seed": config.seed,
        "parents": {name: str(path) for name, path in config.init_from if path is not None},
        "commit": commit(),
        "versions": library_versions(),
    }
