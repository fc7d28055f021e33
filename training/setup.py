"""The objects of a stage, from its configuration: modules, data, and what trains them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs
from torch import nn

from data.collate import collate_chats, collate_pairs
from data.encode import ChatEncoder, PairEncoder
from data.loader import Loader
from data.mixture import sample_shares
from data.shards import ShardSet
from encoders.text import build_text_tower
from training.config import TrainConfig
from training.distributed import (
    is_launched,
    num_ranks,
    rank,
    streams_of_step,
)
from training.evaluation import Questions, Validation
from training.features import check_features
from training.flops import StepFlops
from training.lora import Making, add_adapters, set_dtypes
from training.objectives import Contrastive, NextToken, Objective
from training.parents import check_parents, check_weights, load_parents, tokenizer_folder
from training.stages import STAGES, Stage, parts_of, stage_of
from training.utilisation import Utilisation, peak_flops
from vlm.adapters.folder import AdapterConfig
from vlm.api import Model
from vlm.chat.processor import Processor
from vlm.contrastive import ContrastiveHead, TwoTowers
from vlm.errors import UserError
from vlm.model import VisionLanguageModel


@dataclass(frozen=True)
class Setup:
    """The objects of a run.

    modules: everything with parameters, by the name it has in model folders and checkpoints.
    notes: what the user should know of weights that come from elsewhere, a line each.
    adapter: which adapters are trained, and on what; None where the weights are.
    """

    config: TrainConfig
    stage: Stage
    processor: Processor
    modules: Mapping[str, nn.Module]
    objective: Objective[Any]
    train: Loader[Any, Any]
    validation: Validation | None
    questions: Questions | None
    notes: tuple[str, ...] = ()
    adapter: AdapterConfig | None = None


def build_setup(config: TrainConfig, making: Making | None = None) -> Setup:
    """Build a stage's modules from its parents, and its data.

    Args:
        making: gives the context in which modules are made without numbers (training/rehearsal.py).
            What they start from is then only checked, by the headers of its files.
    """
    stage = stage_of(config)
    check_parents(config, stage)
    features = check_features(config)
    sources = [ShardSet.open(source.path, features=features) for source in config.data.sources]
    folder = tokenizer_folder(config)
    if folder is None:
        texts = _texts(sources)
        processor = Processor.train(texts, config.model.vision, _trained_vocabulary(config))
    else:
        processor = Processor.from_folder(folder, config.model.vision)
    processor.tokenizer.check_fits(_vocabulary(config))
    build = _contrastive_objects
    if config.stage != "encoder":
        build = partial(_language_objects, has_features=features)
    with _place_of_birth(config, making):
        modules, objective = build(config, processor)
        if config.lora is not None:
            set_dtypes(modules.values(), config.lora)
    if config.lora is not None and making is None:
        for module in modules.values():
            module.to_empty(device="cpu")
    notes = load_parents(config, modules) if making is None else check_weights(config, modules)
    adapter = None
    if config.lora is not None:
        adapter, added = _adapt(config, objective, making)
        notes += added
    data = config.data
    make = _loader_maker(config, processor)
    train = make(
        sources,
        shares=sample_shares(data, sources, processor),
        num_streams=streams_of_step(config.batches_per_step, num_ranks()),
        rank=rank(),
        num_ranks=num_ranks(),
    )
    validation = None
    if data.validation:
        streams = num_ranks()
        own = partial(make, shuffle=False, num_streams=streams, rank=rank(), num_ranks=streams)
        validation = Validation.open(data.validation, own, config.validation_batches, features)
    questions = None
    if config.evaluate is not None:
        assert isinstance(objective, NextToken)
        # The model belongs to no folder yet but the run's.
        questions = Questions(Model(objective.model, processor, config.out), config.evaluate)
    return Setup(
        config, stage, processor, modules, objective, train, validation, questions, notes, adapter
    )


def _loader_maker(config: TrainConfig, processor: Processor) -> Callable[..., Loader[Any, Any]]:
    """What makes loaders of the rows that a stage learns from."""
    data = config.data
    if config.stage == "encoder":
        encode: Any = PairEncoder(processor, data.max_tokens, data.draft)
        collate: Any = collate_pairs
    else:
        encode = ChatEncoder(processor, data, "all" if config.stage == "text" else "assistant")
        collate = partial(collate_chats, sequence_tokens=data.max_tokens if data.packing else None)
    collate = partial(collate, pad_id=processor.tokenizer.pad_id)
    return partial(Loader[Any, Any], config=data, encode=encode, collate=collate, seed=config.seed)


def build_accelerator(config: TrainConfig) -> Accelerator:
    """Device placement, precision and the group of processes through accelerate.

    A process that a launcher has started (torchrun, `accelerate launch`) joins the others here.
    """
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise UserError("device is cuda, but torch sees no CUDA device; set device=auto or cpu")
    use_cpu = config.device == "cpu" or not cuda
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and not use_cpu and torch.cuda.is_bf16_supported()
    )
    # accelerate has one state a process; the stages of a process may differ in precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    # A weight is used once a forward pass: a cache of its bf16 copy would only keep it longer.
    handlers: list[Any] = [AutocastKwargs(cache_enabled=False)]
    if is_launched():
        # Checkpoints, and weights that are offloaded, are exchanged on the host.
        backend = "gloo" if use_cpu else "cuda:nccl,cpu:gloo"
        timeout = timedelta(seconds=config.parallel.timeout_s)
        handlers.append(InitProcessGroupKwargs(backend=backend, timeout=timeout))
    precision = "bf16" if bf16 else "no"
    return Accelerator(cpu=use_cpu, mixed_precision=precision, kwargs_handlers=handlers)


def build_utilisation(flops: StepFlops, accelerator: Accelerator) -> Utilisation | None:
    """What measures the use of the device; None where its peak is not known."""
    bf16 = accelerator.mixed_precision == "bf16"
    peak = peak_flops(accelerator.device, torch.bfloat16 if bf16 else torch.float32)
    return None if peak is None else Utilisation(flops, peak)


def describe_parts(setup: Setup) -> str:
    """The stage's table: part, parameters, trained or frozen; and the notes."""
    lines = [f"stage {setup.config.stage}: {setup.stage.objective}"]
    parts = parts_of(setup.modules)
    width = max(16, *map(len, parts))
    for part, parameters in parts.items():
        count = sum(parameter.numel() for parameter in parameters.values())
        state = "trained" if part in setup.stage.trained else "frozen"
        lines.append(f"  {part:<{width}} {count:>14,}  {state}")
    lines += setup.notes
    return "\n".join(lines)


def _adapt(
    config: TrainConfig, objective: Objective[Any], making: Making | None
) -> tuple[AdapterConfig | None, tuple[str, ...]]:
    """Put adapters onto the base; return what they are on (none in a rehearsal), and notes."""
    assert config.lora is not None and config.init_from.model is not None
    assert isinstance(objective, NextToken)
    notes = add_adapters(objective.model, config.lora, making)
    on = None if making is not None else AdapterConfig.on(config.init_from.model, config.lora)
    return on, notes


def _place_of_birth(config: TrainConfig, making: Making | None) -> AbstractContextManager[Any]:
    """Where modules are made: a base, which is loaded whole, without drawing numbers."""
    if making is not None:
        return making()
    return nullcontext() if config.lora is None else torch.device("meta")


def _contrastive_objects(
    config: TrainConfig, processor: Processor
) -> tuple[dict[str, nn.Module], Objective[Any]]:
    assert config.contrastive is not None
    tokenizer = processor.tokenizer
    encoder = VisionLanguageModel(config.model, tokenizer.image_id).encoder
    tower_config = config.contrastive.text_tower
    text_tower = build_text_tower(tower_config, tokenizer.pad_id, tokenizer.eot_id)
    head = ContrastiveHead(
        config.model.vision.output_size,
        tower_config.embedding_size,
        sigmoid=config.contrastive.loss == "siglip",
    )
    model = TwoTowers(encoder, text_tower, head)
    objective = Contrastive(model, config.contrastive, tokenizer.pad_id)
    modules = {"encoder": encoder, "text_tower": text_tower, "contrastive_head": head}
    return modules, objective


def _language_objects(
    config: TrainConfig, processor: Processor, has_features: bool = False
) -> tuple[dict[str, nn.Module], Objective[Any]]:
    model = VisionLanguageModel(config.model, processor.tokenizer.image_id)
    kept = STAGES[config.stage].components
    modules = {name: getattr(model, name) for name in kept}
    for name, _ in list(model.named_children()):
        if name not in kept:  # a stage without pictures would share and move them for nothing
            delattr(model, name)
    return modules, NextToken(model, config.stage != "text", has_features)


def _vocabulary(config: TrainConfig) -> int:
    if config.contrastive is not None:
        return config.contrastive.text_tower.vocab_size
    return config.model.decoder.num_embeddings


def _trained_vocabulary(config: TrainConfig) -> int:
    """Ids of a tokenizer made for the model: only the last, `<|image|>`, may be an extra row."""
    rows = _vocabulary(config)
    if config.contrastive is not None:
        return rows
    return min(rows, config.model.decoder.vocab_size + 1)


def _texts(sources: Iterable[ShardSet]) -> Iterator[str]:
    for source in sources:
        for raw in source.read_all():
            yield from (message.text for message in raw.sample.messages)
