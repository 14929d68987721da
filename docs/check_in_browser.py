"""``python docs/check_in_browser.py [FOLDER]``: every page of the built documentation, in headless Chromium.

At the widths of a telephone and of a screen no page scrolls sideways, none logs an error, pictures are there; the search finds;
light and dark are two looks. Needs the extra ``test`` (selenium), Chromium and its driver.
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
from selenium.webdriver.support.ui import WebDriverWait

WIDTHS = (390, 1440)
#: What the search has to find, and on which page.
WANTED = {"CamRegularizer": "CamRegularizer.html", "dead maps": "dead_maps.html", "shortcut": "shortcut"}
#: Pages that show what code has drawn, and how many pictures at least.
PICTURES = {"auto_examples/plot_": 1, "notebooks/shortcut": 3, "notebooks/tour": 5, "study": 2, "index": 1}
_BROKEN = "return [...document.images].filter(it => it.complete && !it.naturalWidth).map(it => it.src)"
_OVERFLOW = """
const root = document.documentElement, wide = [];
if (root.scrollWidth <= root.clientWidth) return wide;
for (const element of document.querySelectorAll('body *'))
  if (element.getBoundingClientRect().right > root.clientWidth + 1) wide.push(element.tagName + '.' + element.className);
return wide.slice(0, 5);
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder behind an address of this machine."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextmanager
def chromium(width: int) -> Iterator[webdriver.Chrome]:
    """A browser without a window, as wide as a telephone or a screen, with nothing outside of this machine to be reached."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or sys.exit("there is no chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver") or sys.exit("there is no chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    # A window cannot be as narrow as a telephone; what a page is told of its width can.
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield browser
    finally:
        browser.quit()


def faults(browser: webdriver.Chrome, home: str, page: str) -> Iterator[str]:
    """What is wrong with a page, in words."""
    browser.get(f"{home}/{page}")
    wide = browser.execute_script(_OVERFLOW)
    if wide:
        yield f"scrolls sideways: {', '.join(wide)}"
    broken = browser.execute_script(_BROKEN)
    if broken:
        yield f"pictures that cannot be shown: {', '.join(broken)}"
    wanted = max((least for start, least in PICTURES.items() if page.startswith(start)), default=0)
    shown = browser.execute_script("return document.querySelectorAll('article img').length")
    if shown < wanted:
        yield f"expected {wanted} pictures or more, got {shown}"
    for entry in browser.get_log("browser"):
        if entry["level"] == "SEVERE":
            yield entry["message"]


def searched(browser: webdriver.Chrome, home: str, words: str, wanted: str) -> Iterator[str]:
    """Whether the search finds a page."""
    browser.get(f"{home}/search.html?q={words.replace(' ', '+')}")
    script = "return [...document.querySelectorAll('#search-results a')].map(link => link.href)"

    def found(_: object) -> bool:
        return any(wanted in link for link in browser.execute_script(script))

    try:
        WebDriverWait(browser, 20).until(found)
    except Exception:
        yield f"the search for {words!r} does not find {wanted}, but {browser.execute_script(script)[:5]}"


def main() -> None:
    """All pages at all widths; ends with 1 where something is wrong."""
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
    with served(folder) as home:
        for width in WIDTHS:
            with chromium(width) as browser:
                found = [(page, fault) for page in pages for fault in faults(browser, home, page)]
                found += [
                    ("search.html", fault)
                    for words, page in WANTED.items()
                    for fault in searched(browser, home, words, page)
                ]
                looks = []
                for theme in ("light", "dark"):
                    browser.get(f"{home}/index.html")
                    browser.execute_script("document.body.dataset.theme = arguments[0]", theme)
                    looks.append(
                        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
                    )
                if looks[0] == looks[1]:
                    found.append(("index.html", f"light and dark are alike: {looks}"))
            wrong += len(found)
            for page, fault in found:
                print(f"{width} px: {page}: {fault}")
            print(f"{width} px: {len(pages)} pages, {len(found)} faults")
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
