"""`make screenshots`: the console as docs/ shows it, of a cluster that is played.

Three LBs, three nodes and some traffic: light and dark, on a desk and on a phone, well and with a
dead node.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from tests.api.conftest import Gale, wait_for
from tests.api.test_console import CHROMIUM, DESK, PHONE, cluster, count, node_0_dies

DIRECTORY = Path(__file__).parents[2] / "docs"
SECONDS = 25


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="gale-", dir="/tmp") as directory:
        gale = Gale(Path(directory))
        gale.start_fakes()
        gale.start_api()
        try:
            wait_for(lambda: gale.get("/readyz").status_code == 200, "the LB to be ready")
            cluster(gale)
            with sync_playwright() as playwright:
                options = ["--no-sandbox"]
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
                _shoot(gale, browser)
                browser.close()
        finally:
            gale.stop()


def _shoot(gale: Gale, browser: Browser) -> None:
    pages = {
        "console.png": _opened(gale, browser, DESK, "light"),
        "console-dark.png": _opened(gale, browser, DESK, "dark"),
        "console-phone.png": _opened(gale, browser, PHONE, "light"),
    }
    packets = 1_000
    for second in range(SECONDS):
        packets += int(2_000 + 600 * math.sin(second / 4) + 150 * math.sin(second * 1.7))
        count(gale, packets)
        time.sleep(1)
    _take(pages["console.png"], "console.png", whole=True)
    node_0_dies(gale)
    for name in ("console-dark.png", "console-phone.png"):
        page = pages[name]
        expect(page.locator(".node .state.is-bad")).to_have_count(1)
        page.locator(".node summary").first.click()
        _take(page, name, whole=False)


def _opened(
    gale: Gale, browser: Browser, size: ViewportSize, scheme: Literal["light", "dark"]
) -> Page:
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.goto(gale.url)
    expect(page.locator(".node")).to_have_count(3)
    return page


def _take(page: Page, name: str, *, whole: bool) -> None:
    page.wait_for_timeout(500)  # what moves into place has arrived
    page.screenshot(path=DIRECTORY / name, full_page=whole)


if __name__ == "__main__":
    main()
