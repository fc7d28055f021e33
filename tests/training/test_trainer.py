"""The loop: accumulation, clipping, a stop before a bad update, logging, learning."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.collate import ChatBatch, collate_chats
from data.encode import ChatRows
from data.loader import LoaderState
from data.schema import Sample
from training.config import TrainConfig
from training.metrics import METRICS_FILE, MetricsLog, read_metrics
from training.optim import build_optimizer, learning_rate
from training.setup import Setup, build_accelerator, build_setup
from training.stages import freeze, parts_of
from training.trainer import Trainer
from vlm.errors import UserError

MakeConfig = Callable[..., TrainConfig]


class Batches:
    """A loader of given batches, over and over."""

    def __init__(self, batches: Iterable[Any], per_step: int) -> None:
        self.given = list(batches)
        self.state = LoaderState.start(1)
        self.own_streams = range(per_step)

    def batches(self) -> Iterable[Any]:
        while True:
            yield from self.given


def make_trainer(
    config: TrainConfig,
    batches: Iterable[Any] | None = None,
    optimizer: Callable[[list[Any]], torch.optim.Optimizer] | None = None,
    setup: Setup | None = None,
) -> Trainer[Any, Any]:
    torch.manual_seed(config.seed)
    setup = setup or build_setup(config)
    parts = parts_of(setup.modules)
    freeze(setup.stage, parts)
    parameters = [parameter for part in parts.values() for parameter in part.values()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    loader: Any = setup.train if batches is None else Batches(batches, config.batches_per_step or 1)
    return Trainer(
        config,
        build_accelerator(config),
        setup.modules,
        setup.objective,
        optimizer(trained) if optimizer else build_optimizer(setup.modules.values(), config.optim),
        loader,
        setup.validation if batches is None else None,
        {},
    )


def plain_descent(parameters: list[Any]) -> torch.optim.Optimizer:
    """Steps that are the gradients themselves."""
    return torch.optim.SGD([{"params": parameters, "rate_factor": 1.0}], lr=1.0)


def fit(trainer: Trainer[Any, Any], folder: Path) -> list[dict[str, Any]]:
    with MetricsLog(folder, "test", trainer.config.steps, trainer.step) as log:
        trainer.fit(log)
    return read_metrics(folder / METRICS_FILE)


def weights(trainer: Trainer[Any, Any]) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": tensor.clone()
        for component, module in trainer.modules.items()
        for name, tensor in module.state_dict().items()
    }


def chat_batch(setup: Setup, keys: list[int]) -> ChatBatch:
    samples = list(setup.train.sources[0].read_all())
    encode = setup.train.reader.encode
    rows = [encode(samples[key], random.Random(0)) for key in keys]
    return collate_chats(rows, setup.processor.tokenizer.pad_id)


def test_two_accumulated_batches_give_the_gradient_of_one_large_batch(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    moved = []
    for count in (1, 2):
        config = stage_config(
            "finetune",
            tmp_path,
            steps=1,
            batches_per_step=count,
            optim={"learning_rate": 1.0, "warmup_steps": 1, "clip_norm": 1e9},
        )
        torch.manual_seed(0)
        setup = build_setup(config)
        large = chat_batch(setup, [0, 1, 2, 3])
        small = [chat_batch(setup, [0]), chat_batch(setup, [1, 2, 3])]
        assert small[0].loss_mask.sum() != small[1].loss_mask.sum()
        trainer = make_trainer(config, [large] if count == 1 else small, plain_descent, setup)
        before = weights(trainer)
        (record,) = fit(trainer, tmp_path / str(count))
        after = weights(trainer)
        moved.append((record["loss"], {name: after[name] - before[name] for name in before}))
    (loss, step), (other_loss, other_step) = moved
    assert loss == pytest.approx(other_loss, rel=1e-6)
    # Sums of float32 in another order, rounded once more when added to the weights: 1e-6 of the
    # size of the whole gradient.
    flat, other = (torch.cat([t.flatten() for t in s.values()]) for s in (step, other_step))
    assert flat.norm() > 0.1
    assert (flat - other).norm() <= 1e-6 * flat.norm()


def test_one_batch_can_be_overfitted(stage_config: MakeConfig, tmp_path: Path) -> None:
    config = stage_config(
        "finetune", tmp_path, steps=80, optim={"learning_rate": 1e-2, "warmup_steps": 5}
    )
    setup = build_setup(config)
    batch = chat_batch(setup, [0])
    records = fit(make_trainer(config, [batch], setup=setup), tmp_path / "run")
    assert records[0]["loss"] > 2
    assert records[-1]["loss"] < 0.05
    with torch.no_grad():
        assert setup.objective.validate([batch])["turn_accuracy"] == 1.0


def test_the_gradient_is_clipped_to_the_norm_and_logged_as_it_was(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    optim = {"learning_rate": 1.0, "warmup_steps": 1, "clip_norm": 0.01}
    config = stage_config("finetune", tmp_path, steps=1, optim=optim)
    trainer = make_trainer(config, optimizer=plain_descent)
    before = weights(trainer)
    records = fit(trainer, tmp_path / "run")
    after = weights(trainer)
    step = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert records[0]["gradient_norm"] > 0.1


def test_the_logged_rate_is_the_one_that_the_step_used(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("text", tmp_path, steps=5)
    records = fit(make_trainer(config), tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    rates = [learning_rate(config.optim, step, 5) for step in range(5)]
    assert [record["learning_rate"] for record in records] == rates


def test_figures_of_a_line_are_averages_since_the_line_before(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    single = fit(make_trainer(stage_config("text", tmp_path, steps=5)), tmp_path / "single")
    config = stage_config("text", tmp_path, steps=5, log_every=2)
    records = fit(make_trainer(config), tmp_path / "pairs")
    losses = [record["loss"] for record in single]
    means = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [record["loss"] for record in records] == pytest.approx(means)
    assert [record["step"] for record in records] == [2, 4, 5]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("weights", "the loss of step 1 is nan"),
        ("gradient", r"the gradient norm of step 1 is (inf|nan), and 1 step\(s\) in a row"),
    ],
)
def test_a_loss_or_gradient_that_is_no_number_stops_before_the_update(
    where: str, message: str, stage_config: MakeConfig, tmp_path: Path
) -> None:
    optim = {"learning_rate": 1e-2, "warmup_steps": 2, "max_skipped_steps": 1}
    config = stage_config("finetune", tmp_path, optim=optim)
    setup = build_setup(config)
    batch = chat_batch(setup, [0, 1])
    trainer = make_trainer(config, [batch], setup=setup)
    parameter = trainer.parameters[-1]
    if where == "weights":
        parameter.data.fill_(float("nan"))
    else:
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = weights(trainer)
    with pytest.raises(UserError, match=f"{message}.*nothing was updated") as caught:
        fit(trainer, tmp_path / "run")
    assert all(key in str(caught.value) for key in batch.keys)
    after = weights(trainer)
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)
    assert trainer.step == 0


def test_a_huge_learning_rate_ends_in_one_clear_sentence(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    optim = {"learning_rate": 1e38, "warmup_steps": 1}
    trainer = make_trainer(stage_config("text", tmp_path, steps=20, optim=optim))
    with pytest.raises(UserError, match=r"lower optim\.learning_rate"):
        fit(trainer, tmp_path / "run")


def test_a_batch_without_pictures_leaves_align_as_it_is_and_counts(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("align", tmp_path, steps=1)
    setup = build_setup(config)
    batch = text_only(setup)
    trainer = make_trainer(config, [batch], setup=setup)
    before = weights(trainer)
    (record,) = fit(trainer, tmp_path / "run")
    after = weights(trainer)
    assert record["loss"] > 0 and record["gradient_norm"] == 0
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_text_and_pictures_train_together(stage_config: MakeConfig, tmp_path: Path) -> None:
    config = stage_config("align", tmp_path, steps=1, batches_per_step=2)
    setup = build_setup(config)
    batches = [text_only(setup), chat_batch(setup, [0, 1])]
    (record,) = fit(make_trainer(config, batches, setup=setup), tmp_path / "run")
    assert record["gradient_norm"] > 0


def text_only(setup: Setup) -> ChatBatch:
    content = [{"type": "text", "text": "How many red circles are there?"}]
    messages = [{"role": role, "content": content} for role in ("user", "assistant")]
    sample = Sample.parse({"messages": messages})
    example = setup.processor.encode(sample.messages)
    return collate_chats([ChatRows("text", (example,))], setup.processor.tokenizer.pad_id)


def test_validation_runs_when_due_and_at_the_end(stage_config: MakeConfig, tmp_path: Path) -> None:
    config = stage_config("align", tmp_path, steps=5, validate_every=2, log_every=5)
    trainer = make_trainer(config)
    records = fit(trainer, tmp_path / "run")
    assert [(record["step"], record["split"]) for record in records] == [
        (2, "validation"),
        (4, "validation"),
        (5, "train"),
        (5, "validation"),
    ]
    assert set(records[-1]) == {"step", "split", "loss", "token_accuracy", "turn_accuracy"}
    assert all(module.training for module in trainer.modules.values())


def test_bf16_autocast_trains_weights_that_stay_float32(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    losses = {}
    for precision in ("fp32", "bf16", "fp32"):  # stages of one process may differ
        config = stage_config("finetune", tmp_path, steps=2, precision=precision)
        trainer = make_trainer(config)
        records = fit(trainer, tmp_path / precision)
        losses[precision] = [record["loss"] for record in records if record["split"] == "train"]
        assert {tensor.dtype for tensor in weights(trainer).values()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    # bf16 keeps 8 bits: two to three digits of the loss agree in the first steps.
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["encoder", "finetune"])
def test_a_gpu_trains_in_bf16_by_itself(
    stage: Any, stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config(stage, tmp_path, device="cuda")
    trainer = make_trainer(config)
    for module in trainer.modules.values():
        module.cuda()
    assert trainer.accelerator.mixed_precision == "bf16"
    records = fit(trainer, tmp_path / "run")
    assert [record["split"] for record in records] == ["train"] * 3 + ["validation"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_asking_for_a_gpu_that_is_not_there_is_one_sentence(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no CUDA device; set device=auto or cpu"):
        build_accelerator(stage_config("text", tmp_path, device="cuda"))
