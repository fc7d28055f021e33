"""Programs of a model run only when asked, end in time, and reach nothing outside their folder."""

import gzip
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from eval.benchmark import find_benchmark
from eval.formats.humaneval import samples_of
from eval.items import Answer, Item
from eval.metrics import humaneval
from eval.rules import read_answer
from eval.sandbox import Limits, Outcome, code_execution_allowed, run_programs
from vlm.errors import UserError

REAL = Path(__file__).resolve().parents[2].parent / "shared/data/text-benchmarks"
SHORT = Limits(run_s=1, kill_s=5, memory_bytes=1 << 29)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's")


def run(*programs: str, limits: Limits = SHORT) -> list[Outcome]:
    with code_execution_allowed():
        return run_programs(programs, limits)


def test_nothing_runs_unless_it_was_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--allow-code-execution"):
        run_programs([f"open({str(tmp_path / 'ran')!r}, 'w')"])
    with code_execution_allowed():
        assert run_programs([]) == []
    with pytest.raises(UserError, match="--allow-code-execution"):
        run_programs(["pass"])


def test_right_programs_pass_and_wrong_ones_say_why() -> None:
    right, wrong, broken = run("assert 1 + 1 == 2", "assert 1 == 2, 'no'", "def (")
    assert right.passed
    assert wrong.ending == "AssertionError: no"
    assert broken.ending.startswith("SyntaxError")


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise KeyboardInterrupt",
        """import os; os.write(3, b'{"token": "guess", "ending": "passed"}'); os._exit(0)""",
    ],
    ids=["exit", "_exit", "interrupt", "forged"],
)
def test_a_program_that_ends_before_its_tests_has_not_passed(program: str) -> None:
    (outcome,) = run(f"{program}\nassert False")
    assert not outcome.passed


def test_what_never_ends_is_ended() -> None:
    start = time.monotonic()
    stubborn = "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
    ways = ("while True: pass", "import time\ntime.sleep(60)")
    outcomes = run(*ways, stubborn + ways[0], limits=replace(SHORT, cpu_s=1))
    outcomes += run(stubborn + ways[1], limits=replace(SHORT, kill_s=2))
    assert [outcome.ending for outcome in outcomes] == ["timed out"] * 4
    assert time.monotonic() - start < 15  # seven seconds, on a machine that may be busy


def test_no_more_memory_or_file_than_allowed() -> None:
    hog, file = run(
        "kept = []\nwhile True: kept.append(bytearray(1 << 24))",
        "open('big', 'wb').write(bytes(1 << 21))",
    )
    assert hog.ending.startswith("MemoryError")
    assert file.ending.startswith("OSError")


REFUSED = {
    "fork": "import os\nos.fork()",
    "program": "import subprocess\nsubprocess.run(['true'])",
    "thread": "import threading\nthreading.Thread(target=print).start()",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "signal": "import os\nos.kill(os.getppid(), 9)",
    "limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    "rights": "import os\nos.chmod('.', 0o777)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_processes_networks_and_rights_are_refused(name: str) -> None:
    (outcome,) = run(REFUSED[name])
    if "network and processes" in outcome.kept:
        pytest.skip("this system has no seccomp")
    assert outcome.ending.startswith(("PermissionError", "RuntimeError", "ValueError")), outcome


def test_files_outside_its_folder_can_be_neither_written_nor_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    inside, written, read, removed = run(
        "open('own', 'w').write('x')\nassert open('own').read() == 'x'",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(secret)!r}).read()",
        f"import os\nos.remove({str(secret)!r})",
    )
    if "files" in inside.kept:
        pytest.skip("this system has no Landlock")
    assert inside.passed
    assert all(o.ending.startswith("PermissionError") for o in (written, read, removed))
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_program_sees_no_environment_and_no_input() -> None:
    os.environ["VLM_TEST_SECRET"] = "key"
    try:
        environment, words = run(
            "import os\nassert 'VLM_TEST_SECRET' not in os.environ and 'PATH' not in os.environ",
            "input()",
        )
    finally:
        del os.environ["VLM_TEST_SECRET"]
    assert environment.passed
    assert words.ending.startswith("EOFError")


def test_libraries_can_be_imported() -> None:
    (outcome,) = run("import collections, math, re, numpy\nassert numpy.ones(3).sum() == 3")
    assert outcome.passed, outcome


def test_a_program_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("open('left', 'w').write('x')", "while True: pass")[0].passed
    assert list(tmp_path.iterdir()) == []


def test_what_a_system_cannot_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child runs as on a machine whose system calls it does not know."""
    code = (Path(__file__).parents[2] / "eval/confined.py").read_text()
    code = code.replace('{"x86_64": (', '{"another": (').replace('"aarch64": (', '"one more": (')
    (tmp_path / "confined.py").write_text(code)
    monkeypatch.setattr("eval.sandbox._CHILD", tmp_path / "confined.py")
    with pytest.warns(UserWarning, match="without confinement of: network and processes"):
        (outcome,) = run("pass")
    assert outcome.passed


def humaneval_items(path: Path) -> list[Item]:
    return list(find_benchmark("humaneval").items(path))


@pytest.mark.real_data
@pytest.mark.slow
def test_the_published_solutions_pass_their_tests() -> None:
    if not REAL.is_dir():
        pytest.skip("../shared/data/text-benchmarks is not there")
    items = humaneval_items(REAL)
    answers = [Answer(item.answers[0], item.answers[0]) for item in items]
    with code_execution_allowed():
        measured = humaneval.measure(items, answers)
    failed = [i.id for i, s in zip(items, measured.item_scores, strict=True) if not s]
    assert len(items) == 164 and failed == []
    assert measured.values() == {"pass@1": 1}


@pytest.mark.real_data
@pytest.mark.slow
def test_the_published_example_samples_score_one_half() -> None:
    """The README of human-eval says 0.4999999999999999."""
    if not REAL.is_dir():
        pytest.skip("../shared/data/text-benchmarks is not there")
    (item,) = humaneval_items(REAL / "humaneval_example_problem.jsonl")
    lines = (REAL / "humaneval_example_samples.jsonl").read_text().splitlines()
    texts = [json.loads(line)["completion"] for line in lines]
    answers = [read_answer("code", item, text) for text in texts]
    with code_execution_allowed():
        measured = humaneval.measure(list(samples_of(item, len(texts))), answers)
    assert measured.values() == {"pass@1": pytest.approx(0.5, abs=1e-15)}
    assert list(measured.item_scores) == [0, 0, 0, 1, 1, 1]


def test_pass_at_10_needs_ten_samples_of_every_problem(tmp_path: Path) -> None:
    row = {
        "task_id": "one",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1",
    }
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    (item,) = humaneval_items(tmp_path)
    good, bad = Answer("    return 1\n", "    return 1\n"), Answer("", "    return 2\n")
    with code_execution_allowed():
        ten = humaneval.measure(list(samples_of(item, 10)), [good, *[bad] * 9])
        other = replace(item, id="two")
        mixed = humaneval.measure(
            [*samples_of(item, 10), *samples_of(other, 1)], [good] * 10 + [bad]
        )
    assert ten.values() == pytest.approx({"pass@1": 0.1, "pass@10": 1})
    assert mixed.values() == {"pass@1": 0.5}
