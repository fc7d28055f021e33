"""What a rehearsal predicts, against what torch's allocators really give out during the step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from training.config import TrainConfig
from training.dry_run import make_plan
from training.memory import recompute_blocks
from training.optim import build_optimizer
from training.rehearsal import LiveMemory, StepMemory
from training.run import train_stage
from training.setup import build_accelerator, build_setup
from training.stages import freeze, parts_of

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")
# A model whose step takes megabytes: of what a step takes, the small change of the libraries is
# then nothing.
SHAPE = {
    "vision": {"hidden_size": 64, "intermediate_size": 128},
    "decoder": {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 2000},
}


@pytest.fixture(scope="module")
def wide_config(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """`make_config` of a wider model, with untrained parents of its shape."""
    folder = tmp_path_factory.mktemp("wide")
    plain = make_config("text", folder / "x").model.model_dump()
    model = {
        name: {**section, **SHAPE.get(name, {})} if isinstance(section, dict) else section
        for name, section in plain.items()
    }
    del model["decoder"]["head_size"]
    one: dict[str, Any] = {"model": model, "steps": 1}
    train_stage(make_config("text", folder / "text", **one))
    plain_tower = make_config("encoder", folder / "x").contrastive
    assert plain_tower is not None
    tower = {"text_tower": {**plain_tower.text_tower.model_dump(), "vocab_size": 512}}
    start = {"tokenizer": folder / "text"}
    train_stage(
        make_config("encoder", folder / "encoder", init_from=start, contrastive=tower, **one)
    )
    start = {"decoder": folder / "text", "encoder": folder / "encoder"}
    train_stage(make_config("align", folder / "align", init_from=start, **one))
    starts: dict[str, Any] = {
        "text": {},
        "encoder": {"init_from": {"tokenizer": folder / "text"}, "contrastive": tower},
        "align": {"init_from": start},
        "finetune": {"init_from": {"model": folder / "align"}},
    }

    def make(stage: Any, out: Path, **changes: Any) -> TrainConfig:
        return make_config(stage, out, **{"model": model, **starts[stage], **changes})

    return make


def real_step(config: TrainConfig) -> tuple[int, Callable[[], None]]:
    """Bytes that a real run holds between steps, and a step on its first batch."""
    setup = build_setup(config)
    freeze(setup.stage, parts_of(setup.modules))
    recompute_blocks(setup.modules, config.memory)
    optimizer = build_optimizer(setup.modules.values(), config.optim)
    accelerator = build_accelerator(config)
    trained = [p for m in setup.modules.values() for p in m.parameters() if p.requires_grad]
    batch = next(setup.train.batches()).to(accelerator.device)
    for module in setup.modules.values():
        module.to(accelerator.device)

    def step() -> None:
        for _ in range(config.batches_per_step or 1):
            with accelerator.autocast():
                total = setup.objective.loss(batch).total
            total.backward()
            del total
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()  # the optimizer's states are made
    tensors = [t for module in setup.modules.values() for t in module.state_dict().values()]
    tensors += [t for state in optimizer.state.values() for t in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors), step


def allocated_peak(step: Callable[[], None]) -> int:
    """The most that the CPU's allocator has given out at once during a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = recorded.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    now = peak = 0
    for _, num_bytes in sorted(changes, key=lambda change: change[0]):
        now += num_bytes
        peak = max(peak, now)
    return peak


CASES = {
    "text": ("text", {}),
    "encoder": ("encoder", {}),
    "align": ("align", {}),
    "finetune": ("finetune", {}),
    "accumulated": ("finetune", {"batches_per_step": 3}),
    "packed": ("finetune", {"data": {"packing": True, "max_tokens": 300}}),
    "bf16": ("finetune", {"precision": "bf16"}),
    "muon": ("finetune", {"optim": {"kind": "muon"}}),
    "8bit": ("finetune", {"optim": {"state": "8bit"}}),
    "text recomputed": ("text", {"memory": {"recompute": ["decoder"]}}),
    "align recomputed": ("align", {"memory": {"recompute": ["decoder"]}}),
    "finetune recomputed": ("finetune", {"memory": {"recompute": ["encoder", "decoder"]}}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_peak_predicted_is_the_peak_measured(
    case: str, wide_config: MakeConfig, tmp_path: Path
) -> None:
    stage, changes = CASES[case]
    config = wide_config(stage, tmp_path / "out", **changes)
    predicted = make_plan(config).memory
    torch.manual_seed(config.seed)
    held, step = real_step(config)
    assert predicted.weights + predicted.optimizer == pytest.approx(held, rel=1e-3)
    measured = held + allocated_peak(step)
    assert predicted.peak == pytest.approx(measured, rel=0.15)


def test_recomputing_is_predicted_to_need_less(wide_config: MakeConfig, tmp_path: Path) -> None:
    found = [
        make_plan(wide_config("finetune", tmp_path / "out", memory=memory)).memory
        for memory in ({}, {"recompute": ["encoder", "decoder"]})
    ]
    assert found[1].activations < 0.6 * found[0].activations
    assert found[1].peak < found[0].peak and found[1].weights == found[0].weights


def test_only_what_is_alive_is_counted() -> None:
    live = LiveMemory(CPU)
    with live:
        first = torch.zeros(1000)
        second = first.view(10, 100) + 1
        assert live.now == 8000
        del first
        assert live.now == 4000 and live.peak == 8000
        del second
    assert live.now == 0


def test_several_devices_share_what_is_sharded_and_copy_what_is_not() -> None:
    memory = StepMemory(
        weights=800, gradients=800, optimizer=1600, activations=300, peak=3500, gathered=50
    )
    assert memory.on_each_of(1, sharded=True) == memory.on_each_of(1, sharded=False) == 3500
    assert memory.on_each_of(8, sharded=False) == 3500 + 800
    assert memory.on_each_of(8, sharded=True) == 3200 // 8 + 50 + 300
    assert memory.on_each_of(2, sharded=True) == 1600 + 50 + 300


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_the_peak_predicted_is_that_of_cudas_allocator(
    case: str, wide_config: MakeConfig, tmp_path: Path
) -> None:
    stage, changes = CASES[case]
    config = wide_config(stage, tmp_path / "out", device="cuda", **changes)
    predicted = make_plan(config).memory
    torch.cuda.empty_cache()
    _, step = real_step(config)
    torch.cuda.reset_peak_memory_stats()
    step()
    assert predicted.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.15)
