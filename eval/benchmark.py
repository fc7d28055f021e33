"""A benchmark as data: files, prompt, decoding, the rule that reads an answer, the metrics."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from eval.conditions import Attack, Condition, Corruption
from eval.corruptions import corrupted
from eval.files import Files
from eval.formats.table import find_reader
from eval.items import Item
from vlm.config import PACKAGE_ROOT, load_config
from vlm.errors import UserError

CONFIGS = PACKAGE_ROOT / "configs" / "eval"

Rule = Literal[
    "text", "first_line", "yes_no", "letter", "choice", "number", "code",
    "pope", "mme", "scienceqa", "mmbench", "mmmu",
]  # fmt: skip
Ask = Literal["generate", "choose", "perplexity", "classify", "retrieve"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Decoding(_Section):
    """How an answer is generated; greedy, so that there is no seed.

    max_tokens: an answer is cut off there.
    stop: it ends before the first of these.
    """

    max_tokens: PositiveInt = 32
    stop: tuple[str, ...] = ()


class FewShot(_Section):
    """Examples that are shown, answered, before the question.

    num_examples: of each item, drawn from the examples' files by `seed` and the item's id.
    files: as those of the benchmark; of the same format. None: the benchmark's own items, of which
        an item never shows itself, nor another of its pictures or its group.
    by_type: only examples of the item's type (MMLU's subjects).
    first: the first so many in the order of the file, instead of drawn ones.
    """

    num_examples: PositiveInt
    files: dict[str, str] | None = None
    seed: int = 0
    by_type: bool = False
    first: bool = False


class Source(_Section):
    """Where a benchmark comes from.

    homepage, paper: pages. licence: of its data.
    get: what to download from there, and how to lay it out, in words.
    hub: a data set of the Hugging Face hub (`owner/name`) that holds `files` as they are named.
    """

    homepage: str
    paper: str | None = None
    licence: str | None = None
    get: str
    hub: str | None = None


class BenchmarkConfig(_Section):
    """What makes a number of a benchmark comparable.

    name: of the file, and of results. title: for people.
    format: the reader of its files (eval/formats/table.py); options: the reader's own.
    files: what the reader calls each file, and its path in the data folder, a glob pattern; or
        several, with ` | ` between them, of which the first that matches is taken.
    optional_files: those that need not be there.
    only_with_pictures: leave out items whose pictures are not there, for a part of the files.
    ask: `generate` an answer; `choose` the likeliest of the choices; `perplexity` of the question
        as a text. Of the encoder stage's folders (eval/zero_shot.py): `classify` a picture among
        the choices; `retrieve` a picture's answers, and it by them.
    templates: of `classify`: texts with {class} in braces, whose mean stands for a class.
    chat: through the model's chat template; off, the prompt is raw text that is continued, as for
        a model that was trained on text alone.
    prompt: with {question}, {options} and the item's fields in braces.
    system: a system message.
    choose_by: what is scored of a choice: its `letter`, or its `text`.
    normalise: choose by the log probability as it is (`none`), divided by the `tokens` or by the
        `characters` of a choice.
    header: raw text only, once before the examples; may have the item's fields in braces.
    answer_prefix: raw text only, stands between the prompt and the answer ("Answer:").
    answer_lead: raw text only, what each choice, and each example's answer, begins with.
    image_tags: `<image 1>` in a prompt is the place of the item's first picture.
    rule: how a written answer is read (eval/rules.py).
    circular: ask a question with n choices n times, each time with the choices rotated by one.
    corruption, attack: what is done to the pictures first, one after the other
        (eval/conditions.py).
    metrics: the first one's first figure is the headline (eval/metrics/table.py).
    baselines: `blind` is the same model without pictures, `majority` the most frequent answer of
        the item's type.
    num_items: how many the published files have; a report of fewer says so.
    """

    name: str
    title: str
    source: Source
    format: str
    options: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    optional_files: tuple[str, ...] = ()
    only_with_pictures: bool = False
    ask: Ask = "generate"
    templates: tuple[str, ...] = ()
    chat: bool = True
    prompt: str = "{question}"
    system: str | None = None
    choose_by: Literal["letter", "text"] = "text"
    normalise: Literal["none", "tokens", "characters"] = "none"
    header: str = ""
    answer_prefix: str = ""
    answer_lead: str = " "
    image_tags: bool = False
    decoding: Decoding = Decoding()
    rule: Rule = "text"
    few_shot: FewShot | None = None
    circular: bool = False
    corruption: Corruption | None = None
    attack: Annotated[Attack, Field(discriminator="kind")] | None = None
    metrics: tuple[str, ...] = Field(min_length=1)
    baselines: tuple[Literal["blind", "majority"], ...] = ("blind", "majority")
    num_items: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.chat and (self.answer_prefix or self.header):
            raise ValueError("header and answer_prefix are for raw text: set chat to false")
        if self.system is not None and not self.chat:
            raise ValueError("system is a message: set chat to true, or put it into the prompt")
        if bool(self.templates) != (self.ask == "classify"):
            raise ValueError("templates and ask: classify belong together")
        if any("{class}" not in template for template in self.templates):
            raise ValueError("templates: each needs {class} where a class's name stands")
        if self.attack is not None and not (self.chat and self.few_shot is None):
            raise ValueError("an attack is on what is asked alone: needed are chat and no few_shot")
        if self.attack is not None and self.ask == "perplexity":
            raise ValueError("an attack is on pictures, which ask: perplexity does not show")
        unknown = set(self.optional_files) - set(self.files)
        if unknown:
            raise ValueError(f"optional_files has {sorted(unknown)[0]!r}, which files has not")
        return self

    def under(self, condition: Condition) -> Self:
        """The same benchmark under a condition, without baselines, which no condition changes.

        Raises:
            UserError: it has another one already, or does not suit.
        """
        part = "corruption" if isinstance(condition, Corruption) else "attack"
        if getattr(self, part) is not None:
            raise UserError(f"{self.name} has the setting {part} already; ask for one of them")
        settings = {**self.model_dump(), "baselines": (), part: condition.model_dump()}
        try:
            return type(self).model_validate(settings)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"{self.name} under {condition.label}: {reason}") from None

    def open(self, data: Path, names_only: bool = False) -> Files:
        """The benchmark's files in a folder.

        Args:
            names_only: pictures need not be there.
        Raises:
            UserError: one is missing; says what is needed and where it comes from.
        """
        return Files(
            data,
            self.files,
            self.optional_files,
            self.source.get,
            self.name,
            self.only_with_pictures,
            names_only,
        )

    def examples(self, data: Path) -> list[Item]:
        """The items that may be shown as examples.

        Raises:
            UserError: their files are missing.
        """
        if self.few_shot is None:
            return []
        if self.few_shot.files is None:
            return list(self.items(data))
        wanted = {**self.files, **self.few_shot.files}
        files = Files(data, wanted, self.optional_files, self.source.get, self.name)
        return list(find_reader(self.format)(files, self.options))

    def items(
        self, data: Path, left_out: list[str] | None = None, names_only: bool = False
    ) -> Iterator[Item]:
        """Read the items in the order of their files, with circular copies.

        An item that is in a group is one of the copies already: published files may hold them.

        Args:
            left_out: gets the ids of those that `only_with_pictures` leaves out.
            names_only: pictures need not be there, for what only scores answers.
        Raises:
            UserError: a file, or a picture that is not to be left out, is missing, or a file is
                not of the format.
        """
        seen: set[str] = set()
        files = self.open(data, names_only)
        for read in find_reader(self.format)(files, self.options):
            if any(picture.name in files.absent for picture in read.images):
                if left_out is not None:
                    left_out.append(read.id)
                continue
            item = corrupted(read, self.corruption)
            alone = not self.circular or item.group is not None
            for copy in (item,) if alone else circular_copies(item):
                if copy.id in seen:
                    raise UserError(f"{self.name}: two items have the id {copy.id!r}")
                seen.add(copy.id)
                yield copy


def circular_copies(item: Item) -> Iterator[Item]:
    """The item with its choices rotated by 0, 1, ... n - 1, all in one group.

    Source: MMBench's CircularEval, https://arxiv.org/abs/2307.06281, section 4.1.
    """
    n = len(item.choices)
    if n < 2:
        raise UserError(f"item {item.id!r} has {n} choices: circular copies need two or more")
    for shift in range(n):
        yield Item(
            **{
                **item.__dict__,
                "id": item.id if shift == 0 else f"{item.id}+{shift}",
                "choices": item.choices[shift:] + item.choices[:shift],
                "correct": tuple((index - shift) % n for index in item.correct),
                "group": item.id,
            }
        )


def benchmark_names() -> list[str]:
    """The benchmarks that come with us, by name."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def find_benchmark(name: str, overrides: tuple[str, ...] = ()) -> BenchmarkConfig:
    """Load a benchmark by name, or by the path of a YAML file.

    Args:
        overrides: `key=value`, as in training's commands; what a result then was measured with is
            in its report.
    Raises:
        UserError: there is none, or the file is wrong.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(benchmark_names())
            raise UserError(f"there is no benchmark {name!r}; there are {known}, or a YAML file")
    return load_config(BenchmarkConfig, path, overrides)


def describe(benchmark: BenchmarkConfig) -> Mapping[str, Any]:
    """The settings that a result depends on, as they stand in its report."""
    return benchmark.model_dump(mode="json", exclude={"source", "title"}, exclude_none=True)
