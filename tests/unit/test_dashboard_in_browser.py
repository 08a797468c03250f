"""The dashboards in a real browser, as `test_page_in_browser`."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import cast

import pytest
from playwright import sync_api as playwright

from loraserve.monitoring import dashboards
from loraserve.operator.access.prometheus import Prometheus
from loraserve.operator.stack.dashboard_server import DashboardServer
from tests.unit.test_dashboard import Answers

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: make browser")


def test_every_page_is_painted_without_a_word_from_elsewhere(tmp_path: Path) -> None:
    problems: list[str] = []

    def hear(said: playwright.ConsoleMessage) -> None:
        if said.type == "error":
            problems.append(said.text)

    def see(asked: playwright.Request) -> None:
        if not asked.url.startswith((server.url, "data:", "blob:")):
            problems.append(asked.url)

    playwright.expect.set_options(timeout=60_000)  # a busy machine takes its time over plotly.js
    with DashboardServer(cast(Prometheus, Answers()), 0) as server, playwright.sync_playwright() as browsers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", hear)
        page.on("request", see)
        for board in dashboards.ALL:
            page.goto(f"{server.url}#{board.uid}")
            playwright.expect(page.locator("section")).to_have_count(len(board.panels))
            playwright.expect(page.locator("section").locator(".main-svg, dl")).not_to_have_count(0)
            playwright.expect(page.get_by_text("no data")).to_have_count(0)
            playwright.expect(page.locator("a[aria-current]")).to_have_text(board.title)
            page.screenshot(path=tmp_path / f"{board.uid}.png", full_page=True)
        playwright.expect(page.locator("#alerts li")).to_have_count(1)
        browser.close()
        server.shutdown()
    assert not problems
