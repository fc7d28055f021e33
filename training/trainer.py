"""The training loop."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from data.batches import Row
from data.loader import Loader, LoaderState
from data.prefetch import Prefetch, Staged
from training.config import TrainConfig
from training.distributed import (
    clip_gradients,
    gather,
    max_over_ranks,
    share_of_step,
    sum_over_ranks,
)
from training.ema import Ema
from training.evaluation import Figures, Questions, Validation
from training.guards import Guards
from training.metrics import MetricsLog, NoLog
from training.objectives import Objective
from training.optim import learning_rate
from training.out_of_memory import memory_advice
from training.parallel import Parallel
from training.parts_log import PartsLog
from training.sample_log import SampleLog
from training.saver import Saver
from training.signals import RunStopped, StopSignals
from training.stages import parts_of
from training.state import Best, Progress, WholePayload
from training.summary import peak_memory_bytes
from training.utilisation import Utilisation
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

    @property
    def num_pictures(self) -> int: ...

    def to(self, device: torch.device) -> Self: ...


RowT = TypeVar("RowT", bound=Row)
BatchT = TypeVar("BatchT", bound=Batch)


@dataclass(frozen=True)
class FitResult:
    """What a run ends with: figures of the last validation, or of training without one.

    best: the step whose figure was the best, where one is looked for.
    """

    steps: int
    seconds: float
    figures: Mapping[str, float]
    best: Best | None = None


@dataclass(frozen=True)
class _Step:
    """What a step gave: loss per term; figures for the log, of which a skipped step has few."""

    loss: float
    figures: Mapping[str, float]


class Trainer(Generic[RowT, BatchT]):
    """Fit modules to an objective, with validation, checkpoints and logs.

    Args:
        modules: everything with parameters, frozen or not, by name; what a checkpoint holds.
        identity: what must not change between a checkpoint and the run that resumes it.
        questions: asked while the model learns, if any are.
        utilisation: measures the use of the device, where its peak is known.
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
        validation: Validation | None,
        identity: Mapping[str, Any],
        questions: Questions | None = None,
        utilisation: Utilisation | None = None,
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
        self.questions = questions
        self.utilisation = utilisation
        self.ema = None if config.ema is None else Ema(modules, config.ema)
        averages = {} if self.ema is None else self.ema.averages
        payload = WholePayload(modules, optimizer, averages)
        self.saver = Saver(config.out / CHECKPOINTS, payload, identity, config.keep_checkpoints)
        self.guards = Guards(config.out, config.optim.max_skipped_steps)
        self.parts_log = PartsLog(parts_of(modules))
        self.parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.step = 0
        self.resumed_from: int | None = None
        self.seconds = 0.0
        self.best: Best | None = None
        self.figures: dict[str, float] = {}

    def resume(self, say: Callable[[str], None], force: bool = False) -> bool:
        """Go on from the newest whole checkpoint; return whether there is any.

        Args:
            say: told what the user should know of it.
            force: whatever has changed in the configuration.
        """
        progress = self.saver.resume(say, force)
        if progress is None:
            return False
        self.step = self.resumed_from = progress.step
        self.seconds = progress.seconds
        self.train.state = progress.loader
        self.guards.restore(progress.guards, progress.step)
        wanted, best = self.config.keep_best, progress.best
        if wanted and best and best.figure == wanted.figure and self.saver.path(best.step).exists():
            self.best = best
        return True

    def fit(
        self,
        log: MetricsLog | NoLog,
        samples: SampleLog | None = None,
        stop: StopSignals | None = None,
    ) -> FitResult:
        """Train up to `config.steps`; return the last figures.

        Raises:
            RunStopped: `stop` has noted a signal; the step that was under way is done and saved.
            UserError: training cannot go on; the last checkpoint is whole.
        """
        config = self.config
        window = _Window(self.utilisation)
        for module in self.modules.values():
            module.train()
        device = self.accelerator.device
        with self.saver, closing(self.batches):
            while self.step < config.steps:
                self._make_step(window, samples)
                stopping = self._stops(stop) and self.step < config.steps
                save = stopping or self._due(config.checkpoint_every)
                # At checkpoints too, so that a resumed run's averages cover the same steps.
                if self._logs(self.step) or stopping:
                    figures = window.figures(device)
                    log.record(self.step, "train", figures)
                    self.figures = {name: v for name, v in figures.items() if "/" not in name}
                    window = _Window(self.utilisation)
                # Whoever is told to stop may have little time.
                if (not stopping and self._measure(log)) or save:
                    self._save(log)
                if stopping:
                    self.saver.wait()
                    raise RunStopped(self.step, self.saver.last)
        return FitResult(self.step, self.seconds, self.figures, self.best)

    def facts(self) -> dict[str, Any]:
        """What `run.json` says of the run."""
        return {
            "stage": self.config.stage,
            "step": self.step,
            "steps": self.config.steps,
            "resumed_from": self.resumed_from,
            "seconds": round(self.seconds, 3),
            "seed": self.config.seed,
            "figures": self.figures,
            "best": None if self.best is None else asdict(self.best),
            "skipped_steps": self.guards.skipped,
            "rejects": self.train.num_rejects,
            "last_checkpoint": None if self.saver.last is None else str(self.saver.last),
        }

    def validate(self) -> Figures:
        """Figures over the validation set and, where there are several, each of its sources."""
        assert self.validation is not None
        device = self.accelerator.device
        with self._measuring():
            return self.validation.figures(self.objective, device)

    def written_weights(self) -> AbstractContextManager[None]:
        """Within this context the modules hold what the model folder is to get."""
        return nullcontext() if self.ema is None else self.ema.in_place()

    def _make_step(self, window: "_Window", samples: SampleLog | None) -> None:
        started = time.perf_counter()
        hosts: list[BatchT] = []
        with memory_advice(self.step + 1, lambda: _describe(hosts), lambda: self.saver.last):
            micro_batches = [next(self.batches) for _ in self.train.own_streams]
            waited = time.perf_counter() - started
            hosts += [batch.host for batch in micro_batches]
            done = self._update(micro_batches)
        self.step += 1
        if samples is not None:
            samples.record(self.step, [batch.keys for batch in hosts])
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        window.add(done, hosts, elapsed, waited)

    def _update(self, micro_batches: list[Staged[BatchT]]) -> _Step:
        """One optimizer step, unless its gradient is no number."""
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
        mean = sum_over_ranks(total, device) / weight
        step = self.step + 1
        keys = [key for batch in micro_batches for key in batch.host.keys]
        self.guards.check_loss(step, mean, keys)
        self.guards.watch_loss(step, mean, keys)
        figures = self.parts_log.gradient_norms() if self._logs(step) else {}
        norm = clip_gradients(self.parameters, self.config.optim.clip_norm)
        rate = learning_rate(self.config.optim, self.step, self.config.steps)
        if not self.guards.check_gradient(step, norm, keys):
            self.optimizer.zero_grad()
            return _Step(mean, {"learning_rate": rate, "skipped_steps": self.guards.skipped})
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()
        figures = {"learning_rate": rate, "gradient_norm": norm, **figures}
        if self._logs(step):
            figures |= self.parts_log.gates()
        return _Step(mean, figures)

    def _measure(self, log: MetricsLog | NoLog) -> bool:
        """Validate and ask what is due; return whether this step is the best so far."""
        config = self.config
        found: Figures = {}
        if self.validation is not None and self._due(config.validate_every):
            found |= self.validate()
            self.figures = dict(found["validation"])
        if self.questions is not None and config.evaluate and self._due(config.evaluate.every):
            with self._measuring():
                found |= self.questions.figures()
            self.figures |= {"question_accuracy": found["evaluation"]["accuracy"]}
        for split, figures in found.items():
            log.record(self.step, split, figures)
        return self._is_best(found)

    def _is_best(self, found: Figures) -> bool:
        wanted = self.config.keep_best
        if wanted is None or wanted.figure.partition("/")[0] not in found:
            return False
        figures = {f"{split}/{k}": v for split, values in found.items() for k, v in values.items()}
        if wanted.figure not in figures:
            raise UserError(
                f"keep_best.figure {wanted.figure} is not measured; there are {', '.join(figures)}"
            )
        value, sign = figures[wanted.figure], 1 if wanted.mode == "max" else -1
        if self.best is not None and sign * value <= sign * self.best.value:
            return False
        self.best = Best(self.step, wanted.figure, value)
        return True

    def _save(self, log: MetricsLog | NoLog) -> None:
        """Begin to write a checkpoint; the last step needs none, for its model is written."""
        if self.step == self.config.steps:
            return
        position = LoaderState.merge(gather(self.batches.state))
        self.saver.save(Progress(self.step, position, self.seconds, self.best, self.guards.state))
        log.message(f"saving step {self.step} in {self.saver.path(self.step)}")

    def _stops(self, stop: StopSignals | None) -> bool:
        """Whether any rank was told to stop. Raises what kept any of them from saving."""
        told = stop is not None and stop.received is not None
        state = max_over_ranks(2 if self.saver.failed else int(told), self.accelerator.device)
        if state == 2:
            self.saver.wait()
        return state > 0

    def _logs(self, step: int) -> bool:
        """Whether the figures of a step are recorded."""
        config = self.config
        every = [config.log_every, config.checkpoint_every]
        if config.keep_best is not None:  # where the best is found, it is saved
            every.append(config.validate_every)
            every.append(None if config.evaluate is None else config.evaluate.every)
        return any(self._due(each, step) for each in every)

    def _due(self, every: int | None, step: int | None = None) -> bool:
        step = self.step if step is None else step
        return step == self.config.steps or (every is not None and step % every == 0)

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """Within this context nothing is learnt, and the modules hold what would be written."""
        for module in self.modules.values():
            module.eval()
        with torch.no_grad(), self._autocast(), self.written_weights():
            yield
        self.parallel.reshard()
        for module in self.modules.values():
            module.train()

    def _autocast(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context


@dataclass
class _Window:
    """Sums since the last log line, and what the last step gave."""

    utilisation: Utilisation | None
    loss: float = 0.0
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    pictures: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    flops: float = 0.0
    last: Mapping[str, float] = field(default_factory=dict)

    def add(self, step: _Step, batches: Iterable[Batch], seconds: float, waited_s: float) -> None:
        self.loss += step.loss
        self.steps += 1
        for batch in batches:
            self.samples += len(batch.keys)
            self.tokens += batch.num_tokens
            self.padded_tokens += batch.padded_tokens
            self.pictures += batch.num_pictures
            if self.utilisation is not None:
                self.flops += self.utilisation.flops.of(batch).model
        self.seconds += seconds
        self.waited_s += waited_s
        self.last = step.figures

    def figures(self, device: torch.device) -> dict[str, float]:
        counts = (self.samples, self.tokens, self.padded_tokens, self.pictures)
        samples, tokens, padded_tokens, pictures = (sum_over_ranks(n, device) for n in counts)
        figures = {
            "loss": self.loss / self.steps,
            "samples_per_s": samples / self.seconds,
            "tokens_per_s": tokens / self.seconds,
            "pictures_per_s": pictures / self.seconds,
            "padding": 1 - tokens / padded_tokens,
            "data_wait": self.waited_s / self.seconds,
            "memory_gb": peak_memory_bytes() / 1e9,
            **self.last,
        }
        if self.utilisation is not None:
            figures["mfu"] = self.flops / (self.utilisation.peak * self.seconds)
        return figures


def _describe(batches: Sequence[Batch]) -> str:
    tokens = sum(batch.padded_tokens for batch in batches)
    pictures = sum(batch.num_pictures for batch in batches)
    return f"{len(batches)} batch(es), {tokens:,} text tokens, {pictures:,} pictures"
