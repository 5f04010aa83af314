"""A real browser for tests: found on this machine, without a network. Playwright's own download will do as well."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HINT = f"no browser on this machine; any of {', '.join(BROWSERS)} will do (Debian: apt install chromium)"


def find_browser(playwright: Any) -> str:
    """Path of a Chromium. Without one the test is skipped; where the environment has `CI` it fails."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None) or playwright.chromium.executable_path
    if not Path(found).is_file():
        (pytest.fail if "CI" in os.environ else pytest.skip)(HINT)
    return found


@contextmanager
def running_browser() -> Iterator[Any]:
    """A started Chromium. For fixtures of module scope: while it runs, nothing else in the process can use asyncio."""
    if "CI" not in os.environ:
        pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[test]")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(playwright), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def offline_page(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page of a file, shown without a network; at the end it must have asked for nothing and raised no error.

    Args:
        browser: From `running_browser`.
        path: HTML file.
        **options: Of the browser context: color_scheme, viewport, ...
    """
    context = browser.new_context(offline=True, accept_downloads=True, **options)
    page, requests, errors = context.new_page(), [], []
    page.set_default_timeout(10_000)
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    try:
        page.goto(path.as_uri())
        yield page
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    finally:
        context.close()
