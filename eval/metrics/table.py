"""Which metrics there are, by the name that a benchmark's configuration uses."""

from importlib import import_module

from eval.metrics.measured import Metric
from vlm.errors import UserError

# Where each is; loaded when used, for some need libraries that are extras.
METRICS = {
    "answers": "eval.metrics.answers:measure",
    "bbq": "eval.metrics.bbq:measure",
    "crows_pairs": "eval.metrics.crows_pairs:measure",
    "gsm8k": "eval.metrics.gsm8k:measure",
    "humaneval": "eval.metrics.humaneval:measure",
    "judged": "eval.metrics.judged:measure",
    "mmlu": "eval.metrics.mmlu:measure",
    "perplexity": "eval.metrics.perplexity:measure",
    "truthfulqa": "eval.metrics.truthfulqa:measure",
}


def find_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UserError: there is none of that name, or a library that it needs is missing.
    """
    if name not in METRICS:
        raise UserError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    module, _, function = METRICS[name].partition(":")
    metric: Metric = getattr(import_module(module), function)
    return metric
