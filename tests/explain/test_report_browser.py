"""The report in Chromium: it draws, filters, turns pages, obeys the keyboard, and runs nothing that a store contains."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from batchcam_captum.explain import Status, write_report

from .stores import columns_of, write_store
from .test_report import HOSTILE

COUNT, DAMAGED, DEAD, UNSCORED = 130, 50, 12, 20
WRITTEN = np.delete(np.arange(COUNT), DAMAGED)


@pytest.fixture(scope="module")
def columns():
    made = columns_of(COUNT, maps=(3, 4, 4), metrics=("energy_in_mask",))
    made["thumbnails"][:] = np.random.default_rng(1).integers(0, 256, (COUNT, 1, 1, 3))
    made["maps"][DEAD] = -1.0
    made["status"][DAMAGED] = Status.DAMAGED
    made["problems"] = np.full(COUNT, "", dtype=object)
    made["problems"][DAMAGED] = HOSTILE[0]
    made["predictions"][UNSCORED] = made["targets"][UNSCORED] = -1
    for name in ("scores", "confidences", "maps", "energy_in_mask"):
        made[name][UNSCORED] = np.nan
    made["paths"][60:66] = HOSTILE
    made["ids"][70:76] = HOSTILE
    return made


@pytest.fixture(scope="module")
def url(columns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    names = ("cat", HOSTILE[0], "<img src=x>")
    store = write_store(folder / "store", columns, chunk=64, metrics=("energy_in_mask",), class_names=names)
    return write_report(store, folder / "re port.html", title=HOSTILE[0]).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver on the PATH; install chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1440,900"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


@pytest.fixture
def page(browser, url):
    """Open the report anew; at the end the browser may not have logged an error."""
    browser.get("about:blank")  # otherwise only the part after # would change
    browser.get(url)
    until(browser, lambda: run(browser, "return document.body.dataset.ready === ''"))
    yield browser
    assert browser.get_log("browser") == []


def until(browser, condition, message=""):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, poll_frequency=0.03).until(lambda _: condition(), message)


def run(browser, code, *arguments):
    return browser.execute_script(code, *arguments)


def shown(browser):
    """Return the positions of the samples on the cards."""
    return run(
        browser, "return [...document.querySelectorAll('.card')].map((it) => Number(it.dataset.position))"
    )


def choose(browser, **fields):
    """Set fields of the form and wait until the gallery has changed."""
    for name, value in fields.items():
        run(
            browser,
            "const field = document.getElementById('filters').elements[arguments[0]]; field.value = arguments[1];"
            "document.getElementById('matches').textContent = '';"
            "field.dispatchEvent(new Event('input', { bubbles: true }))",
            name,
            str(value),
        )
    until(browser, lambda: text_of(browser, "matches"))


def text_of(browser, element):
    return browser.find_element("id", element).text


def press(browser, *keys):
    browser.switch_to.active_element.send_keys(*keys)


def matching(browser):
    """Return the number of samples that match, as the page says it."""
    return int(text_of(browser, "matches").split(" of ")[0])


def test_pictures_and_maps_are_those_of_the_store(page, columns):
    page.find_element("id", "cells").click()
    color, size, top, row, column, words = run(
        page,
        """const card = document.querySelectorAll('.card')[4];
        const image = card.querySelector('img'), heat = card.querySelector('canvas');
        const copy = new OffscreenCanvas(16, 16).getContext('2d');
        copy.drawImage(image, 0, 0);
        const alpha = heat.getContext('2d').getImageData(0, 0, heat.width, heat.height).data.filter((_, i) => i % 4 === 3);
        const most = alpha.indexOf(Math.max(...alpha));
        return [[...copy.getImageData(8, 8, 1, 1).data], [image.naturalWidth, image.naturalHeight], alpha[most],
          Math.floor(most / heat.width / heat.height * 4), Math.floor(most % heat.width / heat.width * 4),
          card.querySelector('.picture').getAttribute('aria-label')]""",
    )
    assert np.abs(np.array(color[:3]) - columns["thumbnails"][4, 0, 0]).max() <= 8
    assert size == [16, 16]
    assert top == 255
    assert (row, column) == np.unravel_index(columns["maps"][4, 0].argmax(), (4, 4))
    assert words.startswith("00004.png, map of ")
    assert "dead map" in run(page, "return document.querySelectorAll('.card')[arguments[0]].innerText", DEAD)


def test_filters_sorting_and_the_address(page, columns):
    right = (columns["labels"] == columns["predictions"])[WRITTEN]
    scored = columns["predictions"][WRITTEN] >= 0
    choose(page, outcome="wrong")
    assert matching(page) == (~right & scored).sum()
    choose(page, label=0)
    expected = WRITTEN[~right & scored & (columns["labels"][WRITTEN] == 0)].tolist()
    assert shown(page) == expected
    page.refresh()
    until(page, lambda: shown(page) == expected, "the address keeps the filters")
    page.find_element("id", "clear").click()
    assert matching(page) == len(WRITTEN)
    page.find_element("id", "next").click()
    page.refresh()
    until(page, lambda: shown(page) == WRITTEN[60:120].tolist(), "and the page")
    page.find_element("id", "previous").click()

    confidences = columns["confidences"][WRITTEN]
    inside = WRITTEN[(confidences >= 0.6) & (confidences <= 0.905)]
    choose(page, low=60, high=90.5, sort="confidence")
    assert matching(page) == len(inside)
    by_confidence = inside[np.argsort(columns["confidences"][inside], kind="stable")]
    assert shown(page) == by_confidence[:60].tolist()
    choose(page, low="", high="", sort="-energy_in_mask", map="alive")
    metric = columns["energy_in_mask"][:, 0]
    alive = np.setdiff1d(WRITTEN, [DEAD, UNSCORED])
    assert shown(page) == alive[np.argsort(-metric[alive], kind="stable")][:60].tolist()
    choose(page, map="dead")
    assert shown(page) == [DEAD]
    choose(page, map="", sort="", q="FOLDER/0000")
    assert matching(page) == 10
    choose(page, q="no such name")
    assert shown(page) == []


def test_a_sample_without_finite_scores(page):
    choose(page, map="not finite")
    assert shown(page) == [UNSCORED]
    card = page.find_element("class name", "card")
    assert "no prediction" in card.text
    assert "map not finite" in card.text
    card.click()
    assert "scores are not finite" in text_of(page, "dialog-body")
    assert not page.find_elements("css selector", "#dialog table")


def test_keyboard(page, columns):
    from selenium.webdriver.common.keys import Keys

    assert shown(page) == WRITTEN[:60].tolist()
    press(page, "nn")
    assert shown(page) == WRITTEN[120:].tolist()
    press(page, "p")
    assert shown(page) == WRITTEN[60:120].tolist()
    press(page, "/", "n")  # n is a letter there
    names = [f"{columns['ids'][row]} {columns['paths'][row]}".lower() for row in WRITTEN]
    until(page, lambda: matching(page) == sum("n" in name for name in names))
    press(page, Keys.BACKSPACE)
    until(page, lambda: matching(page) == len(WRITTEN))
    press(page, Keys.TAB)
    assert run(page, "return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    run(page, "document.getElementById('next').click(); document.querySelectorAll('.card')[0].focus()")
    press(page, Keys.ENTER)
    assert "Position\n61" in text_of(page, "dialog-body")
    press(page, Keys.ARROW_LEFT)
    assert "Position\n60" in text_of(page, "dialog-body")
    press(page, Keys.ESCAPE)
    focused = "return document.activeElement.dataset.position"
    until(page, lambda: run(page, focused) == "60", "the focus returns to the card, on its page")


def test_detail_view(page, columns):
    run(page, "document.querySelectorAll('.card')[7].click()")
    assert "folder/00007" in text_of(page, "dialog-body")
    assert len(page.find_elements("css selector", "#dialog .large figure")) == 3
    captions = run(
        page, "return [...document.querySelectorAll('#dialog .cards figcaption')].map((it) => it.textContent)"
    )
    names = ["cat", HOSTILE[0], "<img src=x>"]
    assert captions == [names[target] for target in columns["targets"][7]]
    scores = [row.text.rsplit(" ", 3) for row in page.find_elements("css selector", "#dialog tbody tr")]
    ordered = np.sort(columns["scores"][7])[::-1]
    shares = np.exp(ordered) / np.exp(ordered).sum()
    assert [row[1:] for row in scores] == [
        [f"{score:.3f}", f"{100 * share:.1f}", "%"] for score, share in zip(ordered, shares, strict=True)
    ]


def test_opacity_and_one_scale(page, columns):
    run(
        page,
        "const it = document.getElementById('opacity'); it.value = 20; it.dispatchEvent(new Event('input'))",
    )
    assert run(page, "return getComputedStyle(document.querySelector('.heat')).opacity") == "0.2"
    page.find_element("id", "cells").click()
    page.find_element("id", "shared").click()
    kept = np.delete(np.arange(COUNT), [DEAD, DAMAGED, UNSCORED])
    top = np.percentile(columns["maps"][kept, 0].max((1, 2)), 99)
    assert text_of(page, "legend-top") == f"{top:.3f}"
    highest = run(
        page,
        "const it = document.querySelector('.heat');"
        "return Math.max(...it.getContext('2d').getImageData(0, 0, it.width, it.height).data.filter((_, i) => i % 4 === 3))",
    )
    assert highest == pytest.approx(255 * columns["maps"][0, 0].max() / top, abs=1.5)


def test_links_of_the_tables_show_their_samples(page, columns):
    label, predicted = columns["labels"][WRITTEN], columns["predictions"][WRITTEN]
    choose(page, outcome="right", low=50)
    run(page, "document.querySelector('.matrix a[href=\"#label=2&predicted=2\"]').click()")
    assert matching(page) == ((label == 2) & (predicted == 2)).sum(), "other filters are cleared"
    run(page, "document.querySelector('#classes a[href=\"#label=1\"]').click()")
    assert matching(page) == (label == 1).sum()
    assert run(page, "return document.activeElement.id") == "gallery-heading"
    blank = (
        "return [...document.querySelectorAll('canvas[data-map]')].filter((it) => it.width === 300).length"
    )
    assert run(page, blank) == 0, "mean maps are drawn"


def test_dark_and_light_follow_the_system(page):
    grounds = []
    for theme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        grounds.append(run(page, "return getComputedStyle(document.body).backgroundColor"))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds[0] != grounds[1]


def test_a_phone_does_not_scroll_sideways(page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        run(
            page,
            "document.getElementById('filter-panel').open = true; document.querySelectorAll('.card')[0].click()",
        )
        fits = "return ['dialog-body', 'dialog', 'gallery'].map((it) => document.getElementById(it))" \
               ".concat(document.documentElement).map((it) => it.scrollWidth <= it.clientWidth)"  # fmt: skip
        assert run(page, fits) == [True] * 4
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_that_a_store_contains_runs(page):
    assert page.title == HOSTILE[0]
    assert run(page, "return document.querySelectorAll('main b, main script, img[src=\"x\"]').length") == 0
    choose(page, q="b>bold")
    assert matching(page) == 2
    choose(page, q="gnp.exe")
    assert "\\u202egnp.exe" in text_of(page, "cards"), "a mark that reverses the text is spelled out"
    ran = "const it = document.createElement('script'); it.textContent = 'window.ran = 1'; document.body.append(it);"
    assert run(page, ran + "return window.ran ?? null") is None
    (complaint,) = page.get_log("browser")
    assert "Content Security Policy" in complaint["message"]
