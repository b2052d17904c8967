"""The pictures' sections in a real browser, from disk, without a network: a click on a patch, the map, its search, keys alone."""

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from jepakit.artifacts.run import Run
from jepakit.pictures import make_pictures
from jepakit.reporting import report
from test_run_pictures import EVIL, contents, run  # noqa: F401  # a fixture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # noqa: F811
    make_pictures(run)
    path = report(run, tmp_path_factory.mktemp("page") / "page.html")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True, viewport={"width": 1400, "height": 900}).new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()


def veil(page: Any, image: int) -> np.ndarray:
    """How dark each patch of an image is."""
    code = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3)"
    return np.array(page.locator(".stage canvas").nth(image).evaluate(code))


def test_a_click_dims_all_patches_by_their_cosine_with_it(page: Any, run: Run) -> None:  # noqa: F811
    about, arrays = contents(run.path / "pictures")
    tokens = arrays["tokens"].astype(float)
    unit = tokens / np.linalg.norm(tokens, axis=2, keepdims=True)
    rows, columns = about["grid"]
    box = page.locator(".stage canvas").nth(2).bounding_box()
    at = {"x": box["width"] * 1.5 / columns, "y": box["height"] * 0.5 / rows}  # row 0, column 1
    page.locator(".stage canvas").nth(2).click(position=at)
    cosines = np.clip(unit @ unit[2, 1], 0, 1)
    for image in range(len(unit)):
        np.testing.assert_allclose(veil(page, image), 210 * (1 - cosines[image] ** 1.5), atol=1)
    assert veil(page, 2)[1] == 0  # with itself the cosine is 1
    others = np.delete(np.arange(len(unit)), 2)
    nearest = others[(unit @ unit[2, 1])[others].max(1).argmax()]
    told = page.locator("[data-told]").inner_text()
    assert (
        told.startswith("Row 1, column 2 of") and f"most alike in another image: {about['gallery']['titles'][nearest]}," in told
    )
    page.keyboard.press("ArrowDown")
    np.testing.assert_allclose(veil(page, 2)[1 + columns], 0, atol=0)
    assert page.locator("[data-told]").inner_text().startswith("Row 2, column 2 of")


def test_the_map_is_searched_and_names_the_nearest(page: Any, run: Run) -> None:  # noqa: F811
    about, arrays = contents(run.path / "pictures")
    host = page.locator("#embeddings")
    host.get_by_role("searchbox").fill(EVIL)
    found = [i for i, label in enumerate(about["map"]["labels"]) if label == EVIL]
    assert host.locator("aside").inner_text().startswith(f"{len(found)} found.")
    page.keyboard.press("Enter")
    names = host.locator("aside button span").all_inner_texts()
    want = [f"{about['map']['titles'][i]}, {about['map']['labels'][i]}" for i in arrays["map_nearest"][found[0]]]
    assert [name.split("\n")[0] for name in names] == want
    assert about["map"]["titles"][found[0]] in host.locator("aside .own").inner_text()
    host.get_by_role("searchbox").fill("")


def test_the_map_is_moved_and_zoomed_and_shown_whole_again(page: Any) -> None:
    host = page.locator("#embeddings")
    canvas = host.locator("canvas")
    canvas.scroll_into_view_if_needed()
    whole_button = host.get_by_role("button", name="Whole map")

    def drawn() -> str:
        page.mouse.move(0, 0)
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return str(canvas.evaluate("c => c.toDataURL()"))

    whole_button.click()
    whole = drawn()
    canvas.focus()
    for key in ("-", "ArrowRight"):  # nearer, two groups in the corners would be out of sight
        before = drawn()
        page.keyboard.press(key)
        assert drawn() != before
    whole_button.click()
    assert drawn() == whole
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 230, steps=3)
    page.mouse.up()
    assert drawn() != whole
    whole_button.click()
    host.locator("[type=radio]").first.focus()
    page.keyboard.press("ArrowRight")
    assert host.get_by_label("PCA").is_checked() and drawn() != whole


def test_keys_choose_the_image_that_is_nearest_to_the_middle_of_the_map(page: Any, run: Run) -> None:  # noqa: F811
    about, arrays = contents(run.path / "pictures")
    host = page.locator("#embeddings")
    host.locator("canvas").focus()
    page.keyboard.press("0")
    points = arrays["map_pca"].astype(float)
    middle = (points.min(0) + points.max(0)) / 2  # the whole map is in view, its middle in the middle
    page.keyboard.press("Enter")
    nearest = np.linalg.norm(points - middle, axis=1).argmin()
    assert about["map"]["titles"][nearest] in host.locator("aside .own").inner_text()
    assert about["map"]["titles"][nearest] in host.locator(".ground .tip").inner_text()


REACHED = """() => {
  const at = document.activeElement;
  if (at === document.body || at.dataset.reached) return null;
  at.dataset.reached = "yes";
  const shows = (e) => getComputedStyle(e).outlineStyle !== "none" && getComputedStyle(e).opacity > 0;
  return [at.outerHTML.slice(0, 80), [at, at.closest(".stage"), at.closest("fieldset label")].some((e) => e && shows(e))];
}"""


def test_every_control_is_reached_by_keys_alone_and_shows_it(page: Any) -> None:
    page.locator("h1").evaluate("e => { e.tabIndex = -1; e.focus() }")  # the walk begins at the top
    found = []
    while page.keyboard.press("Tab") or (here := page.evaluate(REACHED)):
        found.append(here)
    assert len(found) > 30 and not [what for what, shown in found if not shown]
    controls = (
        "button:not(:disabled), input:not(:disabled):not([type=radio]:not(:checked)), select, summary, [tabindex='0'], canvas"
    )
    code = "all => all.filter((e) => !e.dataset.reached && e.checkVisibility()).map((e) => e.outerHTML.slice(0, 80))"
    assert page.locator(controls).evaluate_all(code) == []


def test_nothing_is_said_or_asked_for_and_the_page_is_open_to_all(page: Any) -> None:
    assert not page.said and not [url for url in page.asked if not url.startswith(("file:", "data:"))]
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    assert not [each["id"] for each in found if each["impact"] in ("serious", "critical")]
