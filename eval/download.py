"""A benchmark's files from the Hugging Face hub, through its own client; only when asked for."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from eval.benchmark import BenchmarkConfig
from eval.files import ALTERNATIVE
from vlm.errors import UserError
from vlm.weights.hub import explained

# Data sets may come with programs that load them; ours are read by what is here.
IGNORED_PATTERNS = ["*.py"]


def download(benchmark: BenchmarkConfig, folder: Path, revision: str | None = None) -> str:
    """Download the files that a benchmark and its examples name, and no others, into a folder.

    What is there already is not loaded again.

    Args:
        revision: a branch, tag or commit; None is the main branch.
    Returns:
        the commit of the data set.
    Raises:
        UserError: the benchmark is not on the hub, access is not granted, the hub cannot be
            reached, or the data set lacks a file that is needed.
    """
    repository = benchmark.source.hub
    if repository is None:
        raise UserError(f"{benchmark.name} is not on the hub. {benchmark.source.get}")
    shown = benchmark.few_shot.files if benchmark.few_shot else None
    wanted = [*benchmark.files.values(), *(shown or {}).values()]
    patterns = [part for text in wanted for part in text.split(ALTERNATIVE)]
    with explained(repository if revision is None else f"{repository} at {revision!r}", "data set"):
        commit = HfApi().dataset_info(repository, revision=revision).sha
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
            allow_patterns=patterns,
            ignore_patterns=IGNORED_PATTERNS,
        )
    benchmark.open(folder)
    return str(commit)
