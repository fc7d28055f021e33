"""Configuration of a training run."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from data.config import DataConfig
from encoders.config import TextTowerConfig
from vlm.adapters.config import LoraConfig
from vlm.config import VLMConfig

StageName = Literal["text", "encoder", "align", "finetune"]
PartName = Literal["encoder", "projector", "cross_attention", "decoder"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


class InitFrom(BaseModel):
    """The folders a stage starts from; training/stages.py says which it takes.

    decoder: for `align`, the folder of a text stage, or of a Llama-shaped LLM in transformers'
        format. `model.decoder` may be the same path.
    encoder: for `align`, and if wanted for `encoder`, the folder of an encoder stage, or of a
        vision tower of transformers, timm or open_clip. `model.vision` may start from the same
        path.
    model: for `finetune`, the folder of an align (or finetune) stage.
    tokenizer: for `encoder`, a folder with a tokenizer; None trains one on the stage's texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder: Path | None = None
    encoder: Path | None = None
    model: Path | None = None
    tokenizer: Path | None = None


class PartOptimConfig(BaseModel):
    """What a part of the model has of its own; None takes the common setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: PositiveFloat | None = None
    weight_decay: float | None = Field(default=None, ge=0)


class OptimConfig(BaseModel):
    """The optimizer and its learning-rate schedule (training/optim.py).

    kind: `muon` (training/muon.py) for the weights of hidden layers and AdamW for the rest; it
        learns in fewer steps, each of which costs more.
    state: how AdamW keeps its two moments (training/adamw.py): 8, 4 or about 2 bytes a weight.
    weight_decay: on matrices only.
    gate_rate_factor: the learning rate of tanh gates, as a multiple of the others'. A gate is one
        number that starts at zero, and until it has moved little passes it.
    clip_norm: the global gradient norm is clipped to this.
    warmup_steps: the rate rises linearly over these.
    decay_steps: for `warmup_stable_decay`, the last steps, over which the rate falls to zero.
    parts: learning rates (under the same schedule) and weight decay of parts of the model.
    max_skipped_steps: steps whose gradient is no number are skipped; so many in a row stop the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["adamw", "muon"] = "adamw"
    state: Literal["fp32", "bf16", "8bit"] = "fp32"
    learning_rate: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(default=0.1, ge=0)
    gate_rate_factor: PositiveFloat = 1.0
    clip_norm: PositiveFloat = 1.0
    schedule: Literal["inverse_sqrt", "cosine", "warmup_stable_decay"] = "inverse_sqrt"
    warmup_steps: PositiveInt
    decay_steps: PositiveInt | None = None
    parts: dict[PartName, PartOptimConfig] = Field(default_factory=dict)
    max_skipped_steps: PositiveInt = 5

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.schedule == "warmup_stable_decay") != (self.decay_steps is not None):
            raise ValueError("decay_steps belongs to schedule warmup_stable_decay, and to it alone")
        if self.kind == "muon" and self.state != "fp32":
            raise ValueError(f"state {self.state!r} is for kind 'adamw'; muon keeps fp32")
        return self


class MemoryConfig(BaseModel):
    """What is computed twice to need less memory (training/memory.py); results stay the same.

    recompute: parts whose blocks keep only their input and run again in the backward pass; a
        trained block then costs about a third more.
    recompute_every: 1 recomputes every block of those parts, 2 every other one, and so on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recompute: tuple[Literal["encoder", "decoder"], ...] = ()
    recompute_every: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.recompute)) != len(self.recompute):
            raise ValueError(f"recompute {list(self.recompute)} names a part twice")
        return self


class ContrastiveConfig(BaseModel):
    """The encoder stage's objective: `clip` (softmax) or `siglip` (sigmoid), from open_clip."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    loss: Literal["clip", "siglip"] = "clip"
    text_tower: TextTowerConfig


class ParallelConfig(BaseModel):
    """How several processes train together (training/parallel.py).

    strategy: `ddp` keeps all weights on every process and exchanges gradients; `fsdp` shards
        weights, gradients and optimizer states block by block; `hsdp` shards them among
        `shard_ranks` processes and keeps copies on the other groups of as many. `auto` is ddp.
        One process alone shares nothing, whatever this says.
    shard_ranks: for hsdp; None is the processes of one machine.
    cpu_offload: for fsdp and hsdp on GPUs; shards and optimizer states lie in the host's memory,
        and the optimizer runs there.
    reduce_every_batch: for fsdp and hsdp; gradients are exchanged after every batch of a step. A
        process then never holds more than its shard of them, for more traffic. Otherwise once.
    timeout_s: a process that waits longer for another one stops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["auto", "none", "ddp", "fsdp", "hsdp"] = "auto"
    shard_ranks: PositiveInt | None = None
    cpu_offload: bool = False
    reduce_every_batch: bool = False
    timeout_s: PositiveFloat = 600.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shard_ranks is not None and self.strategy != "hsdp":
            raise ValueError(f"shard_ranks belongs to strategy hsdp, not to {self.strategy}")
        if self.strategy not in ("fsdp", "hsdp"):
            for name in ("cpu_offload", "reduce_every_batch"):
                if getattr(self, name):
                    raise ValueError(f"{name} is for strategy fsdp or hsdp, not {self.strategy}")
        return self


class EvaluateConfig(BaseModel):
    """Questions that are asked while a model learns; answers are greedy.

    data: a folder of packed questions.
    every: steps; None asks only at the end.
    max_questions: the first so many of the folder.
    max_tokens: an answer is cut off there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    every: PositiveInt | None = None
    max_questions: PositiveInt = 200
    batch_size: PositiveInt = 32
    max_tokens: PositiveInt = 16


class EmaConfig(BaseModel):
    """Exponential moving averages of the weights, kept beside them and saved with them.

    decay: what remains of an average after a step.
    write: the model folder gets the averages in place of the weights, and they are what is
        validated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decay: float = Field(gt=0, lt=1)
    write: bool = False


class BestConfig(BaseModel):
    """Which step's model is the best one.

    figure: as in metrics.jsonl, split and name: `validation/loss`, `validation/SOURCE/loss`,
        `evaluation/accuracy`.
    mode: whether a low or a high figure is good.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: str
    mode: Literal["min", "max"]


class TrainConfig(BaseModel):
    """One stage of training.

    out: run folder; the finished model folder is `out` itself, checkpoints lie below it.
    lora: for `finetune`, what learns through adapters on a base that stays as it is; `out` then
        becomes the adapter's folder. None trains the weights themselves.
    steps: optimizer steps.
    batches_per_step: over all ranks, each of which takes its part of them one after the other;
        None is one batch a rank. The loss is weighted by supervised tokens, as if they were one
        batch.
    precision: `auto` is bf16 autocast on GPUs that have it, float32 elsewhere.
    validate_every: None validates only at the end.
    validation_batches: None takes the whole validation set. Of several folders in data.validation
        each is validated by itself as well.
    evaluate: questions that are asked while the model learns.
    keep_checkpoints: older ones are deleted.
    keep_best: the step with the best figure is saved when it is met, and stays; if it is not the
        last one, its model is written to the folder `best` below `out`.
    ema: moving averages of the weights.
    deterministic: the same machine gives the same result to the bit, also on a GPU; slower there.
    trackers: where figures go beside metrics.jsonl.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: StageName
    out: Path
    model: VLMConfig
    contrastive: ContrastiveConfig | None = None
    init_from: InitFrom = InitFrom()
    lora: LoraConfig | None = None
    data: DataConfig
    optim: OptimConfig
    memory: MemoryConfig = MemoryConfig()
    parallel: ParallelConfig = ParallelConfig()
    steps: PositiveInt
    batches_per_step: PositiveInt | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    log_every: PositiveInt = 10
    validate_every: PositiveInt | None = None
    validation_batches: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = None
    keep_checkpoints: PositiveInt = 2
    keep_best: BestConfig | None = None
    evaluate: EvaluateConfig | None = None
    ema: EmaConfig | None = None
    deterministic: bool = False
    trackers: tuple[TrackerName, ...] = ("tensorboard",)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.stage == "encoder") != (self.contrastive is not None):
            raise ValueError("the section contrastive belongs to stage encoder, and to it alone")
        if self.lora and self.stage != "finetune":
            raise ValueError(
                f"the section lora belongs to stage finetune; stage {self.stage} trains weights"
            )
        if self.lora and self.lora.base_weights != "float32" and self.precision != "bf16":
            raise ValueError(
                f"lora.base_weights {self.lora.base_weights} computes in bfloat16: "
                f"set precision to bf16, it is {self.precision}"
            )
        if self.evaluate and self.stage not in ("align", "finetune"):
            raise ValueError(f"evaluate asks whole models; stage {self.stage} trains a part of one")
        if self.keep_best:
            split = self.keep_best.figure.partition("/")[0]
            measured = {"validation": self.data.validation, "evaluation": self.evaluate}
            if not measured.get(split):
                raise ValueError(
                    f"keep_best.figure {self.keep_best.figure} is not measured; set "
                    "validation/NAME and data.validation, or evaluation/NAME and evaluate"
                )
        if self.contrastive and self.data.packing:
            raise ValueError("data.packing joins chats; stage encoder compares pairs, one by one")
        if self.contrastive and self.data.max_tokens > self.contrastive.text_tower.max_tokens:
            raise ValueError(
                f"data.max_tokens {self.data.max_tokens} is more than the text tower reads "
                f"(contrastive.text_tower.max_tokens {self.contrastive.text_tower.max_tokens})"
            )
        return self
