"""The report in a real browser: Debian's chromium, opened from disk with networking off."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepakit.reporting import report
from jepakit.reporting.live import serve
from run_files import EVIL, SECTIONS, add_pixels, add_result, healthy, make_run, scored

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
]
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
STEPS, BATCH = 200, 64


def judged_run(folder: Path, accuracy: float, seed: int) -> Path:
    """A run with all that a page can show: rows, looks, probes with classes, pictures, kept steps."""
    run = make_run(folder, accuracy=accuracy)
    rng = np.random.default_rng(seed)
    with run.joinpath("metrics.jsonl").open("w") as lines:
        for i in range(1, STEPS + 1):
            row = healthy(i * 10, loss=2 / i + 0.02 * rng.random(), seconds=i * 3.6, images_per_second=90 + 9 * rng.random())
            row |= {"loss/prediction": row["loss"] / 2, "loss/cov": row["loss"] / 2, "lr": 1e-3 * (1 - i / STEPS)}
            row |= {"probe/knn": 0.2 + i / 500, **({"probe/knn_at_start": 0.2} if i == 1 else {})} if i % 20 == 1 else {}
            lines.write(json.dumps({**row, "grad_norm": None if i == 50 else rng.random()}) + "\n")
    classes = [{"class": name, "n_test": 9, "recall": rng.random()} for name in (EVIL, "العربية", "cat \"quoted\" & 'so'")]
    by = {"accuracy": {"value": accuracy, "low": accuracy - 0.03, "high": accuracy + 0.03}}
    rows = [scored("target encoder", accuracy, 0.03, metrics=by)]
    rows += [scored("untrained encoder", 0.4), scored("pixel PCA", 0.42), scored("raw pixels", 0.38)]
    add_result(run, "linear", rows, labels="kind", n_train=500, n_test=130, per_class=classes)
    add_result(run, "rankme", [{"name": "target encoder", "rankme": 20.0}, {"name": "untrained encoder", "rankme": 5.0}])
    right = (rng.random((1, 130)) < accuracy).astype(float)
    for task in ("knn", "linear"):
        arrays = {"ids": np.arange(130), "names": np.array(["target encoder"]), "data": np.array(["toy", "kind"])}
        np.savez(run / f"evaluation/{task}.npz", right=right, **arrays)
    add_pixels(run)
    kept = {step: scored("target encoder", 0.2 + step / 9000) for step in (500, 1000, 2000)}
    steps = [{"step": step, "images": step * BATCH, "results": {"knn": row}} for step, row in kept.items()]
    said = {"steps": steps, "baselines": {"knn": [scored("untrained encoder", 0.2)]}, "said": ["Step 2000 is best."], "of": {}}
    run.joinpath("evaluation/steps.json").write_text(json.dumps(said))
    return run


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    runs = [judged_run(folder / name, accuracy, seed) for seed, (name, accuracy) in enumerate({"a": 0.5, "b": 0.62}.items())]
    return {"one": report(runs[1], folder / "one.html"), "two": report(runs, folder / "two.html")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def desk(browser: Any, pages: dict[str, Path]) -> Any:
    """The page of two runs, open."""
    return opened(browser, pages["two"])


def opened(browser: Any, path: Path, width: int = 1400, scheme: str = "light") -> Any:
    """A page from disk, without a network; what it says on the console is kept as `said`, what it asks for as `asked`."""
    page = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("dialog", lambda dialog: page.said.append(dialog.message))
    page.goto(path.as_uri())
    return page


VIEWS = [("one", 1400, "light"), ("one", 400, "light"), ("two", 400, "dark"), ("two", 1400, "dark")]


@pytest.mark.parametrize(("name", "width", "scheme"), VIEWS)
def test_it_opens_from_disk_whole_silent_and_fit_to_read(
    name: str, width: int, scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    page = opened(browser, pages[name], width, scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
    sections = page.locator("section")
    boxes = [sections.nth(i).bounding_box() for i in range(sections.count())]
    assert len(boxes) == len(SECTIONS) + (2 if name == "two" else 1) and all(  # those of steps and of pixels too
        box and box["height"] > 40 and box["width"] > 300 for box in boxes
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # only tables may scroll, inside themselves
    assert not [url for url in page.asked if not url.startswith(("file:", "data:"))]
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    serious = [
        (each["id"], [node["target"] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert not serious
    assert not page.said
    page.context.close()


def chart(page: Any, title: str) -> Any:
    return page.locator("#curves .chart", has=page.get_by_role("heading", name=title, exact=True)).locator("svg")


def span(svg: Any) -> tuple[float, float]:
    """What the chart shows of its axis."""
    return float(svg.get_attribute("aria-valuemin")), float(svg.get_attribute("aria-valuemax"))


def test_the_pointer_reads_values_of_every_run(desk: Any) -> None:
    svg = chart(desk, "Learning rate")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    desk.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] / 2)  # the right end of the curve
    tip = desk.locator("#curves .tip:visible")
    assert tip.count() == 1
    assert tip.inner_text().split("\n")[0] == "step 2,000"
    assert tip.locator("div").all_inner_texts() == ["a 0", "b 0"]
    desk.mouse.move(0, 0)
    assert desk.locator("#curves .tip:visible").count() == 0


def test_a_drag_zooms_all_curves_and_the_button_shows_the_whole_run(desk: Any) -> None:
    svg, other = chart(desk, "Loss"), chart(desk, "Effective rank")
    whole = span(other)
    assert whole == (10, 2000)
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    desk.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50)
    desk.mouse.down()
    desk.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60, steps=3)
    desk.mouse.up()
    low, high = span(svg)
    assert span(other) == (low, high) and 800 < low < 1000 and 1400 < high < 1600
    desk.get_by_role("button", name="Whole run").first.click()
    assert span(svg) == span(other) == whole
    assert desk.get_by_role("button", name="Whole run").first.is_disabled()


def test_axes_of_images_hours_and_logs(desk: Any) -> None:
    svg = chart(desk, "Loss")
    for axis, ends in {"images": (640, 128_000), "hours": (0.001, 0.2), "steps": (10, 2000)}.items():
        desk.locator(f"#curves input[value={axis}]").check(force=True)
        assert span(svg) == pytest.approx(ends)
    ticks = svg.locator("text").all_text_contents()
    desk.locator("#curves input[name=logY]").check()
    assert {"0.1", "1"} <= {*svg.locator("text").all_text_contents()} and svg.locator("text").all_text_contents() != ticks
    desk.locator("#curves input[name=logY]").uncheck()
    assert desk.locator("#steps .chart svg").first.get_attribute("aria-valuemax") == "128000"


def test_by_keyboard_alone(desk: Any) -> None:
    svg = chart(desk, "Loss")
    svg.focus()
    desk.keyboard.press("End")
    at_end = svg.get_attribute("aria-valuetext")
    assert at_end.startswith("step 2,000: a ") and "; b " in at_end
    desk.keyboard.press("ArrowLeft")
    assert svg.get_attribute("aria-valuetext") != at_end
    desk.keyboard.press("+")
    assert span(svg)[0] > 900
    desk.keyboard.press("Escape")
    assert span(svg) == (10, 2000)
    reached = set()
    desk.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    for _ in range(60):
        desk.keyboard.press("Tab")
        reached.add(desk.evaluate("(document.activeElement.closest('section') || {}).id + ' ' + document.activeElement.tagName"))
    assert {"comparison BUTTON", "curves INPUT", "curves svg", "probes SUMMARY", "configuration SUMMARY"} <= reached
    desk.locator("#configuration summary").first.focus()
    desk.keyboard.press("Enter")
    assert desk.locator("#configuration pre").first.is_visible()


def test_a_click_on_a_head_sorts_the_runs_and_another_turns_them(desk: Any) -> None:
    names = desk.locator("#comparison table.sortable tbody th")
    head = desk.locator("#comparison table.sortable thead").get_by_role("button", name="Linear probe")
    assert names.all_inner_texts() == ["a", "b"]
    head.click()
    assert names.all_inner_texts() == ["b", "a"]  # 62 % before 50 %
    head.click()
    assert names.all_inner_texts() == ["a", "b"]


def test_the_policy_lets_nothing_load_and_no_other_script_run(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["one"])
    reached = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'loaded', () => 'refused')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    assert reached == "refused" and page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in line for line in page.said) >= 2
    assert EVIL in page.locator("#probes").inner_text() or page.locator("#probes details").count()
    page.context.close()


def test_a_live_page_takes_new_rows_and_stays_zoomed_in(browser: Any, pages: dict[str, Path]) -> None:
    run, told, ready = pages["one"].parent / "a", [], threading.Event()
    started = {"on_start": lambda *words: (told.append(words), ready.set())}
    thread = threading.Thread(target=serve, args=([run],), kwargs=started)
    thread.start()
    assert ready.wait(60)
    address, end = told[0]
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_text("live, asked at").wait_for()
    svg = chart(page, "Loss")
    svg.focus()
    page.keyboard.press("+")
    zoomed = span(svg)
    with run.joinpath("metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(healthy(4000, loss=0.5, seconds=730.0)) + "\n")
    page.get_by_text("4,000 of 100,000 steps").first.wait_for(timeout=60_000)
    assert span(svg) == zoomed
    page.keyboard.press("0")
    assert span(svg)[1] == 4000
    end()
    thread.join(20)
    page.get_by_text("the server has ended").wait_for()
    assert not errors and not thread.is_alive()
    page.close()


def test_without_its_script_the_page_still_shows_its_curves(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(pages["two"].as_uri())
    assert page.locator("#curves svg").first.is_visible() and page.locator("#curves svg path").count() > 10
    assert not page.locator("#curves .controls").is_visible()
    page.context.close()
