"""The page in a real browser, served by the real command."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlm
from vlm.api import Model

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
MAX_TOKENS = 40
PHONE = {"width": 390, "height": 844}
TABS = ("Caption", "Chat", "Batch", "Where it looks")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"there is no browser: {', '.join(BROWSERS)}"),
]


@dataclass
class Visit:
    """A browser on the page. requests: all that the page asked for."""

    page: Any
    address: str
    requests: list[str] = field(default_factory=list)

    def open(self, tab: str) -> None:
        """Choose a tab."""
        self.page.get_by_role("tab", name=tab, exact=True).click()

    def upload(self, element: str, *files: Path) -> None:
        """Give files to the upload of an element."""
        self.page.locator(f"#{element} input[type=file]").first.set_input_files(list(files))


@pytest.fixture(scope="module")
def model(open_model_folder: Path) -> Model:
    return vlm.load(open_model_folder, device="cpu")


@pytest.fixture(scope="module")
def files(
    picture: Callable[..., Image.Image], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    picture(1, 40, 30).save(folder / "photo.png")
    picture(2, 16, 32).save(folder / "tall.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def address(open_model_folder: Path, files: dict[str, Path]) -> Iterator[str]:
    """`vlm demo` on a free port; at its end it must leave when told to."""
    arguments = ["demo", open_model_folder, "--port", "0", "--device", "cpu"]
    options = ["--folder", files["photo"].parent, f"max_tokens={MAX_TOKENS}"]
    command = [sys.executable, "-m", "vlm", *map(str, [*arguments, *options])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found is not None, line
            yield found[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    # A sandbox of its own it cannot have as root, as in a container.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(20_000)
    visited = Visit(context.new_page(), address)
    visited.page.on("request", lambda request: visited.requests.append(request.url))
    visited.page.goto(address)
    yield visited
    context.close()


def test_an_uploaded_picture_gets_its_caption(
    visit: Visit, model: Model, files: dict[str, Path]
) -> None:
    text = visit.page.locator("#caption-text textarea")
    visit.upload("caption-picture", files["photo"])
    expected = model.caption(files["photo"], max_tokens=MAX_TOKENS)
    visit.page.wait_for_function(
        "expected => document.querySelector('#caption-text textarea').value.trim() == expected",
        arg=expected,
    )
    assert text.input_value().strip() == expected


def test_an_example_is_described_when_it_is_chosen(visit: Visit) -> None:
    visit.page.locator(".gallery-item").first.click()
    visit.page.wait_for_function(
        "document.querySelector('#caption-text textarea').value.trim().length > 0"
    )


def test_an_answer_is_seen_as_it_is_written_and_the_conversation_goes_on(
    visit: Visit, model: Model, files: dict[str, Path]
) -> None:
    page = visit.page
    visit.open("Chat")
    page.evaluate(
        """() => {
            window.lengths = new Set();
            new MutationObserver(() => {
                const bots = document.querySelectorAll('#chat .bot.message');
                if (bots.length) window.lengths.add(bots[bots.length - 1].textContent.length);
            }).observe(document.querySelector('#chat'),
                       {subtree: true, childList: true, characterData: true});
        }"""
    )
    visit.upload("chat-box", files["photo"])
    page.locator("#chat-box img").wait_for()
    box = page.locator("#chat-box textarea")
    image = {"type": "image", "image": files["photo"]}
    messages: list[dict[str, Any]] = []
    for number, question in enumerate(("How many?", "And now?")):
        box.fill(question)
        box.press("Enter")
        text = {"type": "text", "text": question}
        content = [image, text] if number == 0 else [text]
        messages.append({"role": "user", "content": content})
        expected = "".join(model.stream(messages, max_tokens=MAX_TOKENS))
        messages.append({"role": "assistant", "content": expected})
        page.wait_for_function(
            """([number, expected]) => {
                const bots = document.querySelectorAll('#chat .bot.message');
                const plain = text => text.replace(/\\s+/g, '');
                return bots.length > number && plain(bots[number].textContent) == plain(expected);
            }""",
            arg=[number, expected],
        )
    assert page.locator("#chat .user.message img").count() == 1
    assert len(page.evaluate("[...window.lengths]")) > 8  # whole answers would make four


def test_where_it_looked_is_shown_word_by_word(
    visit: Visit, model: Model, files: dict[str, Path]
) -> None:
    page = visit.page
    visit.open("Where it looks")
    visit.upload("look-picture", files["photo"])
    page.locator("#look-picture img").wait_for()
    page.locator("#look-question textarea").fill("How many?")
    page.locator("#look-button").click()
    overlay = page.locator("#look-overlay img")
    overlay.wait_for()
    answer = model.ask(files["photo"], "How many?", max_tokens=MAX_TOKENS).split()
    words = page.locator("#look-words label")
    assert [word.strip() for word in words.all_text_contents()] == ["all words", *answer]
    assert "of the attention" in page.locator("#look-figures").inner_text()
    whole = overlay.get_attribute("src")
    words.nth(1).click()
    page.wait_for_function(
        "whole => document.querySelector('#look-overlay img').src != whole", arg=whole
    )
    assert overlay.evaluate("image => image.naturalWidth") == 720


@pytest.mark.parametrize("source", ["uploads", "folder"])
def test_pictures_become_a_csv_and_what_cannot_be_read_is_named(
    source: str, visit: Visit, files: dict[str, Path], tmp_path: Path
) -> None:
    page = visit.page
    visit.open("Batch")
    if source == "uploads":
        visit.upload("batch", *files.values())
        page.locator("#batch tr").nth(2).wait_for()
        page.locator("#batch-start").click()
    else:
        page.get_by_role("button", name="on this machine").click()
    with page.expect_download() as download:
        page.locator("#batch-download").click()
    assert download.value.suggested_filename == "captions.csv"
    download.value.save_as(tmp_path / "captions.csv")
    rows = (tmp_path / "captions.csv").read_text().splitlines()
    assert rows[0] == "image,caption" and len(rows) == 3
    assert {row.split(",")[0] for row in rows[1:]} == {"photo.png", "tall.png"}
    status = page.locator("#batch-status textarea").input_value()
    assert "2 captions; 1 left out" in status and "broken.png: not a pict" in status


def test_a_mistake_is_explained_in_the_page(visit: Visit, files: dict[str, Path]) -> None:
    page = visit.page
    visit.upload("caption-picture", files["broken"])
    page.get_by_text("broken.png: not a picture").wait_for()
    visit.open("Where it looks")
    page.locator("#look-button").click()
    page.get_by_text("there is no picture").wait_for()
    visit.open("Chat")
    box = page.locator("#chat-box textarea")
    box.fill("word " * 500)
    box.press("Enter")
    page.get_by_text("exceed the model's 256 positions").wait_for()
    page.wait_for_function("!document.querySelector('#chat-box textarea').disabled")
    assert box.input_value().startswith("word word")  # it can be shortened


def test_the_page_asks_nothing_of_other_hosts(visit: Visit) -> None:
    for tab in TABS:
        visit.open(tab)
        visit.page.wait_for_timeout(300)
    assert len(visit.requests) > 10
    own = (visit.address, "data:", "blob:")
    assert [url for url in visit.requests if not url.startswith(own)] == []


def test_nothing_reaches_beyond_a_phones_width(visit: Visit) -> None:
    page = visit.page
    page.set_viewport_size(PHONE)
    for tab in TABS:
        visit.open(tab)
        page.wait_for_timeout(300)
        beyond = """() => [...document.querySelectorAll('body *')]
            .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
            .map(element => element.outerHTML.slice(0, 80))"""
        assert page.evaluate(beyond) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
