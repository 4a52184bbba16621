"""A headless Chromium, as Debian packages it. Tests that need one are skipped, loudly, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def opened(path: Path, *, width: int = 1280, height: int = 900, scheme: str = "light", scripts: bool = True) -> Iterator[Any]:
    """A page from disk. `page.faults` collects what the console says, dialogs, and everything it asks the network for."""
    if CHROMIUM is None:
        pytest.skip("NEEDS CHROMIUM: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The tests may run as root, where Chromium's own sandbox does not start.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=scripts, offline=True
        )
        page = context.new_page()
        page.faults = []
        page.on("console", lambda told: page.faults.append(f"{told.type}: {told.text}"))
        page.on("pageerror", lambda error: page.faults.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (page.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(("file:", "data:")) else page.faults.append(f"network: {asked.url}"),
        )
        try:
            page.goto(path.resolve().as_uri())
            yield page
        finally:
            browser.close()


def draw_all(page: Any) -> int:
    """Bring every chart into view and wait until it is drawn. Returns how many there are."""
    charts = page.locator(".chart")
    for number in range(charts.count()):
        charts.nth(number).scroll_into_view_if_needed()
        charts.nth(number).locator("svg").first.wait_for(state="attached", timeout=30_000)
    return int(charts.count())
