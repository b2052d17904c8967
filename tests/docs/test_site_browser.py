"""The site that `make docs` built, in a real browser: opened from disk without a network, narrow and wide, and searched."""

from typing import Any

import pytest

from pages import ROOT
from test_browser import CHROMIUM, browser, opened  # noqa: F401  # a fixture

SITE = ROOT / "docs" / "_build" / "html"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.skipif(not (SITE / "searchindex.js").exists(), reason="the site is not built here: make docs"),
]
# Tables of five columns and more, long signatures
WIDEST = ["settings", "small-data", "which-method", "study-results", "_reference/names"]


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1400, "light")])
def test_no_page_is_wider_than_its_window(width: int, scheme: str, browser: Any) -> None:  # noqa: F811
    page = opened(browser, SITE / "index.html", width, scheme)
    for name in WIDEST:
        page.goto((SITE / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert page.said == []


def test_search_finds_a_page_without_a_server_and_code_has_a_button_to_copy_it(browser: Any) -> None:  # noqa: F811
    page = opened(browser, SITE / "tutorial.html")
    assert page.locator("button.copybtn").count() == page.locator("div.highlight pre").count() > 5
    page.fill("input.sidebar-search", "collapse doctor")
    page.keyboard.press("Enter")
    page.locator("ul.search li a", has_text="The collapse doctor").first.click()
    page.locator("h1", has_text="The collapse doctor").wait_for()
    assert page.url.startswith((SITE / "collapse.html").as_uri())
    assert page.said == [] and not [url for url in page.asked if not url.startswith(("file:", "data:"))]
