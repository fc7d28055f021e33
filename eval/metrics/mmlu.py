"""MMLU's figures: of all questions, of the four fields, and the mean of the subjects.

Source: D. Hendrycks et al., Measuring Massive Multitask Language Understanding (2021), and
https://github.com/hendrycks/test, categories.py, whose fields these are. A field counts each of its
questions alike; lm-evaluation-harness does so too, but puts anatomy among the sciences.
"""

from collections.abc import Sequence

import numpy as np

from eval.items import Answer, Item
from eval.metrics.measured import Array, Measured, divide

FIELDS = {
    "STEM": (
        "abstract_algebra astronomy college_biology college_chemistry college_computer_science "
        "college_mathematics college_physics computer_security conceptual_physics "
        "electrical_engineering elementary_mathematics high_school_biology high_school_chemistry "
        "high_school_computer_science high_school_mathematics high_school_physics "
        "high_school_statistics machine_learning"
    ).split(),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history "
        "high_school_world_history international_law jurisprudence logical_fallacies "
        "moral_disputes moral_scenarios philosophy prehistory professional_law world_religions"
    ).split(),
    "social sciences": (
        "econometrics high_school_geography high_school_government_and_politics "
        "high_school_macroeconomics high_school_microeconomics high_school_psychology "
        "human_sexuality professional_psychology public_relations security_studies sociology "
        "us_foreign_policy"
    ).split(),
    "other": (
        "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging "
        "management marketing medical_genetics miscellaneous nutrition professional_accounting "
        "professional_medicine virology"
    ).split(),
}


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`accuracy` of all questions, `mean of subjects`, and each field's accuracy."""
    subjects = sorted({item.type for item in items})
    place = {subject: index for index, subject in enumerate(subjects)}
    scores = np.array([a.choice in i.correct for i, a in zip(items, answers, strict=True)], float)
    member = np.zeros((len(items), len(subjects)))
    member[np.arange(len(items)), [place[item.type] for item in items]] = 1
    fields = {
        name: [place[subject] for subject in members if subject in place]
        for name, members in FIELDS.items()
    }

    def figures(sums: Array) -> dict[str, Array]:
        right, count = sums[..., : len(subjects)], sums[..., len(subjects) :]
        shares = divide(right, count)
        # A resample may hold no question of a subject.
        asked = count > 0
        mean = divide(np.where(asked, shares, 0).sum(axis=-1), asked.sum(axis=-1))
        return {
            "accuracy": divide(right.sum(axis=-1), count.sum(axis=-1)),
            "mean of subjects": mean,
            **{
                name: divide(right[..., columns].sum(axis=-1), count[..., columns].sum(axis=-1))
                for name, columns in fields.items()
            },
        }

    return Measured(
        item_scores=scores,
        unit=np.arange(len(items)),
        statistics=np.concatenate([member * scores[:, None], member], axis=1),
        figures=figures,
    )
