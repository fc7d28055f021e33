"""Which metrics there are, by the name that a benchmark's configuration uses."""

from eval.metrics import answers
from eval.metrics.measured import Metric
from vlm.errors import UserError

# Libraries that are extras are imported when a metric measures.
METRICS: dict[str, Metric] = {
    "answers": answers.measure,
}


def find_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METRICS:
        raise UserError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[name]
