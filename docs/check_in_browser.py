"""``python docs/check_in_browser.py [FOLDER]``: open every page of the built documentation in headless Chromium.

At the widths of a phone and of a screen no page scrolls sideways, logs an error or lacks its pictures, the search finds what it
should, and light and dark differ. Needs the extra ``test`` (selenium), Chromium and its driver.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.ui import WebDriverWait

WIDTHS = (390, 1440)
#: What the search has to find, and on which page.
WANTED = {"CamRegularizer": "CamRegularizer.html", "dead maps": "dead_maps.html", "shortcut": "shortcut"}
#: Pages that show what code has drawn, and the least number of pictures.
PICTURES = {"auto_examples/plot_": 1, "notebooks/shortcut": 3, "notebooks/tour": 5, "study": 2, "index": 1}
_BROKEN = "return [...document.images].filter(it => it.complete && !it.naturalWidth).map(it => it.src)"
_WIDE = """
const root = document.documentElement;
if (root.scrollWidth <= root.clientWidth) return [];
return [...document.querySelectorAll('body *')].filter(it => it.getBoundingClientRect().right > root.clientWidth + 1)
  .slice(0, 5).map(it => it.tagName + '.' + it.className);
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the folder on this machine and give its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Start a headless browser that reaches nothing but this machine."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        sys.exit("expected chromium and chromedriver on the PATH; install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()


def faults(browser: webdriver.Chrome, home: str, page: str) -> Iterator[str]:
    """Say what is wrong with a page."""
    browser.get(f"{home}/{page}")
    if wide := browser.execute_script(_WIDE):
        yield f"scrolls sideways: {', '.join(wide)}"
    if broken := browser.execute_script(_BROKEN):
        yield f"broken pictures: {', '.join(broken)}"
    wanted = max((least for start, least in PICTURES.items() if page.startswith(start)), default=0)
    shown = browser.execute_script("return document.querySelectorAll('article img').length")
    if shown < wanted:
        yield f"expected at least {wanted} pictures, got {shown}"
    yield from (entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE")


def search_faults(browser: webdriver.Chrome, home: str) -> Iterator[str]:
    """Say what the search does not find."""
    links = "return [...document.querySelectorAll('#search-results a')].map(link => link.href)"
    for words, wanted in WANTED.items():
        browser.get(f"{home}/search.html?q={words.replace(' ', '+')}")
        try:
            WebDriverWait(browser, 20).until(
                lambda it, wanted=wanted: wanted in " ".join(it.execute_script(links))
            )
        except TimeoutException:
            yield f"expected {wanted} for {words!r}, got {browser.execute_script(links)[:5]}"


def theme_faults(browser: webdriver.Chrome, home: str) -> Iterator[str]:
    """Say whether light and dark look the same."""
    browser.get(f"{home}/index.html")
    ground = (
        "document.body.dataset.theme = arguments[0]; return getComputedStyle(document.body).backgroundColor"
    )
    if len({browser.execute_script(ground, theme) for theme in ("light", "dark")}) == 1:
        yield "light and dark look the same"


def main() -> None:
    """Check all pages at all widths; exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "_build" / "html")
    folder = parser.parse_args().folder
    pages = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.html")
        if not {"_static", "_modules"} & set(path.parts)
    )
    if not pages:
        parser.error(f"expected the built pages in {folder}, found none; `make docs` builds them")
    wrong = 0
    with served(folder) as home, chromium() as browser:
        for width in WIDTHS:
            # A window cannot be as narrow as a phone, but a page can be told that it is.
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            found = [f"{page}: {fault}" for page in pages for fault in faults(browser, home, page)]
            found += [f"search: {fault}" for fault in search_faults(browser, home)]
            found += [f"index.html: {fault}" for fault in theme_faults(browser, home)]
            print(*(f"{width} px: {fault}" for fault in found), sep="\n", end="\n" if found else "")
            print(f"{width} px: {len(pages)} pages, {len(found)} faults")
            wrong += len(found)
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
