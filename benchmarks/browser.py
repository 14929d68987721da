"""Open a page in a new Chromium with an empty profile. Needs chromium, chromedriver and selenium."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

#: The page sets the mark when the pictures in sight are painted. An empty page has only the browser's own mark.
_MARK = """const name = arguments[0] ? 'first-pictures' : 'first-contentful-paint';
const [mark] = performance.getEntriesByName(name);
return mark ? mark.startTime / 1000 : null"""


@dataclass(frozen=True)
class Seen:
    """What a page did."""

    seconds: float  #: from the start of the navigation to the pictures, or to the first content, by the page's own clock
    messages: list[str]  #: on its console


def seen(path: Path, *, pictures: bool) -> Seen:
    """Open a page and wait until something is on the screen.

    Args:
        path: The file.
        pictures: Wait for the pictures of a report instead of any content.
    """
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        sys.exit("expected chromium and chromedriver on the PATH; install chromium and chromium-driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for flag in (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--window-size=1440,900",
        ):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.page_load_strategy = "none"
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            browser.get(path.as_uri())
            # Ask seldom: each question takes time from the page.
            seconds = WebDriverWait(browser, 120, poll_frequency=0.5).until(
                lambda it: it.execute_script(_MARK, pictures)
            )
            return Seen(float(seconds), [entry["message"] for entry in browser.get_log("browser")])
        finally:
            browser.quit()
