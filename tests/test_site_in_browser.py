"""The built site in a browser, on a desktop and a phone, and read as GitHub reads its pages."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from markdown_it import MarkdownIt

from scripts.documentation.pages import ROOT, places

pytestmark = pytest.mark.browser
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}
SITE = ROOT / "build" / "site"
MAIN_PAGES = (
    *("tutorial/", "using/", "datasets/", "training/", "bank/", "metrics/", "reproduce/"),
    *("decisions/", "benchmarks/", "notebooks/first_look/", "recipes/", "commands/"),
    *("commands/train/", "commands/bank/", "python/", "python/banks/", "python/configurations/"),
)


@pytest.fixture(scope="module")
def address():
    """The site, built without a warning or fault, on a server."""
    built = subprocess.run(
        [sys.executable, "scripts/build_site.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    handler = functools.partial(Quiet, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def visit(address, chromium):
    """Opens pages; at the end nothing may have gone wrong, nor another site have been asked."""
    wrong, contexts = [], []

    def open_page(name, viewport=DESKTOP, **options):
        contexts.append(chromium.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(f"{name}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"{name}: {error}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:"))
                or wrong.append(f"{name} asks {request.url}")
            ),
        )
        page.goto(address + name)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def test_a_phone_never_scrolls_sideways(visit):
    for name in ("", *MAIN_PAGES):
        page = visit(name, PHONE)
        width = page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= PHONE["width"], f"{name} is {width} pixels wide"
        outside = page.evaluate("""[...document.querySelectorAll("article img")]
            .filter(image => image.getBoundingClientRect().right > innerWidth)
            .map(image => image.src)""")
        assert outside == []
        page.context.close()


def test_the_search_finds_flags_names_and_words(visit):
    page = visit("")
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Control+k")
    for words, found in {
        "num-seeds": "commands/compare/",
        "count_videos": "python/banks/",
        "rejects": "commands/bank/",
    }.items():
        page.get_by_role("combobox", name="Search").fill(words)
        page.locator(f"[role=option][href*='/{found}']").first.wait_for()


def test_light_dark_and_copy_buttons_are_there(visit):
    seen = set()
    for scheme in ("light", "dark"):
        page = visit("tutorial/", color_scheme=scheme)
        seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        copied = page.locator("div.highlight button").count()
        assert copied >= page.locator("div.highlight").count() > 5
    assert len(seen) == 2


def test_the_logo_and_every_picture_of_a_page_are_shown(visit):
    for name in ("", "tutorial/", "videos/"):
        page = visit(name)
        page.wait_for_load_state("load")
        sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(sizes) > 1
        assert min(sizes) > 0


KINDS = {
    "li": "list_item_open",
    "table": "table_open",
    "tr": "tr_open",
    "td": "td_open",
    "pre": "fence",
}
"""Elements of HTML, and the tokens that become them."""


@pytest.mark.parametrize("source", [name for name in places() if name.endswith(".md")])
def test_a_page_has_the_lists_tables_and_code_that_github_shows(source, address):
    tokens = MarkdownIt("commonmark").enable("table").parse((ROOT / source).read_text())
    counted = Counter(token.type for token in tokens)
    name = places()[source]
    stem = name.removesuffix("index.md").removesuffix(".md")
    text = (SITE / stem / "index.html").read_text()
    article = text[text.index("<article") : text.index("</article>")]
    shown = {tag: len(re.findall(rf"<{tag}\b", article)) for tag in KINDS}
    assert shown == {tag: counted[token] for tag, token in KINDS.items()}
