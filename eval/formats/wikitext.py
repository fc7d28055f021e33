"""WikiText: articles of Wikipedia, put apart from a file and written as people write."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, read_text
from eval.formats.options import Options, read_options
from eval.formats.text import count_units
from eval.items import Item

# " = Robert Boulter = " begins an article; " = = Career = = " is a section of one.
_TITLE = re.compile(r" *= .*[^=] = *$")
# In this order; what the data set's tokeniser put apart. Source: the rules of lm-eval's task
# `wikitext`, whose figures those of others are compared with.
_TOKENISED = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
_ENCLOSED = (
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
_REST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \u00b0 ", "\u00b0"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the articles of `texts`.

    The text that is measured is written without the data set's spaces around marks; its
    probability is divided among the words and bytes of what was published, as lm-eval does.
    """
    read_options(Options, options)
    for path in files.paths("texts"):
        for number, page in enumerate(split_pages(read_text(path))):
            yield Item(
                id=f"{path.name}/{number}", question=detokenise(page), facts=count_units(page)
            )


def split_pages(text: str) -> list[str]:
    """The articles of a file, each from its title on; empty lines before the first are left out."""
    pages: list[list[str]] = []
    lines: list[str] = []
    for line in text.split("\n"):
        if _TITLE.match(line):
            pages.append(lines)
            lines = []
        lines.append(line)
    pages.append(lines)
    joined = ("\n".join(page) for page in pages)
    return [page for page in joined if page.strip()]


def detokenise(page: str) -> str:
    """Undo what the data set's tokeniser did to marks and brackets."""
    for old, new in _TOKENISED:
        page = page.replace(old, new)
    for pattern, new in _ENCLOSED:
        page = re.sub(pattern, new, page)
    for old, new in _REST:
        page = page.replace(old, new)
    return page
