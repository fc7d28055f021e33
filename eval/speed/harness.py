"""Timing two sides in turn, and the report of what was measured on which machine.

A comparison first makes sure that both sides give the same answer, then times them here and
returns rows. Its command prints them and may write them as JSON.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vlm.errors import UserError
from vlm.provenance import commit, library_versions


class Row(BaseModel):
    """One comparison: a figure of ours and of the peer, both in `unit`.

    ratio: how many times as good as the peer we are; above 1 we are ahead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    setting: str
    ours: float
    peer: float
    ratio: float
    unit: str


class SpeedReport(BaseModel):
    """What was measured, and where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: dict[str, str | int]
    rows: list[Row]


def time_in_turn(
    ours: Callable[[], object], peer: Callable[[], object], device: torch.device, repeats: int
) -> tuple[float, float]:
    """Return the median seconds of a call of each, by `take_turns`."""
    return take_turns(lambda: _seconds(ours, device), lambda: _seconds(peer, device), repeats)


def take_turns(
    ours: Callable[[], float], peer: Callable[[], float], repeats: int
) -> tuple[float, float]:
    """Return the median of the seconds that each side says it took.

    Each is called once uncounted. Then they take turns, and the side that starts alternates, so
    that whatever else slows the machine down meets both alike.
    """
    sides = (ours, peer)
    seconds: tuple[list[float], list[float]] = ([], [])
    for side in sides:
        side()
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            seconds[index].append(sides[index]())
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def time_row(name: str, setting: str, ours_s: float, peer_s: float) -> Row:
    """A row of two durations in seconds, shown in milliseconds; less is better."""
    return Row(
        name=name,
        setting=setting,
        ours=ours_s * 1000,
        peer=peer_s * 1000,
        ratio=peer_s / ours_s,
        unit="ms",
    )


def rate_row(name: str, setting: str, count: int, ours_s: float, peer_s: float, unit: str) -> Row:
    """A row of things a second, of which each side did `count`; more is better."""
    return Row(
        name=name,
        setting=setting,
        ours=count / ours_s,
        peer=count / peer_s,
        ratio=peer_s / ours_s,
        unit=unit,
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one core, as it does in a loader's workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine_facts(device: torch.device) -> dict[str, str | int]:
    """Processor, threads, accelerator, commit and library versions; nothing that names the host."""
    facts: dict[str, str | int] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "commit": commit() or "not a checkout",
        **library_versions(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda)
    return facts


def check_report_path(path: Path) -> None:
    """Make sure, before anything is measured, that a report can be written to `path`.

    Raises:
        UserError: it is a folder, or its folder cannot be made.
    """
    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"--json is {path}, needed: a file that ends in .json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"no report can be written to {path}: {error}") from error


def publish(report: SpeedReport, peer: str, path: Path | None) -> None:
    """Print the rows as a table, and write the report to `path` if there is one."""
    columns = ("", "setting", "ours", peer, "unit", "ratio")
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index in (2, 3, 5):
        table.columns[index].justify = "right"
    for row in report.rows:
        figures = (f"{row.ours:.4g}", f"{row.peer:.4g}", row.unit, f"{row.ratio:.2f}")
        table.add_row(row.name, row.setting, *figures)
    Console().print(table)
    if path is not None:
        path.write_text(report.model_dump_json(indent=2) + "\n")
        print(f"report: {path}")


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time one call; a GPU's queue is empty before and after it."""
    finish_queue(device)
    start = time.perf_counter()
    call()
    finish_queue(device)
    return time.perf_counter() - start


def finish_queue(device: torch.device) -> None:
    """Wait until a GPU has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
