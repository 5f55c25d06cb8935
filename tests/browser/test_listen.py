"""The page in a real browser: its sounds play, its map and sliders answer, and it fits a narrow window."""

import os
import shutil

import numpy as np
import pytest

from pipeline.spectrogram import LogSpectrogramExtractor
from tests.sounds import SAMPLE_RATE, sine
from training.page import SoundWriter, label_colours, map_svg, render

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.browser
SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# A name that would be markup, were it not text.
HOSTILE = '</script><img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    """Return a page of five clips, with one of everything."""
    writer = SoundWriter(LogSpectrogramExtractor().extract, SAMPLE_RATE)
    sounds = [writer.sound(sine(220.0 * (number + 1)), f"clip {number}") for number in range(5)]
    labels = ["low", "low", "high", "high", HOSTILE]
    places = np.array([[0.1, 0.1], [0.5, 0.1], [0.9, 0.1], [0.5, 0.9], [0.5, 0.5]])
    colours = label_colours(labels)
    points = [
        {"title": f"clip {number}", "label": labels[number], "audio": sounds[number]["audio"], "x": x, "y": y}
        for number, (x, y) in enumerate(places.tolist())
    ]
    content = {
        "about": "A test.",
        "extent": "0.74 s",
        "pairs": [{"title": HOSTILE, "first": sounds[0], "second": sounds[1]}],
        "samples": [{"title": "sample 1", "sound": sounds[2], "nearest": sounds[3]}],
        "interpolations": [
            {"source": "here", "target": "there", "steps": [{**each, "share": n / 4} for n, each in enumerate(sounds)]}
        ],
        "moves": [],
        "figures": [("mean squared error", "0.1", "0.2", "-0.1")],
        "points": points,
        "labels": list(colours.items()),
    }
    path = tmp_path_factory.mktemp("page") / "listen.html"
    path.write_text(render(content, map_svg(places, [colours[label] for label in labels])), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """Return a browser that allows sounds only where a person has acted, as people's do."""
    if not CHROMIUM:
        pytest.skip("no Chromium is on the path, and CHROMIUM names none")
    with playwright.sync_playwright() as started:
        context = started.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, headless=True, args=SWITCHES
        )
        yield context
        context.close()


@pytest.fixture
def page(chromium, page_path):
    """Return the page as opened from the disk; it must not complain, nor ask for anything."""
    opened, complaints = chromium.new_page(), []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
    opened.goto(page_path.as_uri())
    yield opened
    opened.close()
    assert not complaints


def plays(page, selector):
    """Wait until a sound has got somewhere."""
    page.wait_for_function(f"document.querySelector({selector!r}).currentTime > 0.05", timeout=10_000)


def test_every_sound_loads(page):
    page.wait_for_function("[...document.querySelectorAll('audio[controls]')].every(each => each.readyState >= 1)")
    durations = page.evaluate("[...document.querySelectorAll('audio[controls]')].map(each => each.duration)")

    assert len(durations) == 4
    assert durations == pytest.approx([0.74] * 4, abs=0.01)


def test_a_sound_plays_and_stops_the_one_before(page):
    first, second = (f"#reconstructions figure:nth-of-type({number}) audio" for number in (1, 2))
    page.click("#reconstructions h3")
    page.evaluate(f"const a = document.querySelector({first!r}); a.loop = true; a.play()")
    plays(page, first)
    page.evaluate(f"document.querySelector({second!r}).play()")
    plays(page, second)

    assert page.evaluate(f"document.querySelector({first!r}).paused")


def test_a_click_on_the_map_plays_the_clip(page):
    page.click("#point-2")
    plays(page, "#single")

    assert page.inner_text("#now") == "Playing: clip 2 (high)"
    assert page.evaluate("document.getElementById('single').src") == page.evaluate("data.points[2].audio")
    assert page.get_attribute("#point-2", "class") == "point playing"


@pytest.mark.parametrize(("keys", "expected"), [(["Right"], 1), (["Right", "Right"], 2), (["Up"], 4), (["Left"], 0)])
def test_the_map_by_keyboard(page, keys, expected):
    page.focus("#point-0")
    for key in keys:
        page.keyboard.press(f"Arrow{key}")
    page.keyboard.press("Enter")
    plays(page, "#single")

    assert page.inner_text("#now").startswith(f"Playing: clip {expected} (")
    assert page.get_attribute(f"#point-{expected}", "tabindex") == "0"
    assert page.locator(".point[tabindex='0']").count() == 1


def test_points_lie_where_they_belong(page):
    boxes = [page.locator(f"#point-{number} use").bounding_box() for number in range(5)]

    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    assert boxes[3]["y"] < boxes[4]["y"] < boxes[0]["y"]


def test_a_label_dims_the_others(page):
    page.click("#legend button:has-text('high')")
    assert [page.locator(f"#point-{number}.dim").count() for number in range(5)] == [1, 1, 0, 0, 1]
    page.click("#legend button:has-text('high')")
    assert page.locator(".dim").count() == 0


def test_the_slider_changes_and_plays_the_sound(page):
    page.focus("#interpolations input")
    page.keyboard.press("End")
    plays(page, "#interpolations audio")

    assert page.inner_text("#interpolations figcaption") == "100 % of the way"
    for kind, tag in (("audio", "audio"), ("image", "img")):
        shown = page.get_attribute(f"#interpolations {tag}", "src")
        assert shown == page.evaluate(f"data.interpolations[0].steps[4].{kind}")


def test_the_nearest_clip_of_a_sample_plays(page):
    page.click("#samples button")
    plays(page, "#single")

    assert page.evaluate("document.getElementById('single').src") == page.evaluate("data.samples[0].nearest.audio")


def test_names_are_text(page):
    assert page.inner_text("#reconstructions h3") == HOSTILE
    assert page.title() == "Generative-Music: listen"


def test_what_is_empty_is_not_shown(page):
    assert page.locator("#arithmetic").is_hidden()
    assert page.locator("nav a").count() == 5


@pytest.mark.parametrize("width", [320, 600, 1400])
def test_nothing_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 800})

    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_by_day_and_night(page, scheme):
    """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    page.emulate_media(color_scheme=scheme)
    style = "each => getComputedStyle(document.querySelector(each))"
    colours = [page.evaluate(f"({style})('{name}').color") for name in ("h2", "p", "a", "figcaption", "button")]
    colours.append(page.evaluate(f"({style})('body').backgroundColor"))
    *texts, ground = (luminance(colour) for colour in colours)

    assert (ground > 0.5) == (scheme == "light")
    for text in texts:
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5


def luminance(colour):
    """Return the relative luminance of `rgb(r, g, b)`."""
    channels = np.array([float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
