import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from data.pack import pack
from data.schema import RawSample, Reject, Sample
from data.show import OPEN_TURNS, Wanted, contact_sheet, spread
from data.thumbnails import THUMBNAIL_PX
from vlm.errors import UserError

HOSTILE = '<script>alert("&")</script>'


def picture(width_px: int, height_px: int, format_name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width_px, height_px), (200, 30, 30)).save(buffer, format_name)
    return buffer.getvalue()


def raw(key: str, images: list[bytes], num_turns: int = 1) -> RawSample:
    first = [{"type": "image"}] * len(images) + [{"type": "text", "text": f"{HOSTILE} 0?"}]
    messages = []
    for turn in range(num_turns):
        content = first if turn == 0 else [{"type": "text", "text": f"question {turn}?"}]
        messages.append({"role": "user", "content": content})
        answer = [{"type": "text", "text": f"answer {turn}"}]
        messages.append({"role": "assistant", "content": answer})
    turns = [{"type": HOSTILE, "answers": ["two", "two", HOSTILE]}] * num_turns
    sample = Sample.parse({"messages": messages, "turns": turns, "source": HOSTILE})
    return RawSample(key, sample, images)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [
        raw("many", [picture(10, 20), picture(900, 300, "JPEG")], num_turns=OPEN_TURNS + 2),
        raw("text", []),
        *[raw(f"k{i}", [picture(8, 8)]) for i in range(10)],
    ]
    pack(samples, tmp_path / "data", samples_per_shard=5)
    return tmp_path / "data"


class Outline(HTMLParser):
    """The tags of a page, and whether each that opens closes in order."""

    VOID = ("meta", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_runs_nothing(folder: Path) -> None:
    outline = Outline(contact_sheet([folder]))
    assert len(outline.urls) == 12 and all(url.startswith("data:image/") for url in outline.urls)
    assert not {"script", "link", "iframe"} & set(outline.tags)


def test_texts_labels_sizes_and_accepted_answers_are_shown(folder: Path) -> None:
    page = contact_sheet([folder])
    assert "&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt; 0?" in page
    assert HOSTILE not in page
    assert "10 &times; 20 px" in page and "900 &times; 300 px" in page
    assert "accepted: two &times;2, &lt;script&gt;" in page
    assert page.count("<article>") == 12 and "samples: 12" in page


def test_long_chats_fold_their_rest(folder: Path) -> None:
    page = contact_sheet([folder])
    (folded,) = re.findall(r"<details><summary>2 more</summary>(.*?)</details>", page, re.DOTALL)
    assert f"answer {OPEN_TURNS}" in folded and f"answer {OPEN_TURNS - 1}<" not in folded


def test_large_pictures_become_thumbnails(folder: Path) -> None:
    urls = [url for url in Outline(contact_sheet([folder])).urls if "jpeg" in url]
    image = Image.open(io.BytesIO(base64.b64decode(urls[0].partition(",")[2])))
    assert image.size == (THUMBNAIL_PX, round(THUMBNAIL_PX / 3))


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 11, 12, 60])
def test_limit_is_met_exactly_and_spread_over_the_shards(folder: Path, limit: int) -> None:
    page = contact_sheet([folder], limit)
    keys = re.findall(r"<footer><b>(.*?)</b>", page)
    assert len(keys) == len(set(keys)) == min(limit, 12)
    if limit >= 7:
        assert len(set(re.findall(r"shard-\d+", page))) == 3


def test_tiny_shards_do_not_shorten_the_sheet(tmp_path: Path) -> None:
    pack([raw(f"k{i}", []) for i in range(30)], tmp_path / "data", samples_per_shard=1)
    assert contact_sheet([tmp_path / "data"], 20).count("<article>") == 20


def test_spread_is_even_and_without_repeats() -> None:
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 10) == [0, 1, 2]
    assert spread(0, 5) == []
    for num_items in range(1, 30):
        for limit in range(1, 30):
            chosen = spread(num_items, limit)
            assert sorted(set(chosen)) == chosen and len(chosen) == min(num_items, limit)
            assert chosen[-1] < num_items


def test_a_picture_that_rotted_is_shown_as_such(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes().replace(picture(8, 8), b"x" * len(picture(8, 8))))
    assert "<figure class=bad>not a picture" in contact_sheet([folder])


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        contact_sheet([tmp_path])


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (Wanted(num_images=0), ["text"]),
        (Wanted(num_images=2), ["many"]),
        (Wanted(min_side_px=10), ["many"]),
        (Wanted(min_side_px=8, num_images=1), [f"k{i}" for i in range(10)]),
        (Wanted(contains="QUESTION 3"), ["many"]),
        (Wanted(type="other"), []),
        (Wanted(type=HOSTILE, contains="alert", num_images=0), ["text"]),
    ],
)
def test_only_what_meets_every_condition_is_shown(
    folder: Path, wanted: Wanted, keys: list[str]
) -> None:
    page = contact_sheet([folder], 60, wanted)
    assert re.findall(r"<footer><b>(.*?)</b>", page) == keys
    assert f"shown: {len(keys)} of {len(keys)} that match" in page
    assert len(re.findall("<article>", contact_sheet([folder], 3, wanted))) == min(3, len(keys))


def test_what_was_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    pack([raw("good", []), Reject("bad", f"no caption: {HOSTILE}")], tmp_path / "data")
    page = contact_sheet([tmp_path / "data"])
    assert "1 rejects</summary>" in page and "1 x no caption" in page
    assert HOSTILE not in page and Outline(page)
