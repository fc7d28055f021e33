"""Items of a benchmark as cards of an HTML page: pictures, question, and who answered what."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from data.thumbnails import STYLE as PICTURE_STYLE
from data.thumbnails import picture_figure
from eval.items import LETTERS, Answer, Item, Picture
from eval.page_parts import mark
from vlm.errors import UserError

# Longer texts are folded behind this many characters.
OPEN_CHARACTERS = 500
MAX_ANSWERS = 6  # of those that count as right


@dataclass(frozen=True)
class Said:
    """Who answered, what, and how right it is, 0..1; None: it was not scored."""

    who: str
    answer: Answer
    score: float | None


def card(item: Item, said: Sequence[Said]) -> str:
    """An item and what was said to it.

    Args:
        item: with pictures that can be read.
    """
    pictures = "".join(map(_picture, item.images))
    context = "".join(
        f"<p class=context><small>{escape(name)}</small> {folded(text)}</p>"
        for name, text in item.fields.items()
    )
    question = f"<p class=question>{folded(item.question)}</p>" if item.question else ""
    rows = "".join(_said(item, each) for each in said)
    kind = "" if item.type == "all" else f" &middot; {escape(item.type)}"
    return (
        f"<article>{f'<div class=pictures>{pictures}</div>' if pictures else ''}"
        f"<div class=words>{context}{question}{_choices(item)}"
        f"</div><dl class=said>{_expected(item)}{rows}</dl>"
        f"<footer><b>{escape(item.id)}</b>{kind}</footer></article>"
    )


def folded(text: str) -> str:
    """A text as HTML, the rest of a long one folded."""
    if len(text) <= OPEN_CHARACTERS:
        return escape(text)
    rest = text[OPEN_CHARACTERS:]
    return (
        f"{escape(text[:OPEN_CHARACTERS])}<details><summary>{len(rest):,} more characters</summary>"
        f"{escape(rest)}</details>"
    )


def _picture(picture: Picture) -> str:
    try:
        return picture_figure(picture.read())
    except UserError as error:
        return f"<figure class=bad>{escape(str(error))}</figure>"


def _choices(item: Item) -> str:
    """The choices under their letters, those that are right marked."""
    if not item.choices:
        return ""
    lines = "".join(
        f"<li{' class=key' if index in item.correct else ''}><b>{_letter(index)}</b>"
        f"<span>{folded(choice)}</span></li>"
        for index, choice in enumerate(item.choices)
    )
    return f"<ul class=choices>{lines}</ul>"


def _expected(item: Item) -> str:
    if item.correct:
        words = [_choice(item, index) for index in item.correct]
    else:
        counted = Counter(item.answers).most_common()
        words = [f"{folded(a)}{f' &times;{n}' if n > 1 else ''}" for a, n in counted[:MAX_ANSWERS]]
        if len(counted) > MAX_ANSWERS:
            words.append(f"<small>and {len(counted) - MAX_ANSWERS} more</small>")
    if not words:
        return ""
    return f"<div><dt>expected</dt><dd>{'<br>'.join(words)}</dd></div>"


def _said(item: Item, said: Said) -> str:
    answer = said.answer
    if answer.choice is not None:
        words = _choice(item, answer.choice)
    else:
        words = folded(answer.text.strip()) or "<i>nothing</i>"
    notes = []
    if answer.choice is not None and answer.text.strip() not in ("", item.choices[answer.choice]):
        notes.append(f"wrote: {folded(answer.text.strip())}")
    elif answer.choice is None and item.choices:
        notes.append("no choice could be read")
    elif answer.choice is None and answer.value.strip() != answer.text.strip():
        notes.append(f"read as: {folded(answer.value) or '<i>nothing</i>'}")
    if answer.logprobs and len(answer.logprobs) == len(item.choices):
        chances = (f"{_letter(i)} {value:.2f}" for i, value in enumerate(answer.logprobs))
        notes.append(f"log p: {', '.join(chances)}")
    notes += [f"then: {folded(text)}" for text in answer.follow_ups]
    small = "".join(f"<small>{note}</small>" for note in notes)
    right = "" if said.score is None else mark(said.score)
    wrong = " class=wrong" if said.score is not None and said.score < 1 else ""
    return f"<div{wrong}><dt>{right}{escape(said.who)}</dt><dd>{words}{small}</dd></div>"


def _choice(item: Item, index: int) -> str:
    return f"<b>{_letter(index)}</b> {folded(item.choices[index])}"


def _letter(index: int) -> str:
    return LETTERS[index] if index < len(LETTERS) else str(index + 1)


# CSS of cards, on a page of `data.page`; `cards` is what they lie in.
STYLE = (
    PICTURE_STYLE
    + """
.cards { columns: 310px; column-gap: 1rem; }
.words { padding: .6rem .9rem .4rem; white-space: pre-line; overflow-wrap: anywhere; }
.words p { margin: .2rem 0; }
.context { color: var(--quiet); font-size: 13px; }
.question { font-size: 14.5px; font-weight: 600; line-height: 1.35; }
.choices { list-style: none; margin: .3rem 0 0; padding: 0; white-space: normal; }
.choices li { display: flex; gap: .5rem; padding: .08rem 0; font-size: 13.5px; }
.choices b, .said dd b { color: var(--quiet); font-weight: 600; }
.choices .key span { text-decoration: underline; text-decoration-color: var(--right);
  text-decoration-thickness: 2px; text-underline-offset: 3px; }
.said { margin: 0; }
.said > div { display: grid; grid-template-columns: 5.6rem 1fr; gap: .5rem; padding: .3rem .9rem;
  border-top: 1px solid var(--line); font-size: 13.5px; line-height: 1.4; }
.said dt { color: var(--quiet); font-size: 12.5px; overflow-wrap: anywhere; }
.said dd { margin: 0; white-space: pre-line; overflow-wrap: anywhere; }
.said dd small { display: block; color: var(--quiet); }
.said .wrong { background: var(--tint); }
article footer { border-top: 1px solid var(--line); padding: .35rem .9rem; color: var(--quiet);
  font-size: 11.5px; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--quiet); }
"""
)
