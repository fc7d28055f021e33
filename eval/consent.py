"""What an evaluation does only if it is asked to: run programs, let a judge grade."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vlm.errors import UserError

AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code-execution",
        help="Run programs that the model wrote; docs/text_benchmarks.md says how confined.",
    ),
]
JudgeOption = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="URL|FOLDER",
        help="Grades open answers: an endpoint of OpenAI's form (key in VLM_JUDGE_API_KEY or "
        "OPENAI_API_KEY) or a model folder.",
    ),
]
JudgeModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="What the endpoint calls the judge; default: its only one."),
]


class Consent:
    """What the user agreed to, for all benchmarks of a command.

    Args:
        metrics: of all of them.
        judge: an address or a folder; judge_model: what the judge is called at the address.
    Raises:
        UserError: programs would run and may not, a judge has nothing to grade, or cannot be asked.
    """

    def __init__(
        self, metrics: Sequence[str], allow_code: bool, judge: str | None, judge_model: str | None
    ) -> None:
        from eval.judge import open_judge
        from eval.metrics.table import JUDGED, RUN_CODE
        from eval.ranks import rank
        from eval.sandbox import NOT_ALLOWED

        if not allow_code and RUN_CODE.intersection(metrics):
            raise UserError(NOT_ALLOWED)
        if judge is not None and not JUDGED.intersection(metrics):
            raise UserError("--judge has nothing to grade: no benchmark here has open answers")
        if judge is None and judge_model is not None:
            raise UserError("--judge-model is of an endpoint: give its address with --judge")
        self.allow_code = allow_code
        self.judge = None
        if judge is not None and rank() == 0:  # the process that writes the report
            self.judge = open_judge(judge, judge_model, os.environ)

    @contextmanager
    def given(self, report: Path, answerer: str) -> Iterator[None]:
        """Measure with it while this is entered.

        Args:
            report: the file of figures; judgements are kept beside it.
            answerer: what the model that answered is called in them.
        """
        from eval.judge import Grader, judged_by
        from eval.sandbox import code_execution_allowed

        with ExitStack() as entered:
            if self.allow_code:
                entered.enter_context(code_execution_allowed())
            if self.judge is not None:
                kept = report.with_suffix(".judgements.jsonl")
                entered.enter_context(judged_by(Grader(self.judge, kept, answerer)))
            yield
