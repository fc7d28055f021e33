"""HumanEval: whether a program passes its tests, and pass@k.

Source: M. Chen et al., Evaluating Large Language Models Trained on Code (2021),
https://arxiv.org/abs/2107.03374, section 2.1.
"""

import re
from collections.abc import Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Measured, divide, units_of
from eval.sandbox import run_programs

KS = (1, 10, 100)


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`pass@1`, and `pass@10`, `pass@100` where every problem was answered so often.

    Answers to one problem are a group.

    Raises:
        UserError: programs were not allowed to run.
    """
    programs = [program(item, answer.value) for item, answer in zip(items, answers, strict=True)]
    passed = np.array([outcome.passed for outcome in run_programs(programs)], dtype=float)
    unit = units_of(items)
    samples, right = np.bincount(unit), np.bincount(unit, passed)
    ks = [k for k in KS if k <= samples.min()]
    columns = [[pass_at_k(n, int(c), k) for k in ks] for n, c in zip(samples, right, strict=True)]
    return Measured(
        item_scores=passed,
        unit=unit,
        statistics=np.concatenate([np.array(columns), np.ones((len(samples), 1))], axis=1),
        figures=lambda sums: {
            f"pass@{k}": divide(sums[..., place], sums[..., -1]) for place, k in enumerate(ks)
        },
    )


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The chance that one of k samples passes, estimated from more of them without bias.

    1 - C(n - c, k) / C(n, k), as a product, so that no large number is divided by another.
    """
    assert num_samples >= k
    failed = num_samples - num_passed
    if failed < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(failed + 1, num_samples + 1)))


def program(item: Item, answer: str) -> str:
    """The problem, its answer and its tests as one program.

    An answer goes on where the problem ends, or is the whole function again, as chats write it.
    """
    prompt, test, name = (item.facts[key] for key in ("prompt", "test", "entry_point"))
    whole = re.search(rf"^def {re.escape(name)}\b", answer, re.MULTILINE)
    joint = "\n" if whole else ""
    return f"{prompt}{joint}{answer}\n{test}\ncheck({name})"
