"""The training loop."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from data.batches import Row
from data.loader import Loader, LoaderState
from data.prefetch import Prefetch, Staged
from training.config import TrainConfig
from training.distributed import clip_gradients, gather, in_step, share_of_step, sum_over_ranks
from training.metrics import MetricsLog, NoLog
from training.objectives import Objective
from training.optim import learning_rate
from training.parallel import Parallel
from training.sample_log import SampleLog
from training.saver import Saver
from training.state import Progress, WholePayload
from vlm.errors import UserError

CHECKPOINTS = "checkpoints"


class Batch(Protocol):
    """What the loop needs to know of a batch."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def num_tokens(self) -> int: ...

    @property
    def padded_tokens(self) -> int: ...

    def to(self, device: torch.device) -> Self: ...


RowT = TypeVar("RowT", bound=Row)
BatchT = TypeVar("BatchT", bound=Batch)


@dataclass(frozen=True)
class FitResult:
    """What a run ends with: figures of the last validation, or of training without one."""

    steps: int
    seconds: float
    figures: Mapping[str, float]


class Trainer(Generic[RowT, BatchT]):
    """Fit modules to an objective, with validation, checkpoints and logs.

    Args:
        modules: everything with parameters, frozen or not, by name; what a checkpoint holds.
        identity: what must not change between a checkpoint and the run that resumes it.
        parallel: how the objective's model is shared; None where it is whole and alone.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        modules: Mapping[str, nn.Module],
        objective: Objective[BatchT],
        optimizer: torch.optim.Optimizer,
        train: Loader[RowT, BatchT],
        validation: Callable[[], Iterable[BatchT]] | None,
        identity: Mapping[str, Any],
        parallel: Parallel | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.modules = modules
        self.objective = objective
        self.parallel = parallel or Parallel("none", objective.model)
        self.optimizer = optimizer
        self.train = train
        self.batches: Prefetch[BatchT, LoaderState] = Prefetch(train, accelerator.device)
        self.validation = validation
        self.saver = Saver(
            config.out / CHECKPOINTS,
            WholePayload(modules, optimizer, {}),
            identity,
            config.keep_checkpoints,
        )
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.step = 0
        self.seconds = 0.0

    def resume(self, say: Callable[[str], None], force: bool = False) -> bool:
        """Go on from the newest whole checkpoint; return whether there is any.

        Args:
            say: told what the user should know of it.
            force: whatever has changed in the configuration.
        """
        progress = self.saver.resume(say, force)
        if progress is None:
            return False
        self.step, self.seconds = progress.step, progress.seconds
        self.train.state = progress.loader
        return True

    def fit(self, log: MetricsLog | NoLog, samples: SampleLog | None = None) -> FitResult:
        """Train up to `config.steps`; return the last figures."""
        config = self.config
        window = _Window()
        figures: dict[str, float] = {}
        for module in self.modules.values():
            module.train()
        while self.step < config.steps:
            started = time.perf_counter()
            micro_batches = [next(self.batches) for _ in self.train.own_streams]
            loss, norm = self._update(micro_batches)
            self.step += 1
            if samples is not None:
                samples.record(self.step, [batch.host.keys for batch in micro_batches])
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            window.add(loss, [batch.host for batch in micro_batches], elapsed)
            # At checkpoints too, so that a resumed run's averages cover the same steps.
            if self.step % config.log_every == 0 or self._due(config.checkpoint_every):
                figures = window.figures(self.accelerator.device)
                rate = self.optimizer.param_groups[0]["lr"]
                figures = {**figures, "learning_rate": rate, "gradient_norm": norm}
                log.record(self.step, "train", figures)
                window = _Window()
            if self._due(config.validate_every) and self.validation is not None:
                figures = self.validate()
                log.record(self.step, "validation", figures)
            if self._due(config.checkpoint_every) and self.step < config.steps:
                self.save()
                log.message(f"saved step {self.step}")
        self.saver.wait()
        self.batches.close()
        return FitResult(self.step, self.seconds, figures)

    def validate(self) -> dict[str, float]:
        """Figures over the validation set."""
        assert self.validation is not None
        for module in self.modules.values():
            module.eval()
        device = self.accelerator.device
        batches = in_step(self.validation(), self.objective.idle, device)
        with torch.no_grad(), self._autocast():
            figures = self.objective.validate(batch.to(device) for batch in batches)
        self.parallel.reshard()
        for module in self.modules.values():
            module.train()
        return figures

    def save(self) -> Path:
        """Write a checkpoint of the current step."""
        position = LoaderState.merge(gather(self.batches.state))
        progress = Progress(self.step, position, self.seconds)
        return self.saver.save(progress)

    def _update(self, micro_batches: list[Staged[BatchT]]) -> tuple[float, float]:
        """One optimizer step; return the loss per term and the gradient norm before clipping."""
        device = self.accelerator.device
        terms = sum(self.objective.weight(batch.host) for batch in micro_batches)
        weight = sum_over_ranks(terms, device)
        total = 0.0
        for number, batch in enumerate(micro_batches, start=1):
            with self.parallel.batch(is_last=number == len(micro_batches)):
                with self._autocast():
                    loss = self.objective.loss(batch.on_device)
                # A batch without pictures has nothing to teach a stage that trains vision only.
                if loss.total.requires_grad:
                    self.accelerator.backward(share_of_step(loss.total, weight))
            total += loss.total.item()
        total = sum_over_ranks(total, device)
        keys = ", ".join(key for batch in micro_batches for key in batch.host.keys[:8])
        norm = clip_gradients(self.parameters, self.config.optim.clip_norm)
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise UserError(
                f"the loss of step {self.step + 1} is {total / weight}, its gradient norm {norm}; "
                f"nothing was updated; samples: {keys}; "
                "lower optim.learning_rate or look at these samples"
            )
        rate = learning_rate(self.config.optim, self.step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total / weight, norm

    def _due(self, every: int | None) -> bool:
        last = self.step == self.config.steps
        return last or (every is not None and self.step % every == 0)

    def _autocast(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context


class _Window:
    """Averages since the last log line."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.steps = self.samples = self.tokens = self.padded_tokens = 0
        self.seconds = 0.0

    def add(self, loss: float, batches: Iterable[Batch], seconds: float) -> None:
        self.loss += loss
        self.steps += 1
        for batch in batches:
            self.samples += len(batch.keys)
            self.tokens += batch.num_tokens
            self.padded_tokens += batch.padded_tokens
        self.seconds += seconds

    def figures(self, device: torch.device) -> dict[str, float]:
        counts = (self.samples, self.tokens, self.padded_tokens)
        samples, tokens, padded_tokens = (sum_over_ranks(count, device) for count in counts)
        return {
            "loss": self.loss / self.steps,
            "samples_per_s": samples / self.seconds,
            "tokens_per_s": tokens / self.seconds,
            "padding": 1 - tokens / padded_tokens,
        }
