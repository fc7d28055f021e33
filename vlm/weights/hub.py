"""Model folders by their id on the Hugging Face hub, through its own client."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from vlm.errors import UserError

# Weights that hold no code, and settings. Folders below hold other forms of the same model.
ALLOWED_PATTERNS = ["*.safetensors", "*.json", "*.jinja"]
IGNORED_PATTERNS = ["*/*"]
REPOSITORY_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository_id(name: str) -> bool:
    """Whether a name has the form `organisation/model`."""
    return REPOSITORY_ID.fullmatch(name) is not None and not name.startswith(".")


def download(repository: str, revision: str | None = None) -> tuple[Path, str]:
    """Download a model's folder into the hub's cache, or find it there.

    Args:
        revision: a branch, tag or commit; None is the main branch.
    Returns:
        the folder, and the commit that it holds.
    Raises:
        UserError: there is no such model or revision, access is not granted, or the hub cannot
            be reached and the cache does not hold the model.
    """
    what = repository if revision is None else f"{repository} at revision {revision!r}"
    with explained(what, "model"):
        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=ALLOWED_PATTERNS,
            ignore_patterns=IGNORED_PATTERNS,
        )
    return Path(folder), Path(folder).name  # the cache names a snapshot's folder by its commit


@contextmanager
def explained(what: str, kind: str) -> Iterator[None]:
    """Turn the errors of the hub's client into what a user can put right.

    Args:
        what: the id, and its revision if one was named.
        kind: "model" or "data set".
    Raises:
        UserError: for whatever the client raises.
    """
    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{what}: the hub asks for its licence to be accepted on the {kind}'s page, and for "
            "`hf auth login` here"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{what}: there is no such folder here and no such {kind} on the hub, or it is private"
        ) from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{what}: there is no such folder here, the hub cannot be reached, and its cache does "
            f"not hold the {kind}; connect, or point to a downloaded folder"
        ) from error
    except Exception as error:  # the client's transport, which varies, raises errors of its own
        raise UserError(f"{what}: cannot be downloaded: {error}") from error
