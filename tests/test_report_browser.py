"""The report in headless Chromium: it draws its figures, its switches work, it fits a phone, and it is accessible."""

import functools
import itertools
import pathlib
import shutil

import pytest

from bert_fast.reporting import write
from helpers.made_runs import write_run, write_scores, write_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install bert_fast[test]")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe: pip install bert_fast[test]")

WIDE, PHONE = 1180, 390


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def reports(small_shards, tmp_path_factory) -> dict[str, pathlib.Path]:
    """Three pages: a study with all methods, runs with a warning and scores, and a run that has just begun."""
    root = tmp_path_factory.mktemp("reports")
    write_study(root / "study", small_shards, arms=("dense", "all four"))
    write_run(root / "dense", small_shards)
    write_run(
        root / "mslt", small_shards, "stacking", stacking__variant="mslt", fingerprint="bad", finished=False, until=25
    )
    write_run(root / "young", small_shards, "token_drop", evaluated=False, finished=False, until=5, costs=False)
    write_scores(root / "mrpc", 80.0)
    paths = {"study": ["study"], "runs": ["dense", "mslt", "mrpc"], "young": ["young"]}
    return {name: write([root / each for each in folders], root / f"{name}.html")[0] for name, folders in paths.items()}


@pytest.fixture
def opened(browser, reports):
    """Opens a report by name, width and colour scheme. The test fails if a page has an error or makes a request."""
    problems, contexts = [], []

    def opened(name: str, width: int = WIDE, scheme: str = "light", script: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: problems.append(request.url) if "file://" not in request.url else None)
        page.goto(reports[name].as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


every = functools.partial(pytest.mark.parametrize, "name", ["study", "runs", "young"])

# Finds pictures without a size or without content, and lines of several points without a length.
EMPTY = """() => [...document.querySelectorAll("figure svg, figure .line")]
    .filter((one) => one.checkVisibility() && (one.tagName === "svg" || one.getAttribute("d").includes("L")))
    .filter((one) => {
        const box = one.getBoundingClientRect();
        const empty = one.tagName === "svg" && !one.querySelector("path, rect, text");
        return empty || box.width + box.height < 1;
    })
    .map((one) => one.outerHTML.slice(0, 200))"""


@every()
def test_no_table_is_cut_on_a_laptop(name, opened):
    page = opened(name, 1280)
    cut = """() => [...document.querySelectorAll(".scroll:has(table)")].filter((one) => one.checkVisibility())
        .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.ariaLabel)"""
    assert page.evaluate(cut) == []


@every()
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_names_of_stages_do_not_overlap_and_are_not_cut(name, width, opened):
    page = opened(name, width)
    pictures = page.locator(".stages").all()
    assert pictures
    for picture in pictures:
        spans = picture.locator("span").all()
        assert all(span.evaluate("one => one.scrollWidth <= one.clientWidth + 1") for span in spans)
        boxes = [span.bounding_box() for span in spans]
        for one, other in itertools.combinations(boxes, 2):
            beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            assert beside or abs(one["y"] - other["y"]) >= 14
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)


@every()
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_every_figure_is_drawn_with_a_table_and_fits_the_screen(name, width, opened):
    page = opened(name, width)
    figures = page.locator("figure").all()
    assert len(figures) >= 4
    for figure in figures:
        box = figure.bounding_box()
        assert min(box["width"], box["height"]) > 40
        assert figure.locator("[role=img]:visible").first.get_attribute("aria-label")
        assert figure.locator("details table").count() == 1
    assert page.evaluate(EMPTY) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_clicks_on_the_switches_show_one_picture_for_each_combination(opened):
    page = opened("study")
    loss = page.locator("#losses")
    seen = set()
    for budget in ("tokens:1e4", "tokens:2e4"):
        for split in ("Training", "Held-out"):
            for axis in ("Tokens", "FLOPs", "Seconds"):
                for words in (budget, split, axis):
                    loss.locator("label").get_by_text(words, exact=True).click()
                visible = loss.locator(".view:visible")
                assert visible.count() == 1
                seen.add(visible.get_attribute("data-view"))
                assert visible.locator("svg[role=img]").bounding_box()["height"] > 300
    assert len(seen) == 12


def test_switch_works_by_keyboard_and_shows_the_focus(opened):
    page = opened("study")
    page.locator("#losses-axis-0").focus()
    assert "tokens" in page.locator("#losses > .view:visible").get_attribute("data-view")
    page.keyboard.press("ArrowRight")
    assert "flops" in page.locator("#losses > .view:visible").get_attribute("data-view")
    style = page.evaluate("getComputedStyle(document.querySelector('#losses-axis-1 + label')).outlineStyle")
    assert style == "solid"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.name") == "losses-split"


def test_page_works_without_its_script(opened):
    page = opened("study", script=False)
    page.locator("#losses label", has_text="FLOPs").click()
    assert "flops" in page.locator("#losses > .view:visible").get_attribute("data-view")


def test_pointer_shows_the_nearest_value(opened):
    page = opened("study")
    svg = page.locator("#losses > .view:visible svg[role=img]")
    svg.scroll_into_view_if_needed()
    svg.hover(position={"x": 5, "y": 5})
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "thousand tokens" in tip.text_content()
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_keyboard_scrolls_a_wide_table_in_its_own_box(opened):
    page = opened("study", PHONE)
    box = page.locator("#results .scroll:visible").first
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())


SLOW = [pytest.mark.slow]  # axe needs seconds for a page with many tables


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("runs", WIDE, "light"),
        ("young", PHONE, "dark"),
        pytest.param("runs", PHONE, "dark", marks=SLOW),
        pytest.param("study", WIDE, "light", marks=SLOW),
        pytest.param("study", PHONE, "dark", marks=SLOW),
    ],
)
def test_axe_finds_no_violation(name, width, scheme, opened):
    page = opened(name, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = axe_api.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert len(found.response["passes"]) > 15


def test_dark_scheme_is_dark_and_print_is_light(opened):
    paper = "getComputedStyle(document.body).backgroundColor"
    page = opened("runs", scheme="dark")
    assert page.evaluate(paper) == "rgb(20, 23, 26)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
