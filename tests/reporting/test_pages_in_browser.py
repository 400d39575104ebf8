"""The pages in a browser: they load, draw, follow clicks and keys, and reach no network."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from raffect.predictions.columns import FRAME_SCHEMA
from raffect.reporting.course import read_course
from raffect.reporting.index import Entry, draw_preview, write_index
from raffect.reporting.overlay import draw_overlay
from raffect.reporting.timeline import write_timeline
from tests.helpers.scenes import (
    TASKS,
    draw_people,
    draw_scene,
    facts_of,
    predict_scene,
)
from tests.helpers.videos import write_video

pytestmark = pytest.mark.browser
FRAMES, RATE = 100, 25
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An overlay with its page, pages without a video and without a face, and a list."""
    out = tmp_path_factory.mktemp("a folder & more")
    people = draw_people(FRAMES, 2)
    rows = predict_scene(people, "clip.mp4")
    scene = list(draw_scene(people))
    source = write_video(out / "clip.mp4", scene, sound="aac")
    done = draw_overlay(source, rows, facts_of(), out / "over lay.mp4")
    course = read_course(rows, TASKS, "clip.mp4")
    links = {"all inputs": "index.html"}
    write_timeline(course, facts_of(), out / "clip #1.html", video="over lay.mp4", links=links)
    write_timeline(course, facts_of(), out / "bare.html")
    missed = [{"frame": k + 1, "status": "no_face", "timestamp_s": k / RATE} for k in range(FRAMES)]
    empty = pa.Table.from_pylist(missed, FRAME_SCHEMA)
    write_timeline(read_course(empty, TASKS, "clip.mp4"), facts_of(), out / "empty.html")
    draw_preview(course, done.picture).save(out / "clip.jpg")
    entry = Entry(name="clip.mp4", about="2 faces", page="clip #1.html", preview="clip.jpg")
    write_index([entry], facts_of(), "one input", out / "index.html")
    return out


@pytest.fixture
def visit(chromium):
    """Opens a page; at the end of the test nothing may have gone wrong in any of them."""
    wrong, contexts = [], []

    def note_failure(request):
        # A player breaks off what it has read enough of
        if request.failure != "net::ERR_ABORTED":
            wrong.append(f"failed: {request.url} {request.failure}")

    def open_page(address: str, viewport=DESKTOP, color_scheme="light", allowed="file://"):
        context = chromium.new_context(viewport=viewport, color_scheme=color_scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("requestfailed", note_failure)
        page.on(
            "request",
            lambda request: (
                request.url.startswith((allowed, "data:"))
                or wrong.append(f"request: {request.url}")
            ),
        )
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def wait_until(page, condition: str) -> None:
    """Wait for an expression; Playwright's own waiting needs eval, which the pages forbid."""
    for _ in range(200):
        if page.evaluate(f"() => {condition}"):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never: {condition}")


def timeline(visit, folder, **options):
    page = visit((folder / "clip #1.html").as_uri(), **options)
    wait_until(page, "document.querySelector('video').readyState >= 2")
    return page


def time_of(page) -> float:
    return page.evaluate("document.querySelector('video').currentTime")


def cursor_of(page) -> float:
    """Where the first cursor stands, as a share of its chart."""
    return page.evaluate(
        "document.querySelector('.cursor').x1.baseVal.value / "
        "document.querySelector('.cursor').ownerSVGElement.viewBox.baseVal.width"
    )


def click_chart(page, share: float, kind: str = "curve") -> None:
    box = page.locator(f"svg.{kind}").first.bounding_box()
    page.mouse.click(box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def test_a_timeline_draws_a_curve_for_every_output(visit, folder):
    page = timeline(visit, folder)
    assert page.locator("svg.ribbon").count() == 1
    assert page.locator("svg.curve path.path").count() == 8 + 12
    assert page.locator("svg.values path.path").count() == 2
    # None of them is flat, and they differ
    paths = page.locator("path.path").evaluate_all(
        "paths => paths.map(path => [path.getBBox().width, path.getBBox().height])"
    )
    assert all(width > 90 and height > 1 for width, height in paths)
    shapes = page.locator("path.path").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    assert len(set(shapes)) == 22
    assert page.locator(".name", has_text="AU12 lip corners pulled up").is_visible()
    assert "drawn faces" in page.locator(".note").inner_text()


@pytest.mark.parametrize("share", [0.2, 0.75])
def test_a_click_moves_the_player_to_that_time(visit, folder, share):
    page = timeline(visit, folder)
    click_chart(page, share)
    wait_until(page, "!document.querySelector('video').seeking")
    span = FRAMES / RATE
    assert time_of(page) == pytest.approx(share * span, abs=0.02)
    assert cursor_of(page) == pytest.approx(share, abs=0.01)
    # And the frame that is shown is the one that is named
    frame = int(page.locator("#now").inner_text().split("frame ")[1])
    assert frame == int(time_of(page) * RATE + 1e-3) + 1


def test_the_cursor_follows_the_player(visit, folder):
    page = timeline(visit, folder)
    before = cursor_of(page)
    page.evaluate("document.querySelector('video').muted = true")
    page.evaluate("document.querySelector('video').play()")
    wait_until(page, "document.querySelector('video').currentTime > 0.6")
    page.evaluate("document.querySelector('video').pause()")
    page.wait_for_timeout(100)
    assert cursor_of(page) > before + 0.1
    assert cursor_of(page) == pytest.approx(time_of(page) * RATE / FRAMES, abs=0.03)


def test_the_keyboard_alone_reaches_every_frame_and_face(visit, folder):
    page = timeline(visit, folder)
    page.locator("#place").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    wait_until(page, "!document.querySelector('video').seeking")
    assert time_of(page) == pytest.approx(3 / RATE, abs=0.01)
    assert page.locator("#now").inner_text().endswith("frame 4")
    page.keyboard.press("End")
    assert page.locator("#now").inner_text().endswith(f"frame {FRAMES}")
    shapes = page.locator("path.path").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    page.locator("#face").focus()
    page.keyboard.press("ArrowDown")
    others = page.locator("path.path").evaluate_all("all => all.map(one => one.getAttribute('d'))")
    assert page.locator("#face").input_value() == "1"
    assert len(others) == len(shapes)
    assert others != shapes


def test_without_a_video_a_click_shows_the_numbers_of_that_time(visit, folder):
    page = visit((folder / "bare.html").as_uri())
    assert page.locator("video, .look img").count() == 0
    click_chart(page, 0.55)
    assert page.locator("#now").inner_text() == "0:02.20, frame 56"


def test_a_page_without_a_face_says_so_and_stands_at_its_first_frame(visit, folder):
    page = visit((folder / "empty.html").as_uri())
    assert page.locator("#charts").inner_text() == "No face, so no curves."
    slider = page.locator("#place")
    assert slider.input_value() == slider.get_attribute("min")
    assert page.locator("#now").inner_text() == "0:00.00, frame 1"


@pytest.mark.parametrize("name", ["clip #1.html", "bare.html", "empty.html", "index.html"])
def test_a_page_fits_a_phone_and_follows_dark_mode(visit, folder, name):
    shades = {}
    for scheme in ("light", "dark"):
        page = visit((folder / name).as_uri(), viewport=PHONE, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = sum(map(int, color.strip("rgb()").split(",")[:3]))
    assert shades["light"] > 600 > 200 > shades["dark"]


def test_the_list_leads_to_the_page_and_back(visit, folder):
    page = visit((folder / "index.html").as_uri())
    assert page.locator("li img").evaluate("image => image.naturalWidth") > 400
    page.get_by_role("link", name="clip.mp4").click()
    wait_until(page, "document.querySelector('video').readyState >= 2")
    page.get_by_role("link", name="all inputs").click()
    assert page.locator("h1").inner_text() == "Predictions: 1 input"


def test_a_page_from_a_server_plays_and_its_policy_stops_other_requests(chromium, folder):
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{server.server_port}/clip%20%231.html")
    wait_until(page, "document.querySelector('video').readyState >= 2")
    refused = page.evaluate("fetch('/index.html').then(() => 'loaded', () => 'refused')")
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://0.0.0.0:9/x'}))")
    added = page.evaluate(
        "new Promise(done => { const one = document.createElement('script'); "
        "one.textContent = 'window.ran = 1'; document.body.append(one); "
        "setTimeout(() => done(window.ran), 50); })"
    )
    page.close()
    server.shutdown()
    server.server_close()
    assert refused == "refused"
    assert added is None
    assert {path.split("/")[-1] for path in asked} <= {
        "clip%20%231.html",
        "over%20lay.mp4",
        "favicon.ico",
    }
