"""A page in a Chromium that has just been started, with an empty profile; needs chromium, chromedriver and selenium."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1440,900"),
)
#: Set by the page when the pictures in sight are painted; an empty page has only the browser's own mark.
_MARK = """const [mark] = performance.getEntriesByName('first-pictures');
const [paint] = performance.getEntriesByName('first-contentful-paint');
const found = arguments[0] ? mark : paint;
return found ? found.startTime / 1000 : null"""


@dataclass(frozen=True)
class Seen:
    """What a page did."""

    seconds: float  #: from the start of the navigation to pictures, or to the first content, by the page's own clock
    messages: list[str]  #: on its console


def seen(path: Path, *, pictures: bool) -> Seen:
    """Open a page and wait until something is on the screen.

    Args:
        path: of its file.
        pictures: wait for the pictures of a report; otherwise for any content.
    """
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or sys.exit("there is no chromium")
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.page_load_strategy = "none"
        service = webdriver.ChromeService(
            shutil.which("chromedriver") or sys.exit("there is no chromedriver")
        )
        browser = webdriver.Chrome(options=options, service=service)
        try:
            browser.get(path.as_uri())
            # Asked seldom: every question takes time from the page.
            seconds = WebDriverWait(browser, 120, poll_frequency=0.5).until(
                lambda it: it.execute_script(_MARK, pictures)
            )
            return Seen(float(seconds), [entry["message"] for entry in browser.get_log("browser")])
        finally:
            browser.quit()
