"""A contact sheet: what is in a folder of shards, as one HTML page that needs nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from data.pack import Manifest
from data.page import page
from data.rejects import read_rejects, reject_summary
from data.schema import ImagePart, Message, RawSample, TextPart, Turn
from data.shards import ShardSet
from data.thumbnails import STYLE as PICTURE_STYLE
from data.thumbnails import picture_figure
from vlm.images import ImageError, image_size

MAX_REJECTS = 8  # of each kind that are listed
OPEN_TURNS = 5  # longer chats fold the rest away


@dataclass(frozen=True)
class Wanted:
    """Which samples are shown: those that meet every condition that is set.

    type: one of the answers has this type.
    contains: a message has this in it, upper and lower case alike.
    min_side_px: there are pictures, and the shorter side of each is at least this.
    num_images: there are this many pictures.
    """

    type: str | None = None
    contains: str | None = None
    min_side_px: int | None = None
    num_images: int | None = None

    @property
    def everything(self) -> bool:
        """Whether no condition is set."""
        return self == Wanted()

    def __call__(self, raw: RawSample) -> bool:
        sample = raw.sample
        if self.type is not None and all(turn.type != self.type for turn in sample.turns):
            return False
        if self.num_images is not None and len(raw.images) != self.num_images:
            return False
        if self.contains is not None:
            words = self.contains.casefold()
            if all(words not in message.text.casefold() for message in sample.messages):
                return False
        return self.min_side_px is None or self._are_large(raw.images, self.min_side_px)

    @staticmethod
    def _are_large(images: list[bytes], min_side_px: int) -> bool:
        try:
            return bool(images) and all(min(image_size(image)) >= min_side_px for image in images)
        except ImageError:
            return False


def contact_sheet(folders: Sequence[Path], limit: int = 60, wanted: Wanted = Wanted()) -> str:
    """Show samples of folders of shards, spread evenly over each, and what was left out.

    Args:
        limit: samples to show of each folder.
        wanted: conditions; with any, every sample is read.
    Returns:
        an HTML page; pictures are thumbnails inside it.
    Raises:
        UserError: a folder has no manifest, or a sample cannot be had.
    """
    sections = "\n".join(_section(folder, limit, wanted) for folder in folders)
    return page(", ".join(folder.name for folder in folders), sections, PICTURE_STYLE + _STYLE)


def spread(num_items: int, limit: int) -> list[int]:
    """At most `limit` indices of `num_items`, evenly spaced, the first among them.

    >>> spread(10, 3)
    [0, 3, 6]
    """
    num_chosen = min(num_items, limit)
    return [index * num_items // num_chosen for index in range(num_chosen)]


def _section(folder: Path, limit: int, wanted: Wanted) -> str:
    manifest, shards = Manifest.read(folder), ShardSet.open(folder)
    places = list(shards.places)
    if not wanted.everything:
        samples = zip(places, shards.read_all(), strict=True)
        places = [place for place, raw in samples if wanted(raw)]
    chosen = [places[number] for number in spread(len(places), limit)]
    # What matches is read once more: to keep it could mean to keep all.
    samples = zip(chosen, shards.read_all(chosen), strict=True)
    cards = [_card(raw, shards.names[shard]) for (shard, _), raw in samples]
    facts = [
        f"samples: {manifest.num_samples:,}",
        f"pictures: {manifest.num_images:,}",
        f"questions: {manifest.num_turns:,}",
        f"shards: {len(manifest.shards)}",
        f"rejects: {manifest.num_rejects:,}",
        f"data: {manifest.sha256[:12]}",
        f"shown: {len(cards)}" + ("" if wanted.everything else f" of {len(places):,} that match"),
    ]
    items = "".join(f"<li>{fact}</li>" for fact in facts)
    return (
        f"<section><h1>{escape(folder.name)}</h1><ul class=facts>{items}</ul>"
        f"{_rejects(folder, manifest)}<div class=grid>{''.join(cards)}</div></section>"
    )


def _rejects(folder: Path, manifest: Manifest) -> str:
    if not manifest.num_rejects:
        return ""
    lines = "\n".join(reject_summary(read_rejects(folder), MAX_REJECTS))
    return (
        f"<details class=rejects><summary>{manifest.num_rejects:,} rejects</summary>"
        f"<pre>{escape(lines)}</pre></details>"
    )


def _card(raw: RawSample, shard: str) -> str:
    pictures = "".join(map(picture_figure, raw.images))
    turns = _turns(raw)
    shown, folded = "".join(turns[:OPEN_TURNS]), "".join(turns[OPEN_TURNS:])
    if folded:
        rest = len(turns) - OPEN_TURNS
        folded = f"<details><summary>{rest} more</summary>{folded}</details>"
    source = f" &middot; {escape(raw.sample.source)}" if raw.sample.source else ""
    return (
        f"<article>{f'<div class=pictures>{pictures}</div>' if pictures else ''}"
        f"<div class=chat>{shown}{folded}</div>"
        f"<footer><b>{escape(raw.key)}</b>{source} &middot; {escape(shard)}</footer></article>"
    )


def _turns(raw: RawSample) -> list[str]:
    """The chat as HTML, one piece for each answer with all that comes before it."""
    labels = iter(raw.sample.turns or [Turn()] * raw.sample.num_turns)
    pieces = []
    before = ""
    for message in raw.sample.messages:
        if message.role == "assistant":
            pieces.append(f"{before}{_answer(message, next(labels))}")
            before = ""
        else:
            before += f'<p class="{message.role}">{_words(message)}</p>'
    return pieces


def _words(message: Message) -> str:
    words = []
    for part in message.content:
        if isinstance(part, ImagePart):
            words.append("<i class=image>image</i>")
        elif isinstance(part, TextPart):
            words.append(escape(part.text))
    return " ".join(words)


def _answer(message: Message, turn: Turn) -> str:
    # A stable colour for each type: the sheet is scanned by eye.
    hue = sum(map(ord, turn.type)) * 47 % 360 if turn.type else 0
    chip = f'<b class=type style="--hue:{hue}">{escape(turn.type)}</b>' if turn.type else ""
    accepted = ""
    if set(turn.answers) - {message.text}:
        counted = Counter(turn.answers).most_common()
        words = [f"{escape(a)}{f' &times;{n}' if n > 1 else ''}" for a, n in counted]
        accepted = f"<small>accepted: {', '.join(words)}</small>"
    return f"<p class=assistant>{chip}{_words(message)}{accepted}</p>"


_STYLE = """
.rejects { margin: 0 0 1rem; }
pre { margin: 0; padding: .5rem .8rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
.grid { columns: 290px; column-gap: 1rem; }
footer, small { color: var(--quiet); font-size: 11.5px; }
.chat { padding: .5rem .8rem; overflow-wrap: anywhere; white-space: pre-line; }
p { margin: .3rem 0; }
.user { color: var(--quiet); }
.system { font-style: italic; border-left: 3px solid var(--line); padding-left: .5rem; }
.assistant { padding-left: .7rem; border-left: 3px solid light-dark(#c9d8ee, #34507a); }
.assistant small { display: block; }
.image { font-style: normal; font-size: 11px; padding: 0 .4em; border: 1px solid var(--line);
  border-radius: 4px; }
.type { float: right; margin-left: .5rem; padding: 0 .55em; border-radius: 99px;
  font-size: 11px; font-weight: 600; line-height: 1.7;
  background: light-dark(hsl(var(--hue) 55% 90%), hsl(var(--hue) 30% 25%));
  color: light-dark(hsl(var(--hue) 60% 28%), hsl(var(--hue) 60% 82%)); }
summary { cursor: pointer; color: var(--quiet); padding: .2rem 0; }
footer { border-top: 1px solid var(--line); padding: .35rem .8rem; overflow-wrap: anywhere; }
"""
