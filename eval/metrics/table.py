"""Which metrics there are, by the name that a benchmark's configuration uses."""

from eval.metrics import (
    anls,
    answers,
    bbq,
    captions,
    chair,
    choices,
    crows_pairs,
    exact,
    grades,
    gsm8k,
    humaneval,
    judged,
    mme,
    mmlu,
    mmmu,
    perplexity,
    relaxed,
    scienceqa,
    truthfulqa,
    vqa,
    yes_no,
    zero_shot,
)
from eval.metrics.measured import Metric
from vlm.errors import UserError

# Libraries that are extras are imported when a metric measures.
METRICS: dict[str, Metric] = {
    "anls": anls.measure,
    "answers": answers.measure,
    "aokvqa": vqa.measure_aokvqa,
    "bbq": bbq.measure,
    "captions": captions.measure,
    "captions_plain": captions.measure_plain,
    "captions_tokenised": captions.measure_tokenised,
    "chair": chair.measure,
    "choices": choices.measure,
    "circular": choices.measure_circular,
    "classification": zero_shot.measure_classification,
    "consistency": choices.measure_consistency,
    "crows_pairs": crows_pairs.measure,
    "exact": exact.measure,
    "gqa": exact.measure_gqa,
    "grades": grades.measure,
    "gsm8k": gsm8k.measure,
    "humaneval": humaneval.measure,
    "judged": judged.measure,
    "likelihood": choices.measure_likelihood,
    "mme": mme.measure,
    "mmlu": mmlu.measure,
    "mmmu": mmmu.measure,
    "perplexity": perplexity.measure,
    "relaxed": relaxed.measure,
    "retrieval": zero_shot.measure_retrieval,
    "scienceqa": scienceqa.measure,
    "textvqa": vqa.measure_textvqa,
    "truthfulqa": truthfulqa.measure,
    "vqa": vqa.measure,
    "yes_no": yes_no.measure,
}

# Those that run what a model wrote.
RUN_CODE = frozenset({"humaneval"})
# Metrics that a judge grades for.
JUDGED = frozenset({"judged"})


def find_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in METRICS:
        raise UserError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[name]
