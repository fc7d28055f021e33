"""The commands that make one model folder of another: from and to transformers, and merged."""

from pathlib import Path
from typing import Annotated

import typer

from vlm.errors import UserError

app = typer.Typer(add_completion=False)
convert = typer.Typer(no_args_is_help=True, help="One kind of model folder to another.")
app.add_typer(convert, name="convert")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is new, or empty.")]


@convert.command("from-hf")
def from_hf(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A transformers Mllama folder, or an id on the hub."),
    ],
    out: Out,
    revision: Annotated[
        str | None, typer.Option(help="Of an id on the hub: a branch, tag or commit.")
    ] = None,
) -> None:
    """Write a model folder of ours from Llama 3.2 Vision's weights.

    The tensors keep every bit and their dtype. Nothing is written unless all of the source is
    accounted for: tensors, settings, tokenizer and chat template.
    """
    from vlm.weights.convert import from_hf as convert_folder
    from vlm.weights.hub import download, is_repository_id

    folder = Path(source)
    if folder.exists():
        if revision is not None:
            raise UserError(f"{source} is a folder here: --revision belongs to an id on the hub")
        origin = {"folder": source}
    elif is_repository_id(source):
        folder, commit = download(source, revision)
        origin = {"repository": source, "commit": commit}
    else:
        raise UserError(f"{source} is neither a folder here nor an id on the hub (org/name)")
    convert_folder(folder, out, origin)
    print(f"{source} -> {out}")


@convert.command("to-hf")
def to_hf(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A model folder of ours.")],
    out: Out,
) -> None:
    """Write a folder that transformers' MllamaForConditionalGeneration loads.

    A model that Mllama cannot express is refused, and each difference named.
    """
    from vlm.weights.convert import to_hf as convert_folder

    convert_folder(source, out)
    print(f"{source} -> {out}")


@convert.command("merge")
def merge(
    source: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The folder of an adapter.")],
    out: Out,
) -> None:
    """Write a whole model folder from an adapter and the base that it was trained on.

    The base is found where the adapter's `adapter.json` says, and refused if it is another one.
    Weights keep the base's dtype.
    """
    from vlm.adapters.merge import merge as merge_folders

    merge_folders(source, out)
    print(f"{source} -> {out}")
