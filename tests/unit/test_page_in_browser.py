"""The page in a real browser; skipped where there is none (`make browser` installs one)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api as playwright

from loraserve.operator.models.page_server import PageServer
from tests.unit.gateway_world import BASE, World, adapter, world

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed: make browser")


@pytest.fixture
def at(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        made.pods[0].holds("faq@v1")
        made.start(adapter(), adapter("asleep"))
        made.wait_for_status("ready")
        yield made


@pytest.fixture
def page(at: World) -> Iterator[Any]:
    playwright.expect.set_options(timeout=60_000)  # a busy machine takes its time
    with PageServer(at.url, 0) as server, playwright.sync_playwright() as browsers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on(
            "console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None
        )
        opened.goto(server.url)
        yield opened
        browser.close()
        server.shutdown()
        assert not problems


def sides(page: Any) -> Any:
    return page.locator("section")


def test_base_and_adapter_answer_side_by_side(at: World, page: Any, tmp_path: Path) -> None:
    page.get_by_label("API key").fill(at.key)
    page.get_by_label("Question").fill("Who are you?")
    page.get_by_role("button", name="Ask").click()

    for side, served in enumerate((BASE, "faq@v1")):
        playwright.expect(sides(page).nth(side).locator("output")).to_have_text("Hello world")
        playwright.expect(sides(page).nth(side).locator(".facts")).to_contain_text(f"{served}: first word after")
    assert sorted(request["model"] for request in at.pods[0].requests) == [BASE, "faq@v1"]
    page.screenshot(path=tmp_path / "page.png")
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_a_wrong_key_is_told_and_can_be_corrected(at: World, page: Any) -> None:
    page.get_by_label("Question").fill("Hi")
    page.get_by_label("API key").fill("lsk-wrong")
    page.get_by_role("button", name="Ask").click()
    playwright.expect(page.get_by_role("alert")).to_contain_text("key is not valid")

    page.get_by_label("API key").fill(at.key)
    page.get_by_label("API key").blur()
    playwright.expect(page.get_by_role("alert")).to_be_hidden()
    playwright.expect(sides(page).first.locator("select")).to_have_value(BASE)


def test_one_side_that_fails_leaves_the_other_alone_and_both_can_be_stopped(at: World, page: Any) -> None:
    page.get_by_label("API key").fill(at.key)
    page.get_by_label("API key").blur()
    sides(page).nth(1).locator("select").select_option("asleep")
    page.get_by_label("Question").fill("Hi")
    page.get_by_role("button", name="Ask").click()

    playwright.expect(sides(page).nth(0).locator("output")).to_have_text("Hello world")
    playwright.expect(sides(page).nth(1).locator(".facts")).to_contain_text("a sleeping model takes minutes")
    page.get_by_role("button", name="Stop").click()
    playwright.expect(sides(page).nth(1).locator(".facts")).to_contain_text("stopped after")
    at.wait_for_load()
