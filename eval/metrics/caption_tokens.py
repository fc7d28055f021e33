"""Captions cut into words: by Stanford's PTB tokenizer, by a plain rule, or as they are."""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from vlm.errors import UserError

# From texts to the same texts with one space between words.
Tokenise = Callable[[Sequence[str]], list[str]]

PATIENCE_S = 600
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def find_java() -> str | None:
    """The path of the Java program, None if there is none."""
    return shutil.which("java")


def ptb(texts: Sequence[str]) -> list[str]:
    """Cut texts as COCO's caption evaluation does: PTB words, lower case, without punctuation.

    Raises:
        UserError: Java is missing, or fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    java = find_java()
    if java is None:
        raise UserError("the PTB tokenizer needs Java, which is not on the PATH")
    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    # One text a line; other line ends would begin lines of their own.
    lines = "\n".join(" ".join(text.split()) for text in texts)
    try:
        run = subprocess.run(
            [*command, "-preserveLines", "-lowerCase"],
            input=lines.encode("utf-8"),
            capture_output=True,
            timeout=PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"the PTB tokenizer failed: {error}") from error
    cut = run.stdout.decode("utf-8").split("\n")[: len(texts)]
    if len(cut) != len(texts):
        raise UserError(f"the PTB tokenizer gave {len(cut)} lines for {len(texts)} texts")
    dropped = frozenset(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in dropped) for line in cut]


def plain(texts: Sequence[str]) -> list[str]:
    """Cut texts into runs of letters and digits in lower case, with apostrophes inside words.

    >>> plain(["A man's dog, well-fed."])
    ["a man's dog well fed"]
    """
    return [" ".join(_WORD.findall(text.lower())) for text in texts]


def as_they_are(texts: Sequence[str]) -> list[str]:
    """Texts whose words white space already parts."""
    return [" ".join(text.split()) for text in texts]
