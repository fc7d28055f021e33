"""CrowS-Pairs: pairs of sentences that differ in whom a stereotype is said of."""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.items import Item


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the pairs as choices without a question: the more stereotypical sentence, the other.

    Their type is the kind of bias. `facts` has the `direction`: whether the first sentence shows a
    stereotype of a disadvantaged group (`stereo`), or the second one goes against it
    (`antistereo`). Neither sentence is right.
    """
    read_options(Options, options)
    for number, (_, row) in enumerate(files.rows("questions")):
        yield Item(
            id=str(number),
            question="",
            choices=(row["sent_more"], row["sent_less"]),
            type=row["bias_type"],
            facts={"direction": row["stereo_antistereo"]},
        )
