"""Which metrics there are, by the name that a benchmark's configuration uses."""

from importlib import import_module

from eval.metrics.measured import Metric
from vlm.errors import UserError

# Where each is; loaded when used, for some need libraries that are extras.
METRICS = {
    "answers": "eval.metrics.answers:measure",
    "vqa": "eval.metrics.vqa:measure",
    "textvqa": "eval.metrics.vqa:measure_textvqa",
    "aokvqa": "eval.metrics.vqa:measure_aokvqa",
    "exact": "eval.metrics.exact:measure",
    "gqa": "eval.metrics.exact:measure_gqa",
    "anls": "eval.metrics.anls:measure",
    "relaxed": "eval.metrics.relaxed:measure",
    "yes_no": "eval.metrics.yes_no:measure",
    "mme": "eval.metrics.mme:measure",
    "choices": "eval.metrics.choices:measure",
    "likelihood": "eval.metrics.choices:measure_likelihood",
    "circular": "eval.metrics.choices:measure_circular",
    "consistency": "eval.metrics.choices:measure_consistency",
    "mmmu": "eval.metrics.mmmu:measure",
    "scienceqa": "eval.metrics.scienceqa:measure",
    "grades": "eval.metrics.grades:measure",
    "captions": "eval.metrics.captions:measure",
    "captions_plain": "eval.metrics.captions:measure_plain",
    "captions_tokenised": "eval.metrics.captions:measure_tokenised",
    "chair": "eval.metrics.chair:measure",
    "perplexity": "eval.metrics.perplexity:measure",
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
