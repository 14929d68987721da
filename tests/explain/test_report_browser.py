"""The report in Chromium: it draws, filters, turns pages, obeys the keyboard, and runs nothing that a store holds."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from batchcam_captum.explain.layout import Status
from batchcam_captum.explain.report import write_report

from .stores import columns_of, write_store
from .test_report import HOSTILE

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium, or no chromedriver"
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1440,900"),
)
COUNT = 130


@pytest.fixture(scope="module")
def columns():
    made = columns_of(COUNT, maps=(3, 4, 4), metrics=("energy_in_mask",))
    made["thumbnails"][:] = np.random.default_rng(1).integers(0, 256, (COUNT, 1, 1, 3))
    made["maps"][12] = -1.0
    made["status"][50] = Status.DAMAGED
    made["problems"] = np.full(COUNT, "", dtype=object)
    made["problems"][50] = HOSTILE[0]
    made["paths"][60:66] = HOSTILE
    made["ids"][70:76] = HOSTILE
    return made


@pytest.fixture(scope="module")
def url(columns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    store = write_store(
        folder / "store",
        columns,
        chunk=64,
        metrics=("energy_in_mask",),
        class_names=("cat", HOSTILE[0], "<img src=x>"),
    )
    return write_report(store, folder / "re port.html", title=HOSTILE[0]).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, url):
    """Freshly opened; at the end nothing may have been complained of."""
    browser.get(url)
    drawn(browser)
    yield browser
    assert browser.get_log("browser") == []


def drawn(browser):
    WebDriverWait(browser, 20, poll_frequency=0.03).until(
        lambda it: it.execute_script(
            "return document.documentElement.dataset.ready === '' && document.getElementById('cards').dataset.drawn > ''"
        )
    )


def script(browser, code, *arguments):
    return browser.execute_script(code, *arguments)


def rows(browser):
    """Positions of the samples on the cards."""
    drawn(browser)
    return script(
        browser,
        "return [...document.querySelectorAll('#cards .card')].map((card) => Number(card.dataset.row))",
    )


def choose(browser, name, value):
    script(
        browser,
        "const field = document.getElementById('filters').elements[arguments[0]]; field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', { bubbles: true }))",
        name,
        value,
    )


def matches(browser, expected):
    """Wait for the number of matches, which is told with a delay while someone types."""
    WebDriverWait(browser, 20, poll_frequency=0.03).until(
        lambda it: it.find_element("id", "matches").text.startswith(expected), expected
    )


def press(browser, *keys):
    browser.switch_to.active_element.send_keys(*keys)


def focused(browser):
    return script(
        browser, "const it = document.activeElement; return it.dataset.row ?? (it.id || it.tagName)"
    )


def test_pictures_and_maps_are_those_of_the_store(page, columns):
    page.find_element("id", "cells").click()
    drawn(page)
    pixels = script(
        page,
        """const [image, heat] = document.querySelectorAll('#cards .card')[4].querySelectorAll('canvas');
        const all = heat.getContext('2d').getImageData(0, 0, heat.width, heat.height).data;
        let most = 0;
        for (let i = 3; i < all.length; i += 4) if (all[i] > all[most]) most = i;
        const place = (most - 3) / 4;
        return [[...image.getContext('2d').getImageData(8, 8, 1, 1).data], [image.width, image.height],
                all[most], Math.floor(place / heat.width / heat.height * 4), Math.floor(place % heat.width / heat.width * 4),
                image.getAttribute('aria-label')]""",
    )
    colour, size, top, down, across, label = pixels
    assert np.abs(np.array(colour[:3]) - columns["thumbnails"][4, 0, 0]).max() <= 6
    assert size == [16, 16]
    assert top == 255
    assert (down, across) == np.unravel_index(columns["maps"][4, 0].argmax(), (4, 4))
    assert "folder/00004.png" in label
    assert f"confidence {100 * columns['confidences'][4]:.1f} %" in label
    dead = script(page, "return document.querySelectorAll('#cards .card')[12].innerText")
    assert "dead map" in dead


def test_only_one_page_is_in_the_document_and_pages_turn(page):
    assert rows(page) == list(range(60))
    assert script(page, "return document.querySelectorAll('[data-page=previous]')[0].ariaDisabled") == "true"
    page.find_element("css selector", "[data-page=next]").click()
    assert rows(page) == list(range(60, 120))
    page.find_element("tag name", "body").send_keys("n")
    assert rows(page) == list(range(120, 129))
    page.find_element("tag name", "body").send_keys("pp")
    assert rows(page)[0] == 0


def test_filters_search_sorting_and_address(page, columns):
    keep = np.delete(np.arange(COUNT), 50)
    right = (columns["labels"] == columns["predictions"])[keep]
    choose(page, "correct", "wrong")
    matches(page, f"{int((~right).sum())} of 129 samples")
    choose(page, "label", "0")
    wanted = np.flatnonzero(~right & (columns["labels"][keep] == 0))
    assert rows(page) == wanted.tolist()
    assert "correct=wrong" in page.current_url
    page.refresh()
    assert rows(page) == wanted.tolist(), "the address keeps the filters"
    page.find_element("css selector", "button[type=reset]").click()
    matches(page, "129 of 129")

    confidences = columns["confidences"][keep]
    choose(page, "low", "60")
    choose(page, "high", "90.5")
    inside = (confidences >= 0.6) & (confidences <= 0.905)
    matches(page, f"{int(inside.sum())} of 129")
    choose(page, "sort", "least-confident")
    assert rows(page) == [row for row in np.argsort(confidences, kind="stable") if inside[row]][:60]
    choose(page, "low", "")
    choose(page, "high", "")
    choose(page, "map", "dead")
    matches(page, "1 of 129")
    assert rows(page) == [12]
    choose(page, "map", "")
    choose(page, "q", "FOLDER/0000")
    matches(page, "10 of 129")
    choose(page, "q", "no such name")
    matches(page, "No sample matches")
    assert page.find_element("id", "matches").get_attribute("aria-live") == "polite"


def test_keyboard(page, columns):
    body = page.find_element("tag name", "body")
    body.send_keys("/")
    assert focused(page) == "search"
    press(page, "n")  # a letter there, and no command
    names = [f"{columns['ids'][row]} {columns['paths'][row]}".lower() for row in range(COUNT) if row != 50]
    matches(page, f"{sum('n' in name for name in names)} of 129")
    press(page, Keys.BACKSPACE)
    matches(page, "129 of 129")
    script(page, "document.querySelector('#cards .card').focus()")
    across = script(page, "return acrossOf(document.getElementById('cards')); function acrossOf(list) {"
                          "return getComputedStyle(list).gridTemplateColumns.split(' ').length }")  # fmt: skip
    press(page, Keys.ARROW_RIGHT)
    press(page, Keys.ARROW_DOWN)
    assert focused(page) == str(1 + across)
    assert script(page, "return document.querySelectorAll('#cards [tabindex=\"0\"]').length") == 1
    assert script(page, "return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press(page, Keys.PAGE_DOWN)
    assert focused(page) == "60"
    press(page, Keys.ENTER)
    heading = page.find_element("id", "dialog-heading")
    WebDriverWait(page, 20, poll_frequency=0.03).until(lambda _: heading.text == HOSTILE[1])
    assert script(page, "return document.getElementById('dialog').open")
    press(page, Keys.ARROW_LEFT)
    WebDriverWait(page, 20, poll_frequency=0.03).until(lambda _: heading.text == HOSTILE[0])
    press(page, Keys.ESCAPE)
    assert not script(page, "return document.getElementById('dialog').open")
    assert focused(page) == "59", "back on the card, on its page"


def test_dialog_shows_all_maps_and_scores(page, columns):
    script(page, "document.querySelectorAll('#cards .card')[7].click()")
    WebDriverWait(page, 20, poll_frequency=0.03).until(
        lambda it: "folder/00007" in it.find_element("id", "dialog").text
    )
    assert len(page.find_elements("css selector", "#dialog .large figure")) == 3
    shown = script(
        page, "return [...document.querySelectorAll('#dialog .maps figcaption')].map((it) => it.textContent)"
    )
    names = ["cat", HOSTILE[0], "<img src=x>"]
    assert shown == [names[target] for target in columns["targets"][7]]
    scores = script(
        page,
        "return [...document.querySelectorAll('#dialog tbody tr')].map((it) => it.innerText.split('\\t'))",
    )
    ordered = np.sort(columns["scores"][7])[::-1]
    assert [row[1] for row in scores] == [f"{value:.3f}" for value in ordered]
    shares = np.exp(ordered) / np.exp(ordered).sum()
    assert [row[2] for row in scores] == [f"{100 * share:.1f} %" for share in shares]


def test_opacity_and_scales(page, columns):
    script(
        page,
        "const it = document.getElementById('opacity'); it.value = 20; it.dispatchEvent(new Event('input'))",
    )
    assert script(page, "return getComputedStyle(document.querySelector('.heat')).opacity") == "0.2"
    highest = """const heat = document.querySelectorAll('#cards .heat')[arguments[0]];
        const copy = new OffscreenCanvas(heat.width, heat.height).getContext('2d', { willReadFrequently: true });
        copy.drawImage(heat, 0, 0);
        return Math.max(...copy.getImageData(0, 0, heat.width, heat.height).data.filter((_, i) => i % 4 === 3))"""
    assert script(page, highest, 0) == 255
    page.find_element("id", "shared").click()
    drawn(page)
    keep = np.delete(np.arange(COUNT), [12, 50])
    top = np.percentile(columns["maps"][keep, 0].max((1, 2)), 99)
    assert page.find_element("id", "legend-top").text == f"{top:.3f}"
    assert script(page, highest, 0) == pytest.approx(255 * columns["maps"][0, 0].max() / top, abs=1.5)


def test_a_sample_whose_scores_are_not_finite(browser, columns, tmp_path):
    made = {name: column[:20].copy() for name, column in columns.items()}
    made["predictions"][4] = made["targets"][4] = -1
    for name in ("scores", "confidences", "maps", "energy_in_mask"):
        made[name][4] = np.nan
    store = write_store(tmp_path / "store", made, chunk=64, metrics=("energy_in_mask",))
    browser.get(write_report(store, tmp_path / "r.html").as_uri())
    drawn(browser)
    notices = browser.find_element("id", "notices").text
    assert "1 sample has scores that are not finite, and no prediction" in notices
    choose(browser, "map", "not-finite")
    matches(browser, "1 of 20")
    assert rows(browser) == [4]
    (card,) = browser.find_elements("css selector", "#cards .card")
    assert "no prediction" in card.text
    assert "map not finite" in card.text
    assert "no prediction" in card.find_element("css selector", "canvas").get_attribute("aria-label")
    card.click()
    dialog = browser.find_element("id", "dialog")
    WebDriverWait(browser, 20, poll_frequency=0.03).until(lambda _: "Predicted" in dialog.text)
    assert "none, as the scores are not finite" in dialog.text
    assert "Highest scores" not in dialog.text
    choose(browser, "map", "")
    choose(browser, "correct", "unknown")
    matches(browser, "1 of 20")
    assert browser.get_log("browser") == []


def test_sections_lead_to_the_gallery(page, columns):
    keep = np.delete(np.arange(COUNT), 50)
    label, predicted = columns["labels"][keep], columns["predictions"][keep]
    names = script(page, "return [...document.querySelectorAll('#navigation a')].map((it) => it.textContent)")
    assert names[:4] == ["Summary", "Gallery", "Maps by class", "Confusions"]
    assert names[4:] == ["Metrics", "Damaged samples", "Settings and versions"]
    table = script(
        page,
        "return [...document.querySelectorAll('.confusion')[1].querySelectorAll('tbody tr')]"
        ".map((row) => [...row.querySelectorAll('td')].map((cell) => Number(cell.textContent)))",
    )
    expected = [
        [int(((label == row) & (predicted == column)).sum()) for column in range(3)] for row in range(3)
    ]
    assert table == expected
    script(page, "document.querySelectorAll('.confusion')[1].querySelectorAll('tbody tr')[2]"
                 ".querySelectorAll('td')[2].querySelector('button').click()")  # fmt: skip
    matches(page, f"{expected[2][2]} of 129")
    assert HOSTILE[0] in page.find_element("id", "damaged").text


def test_light_and_dark(page):
    ground = "return getComputedStyle(document.body).backgroundColor"
    found = []
    for theme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        found.append(script(page, ground))
    assert found[0] != found[1]
    choice = "const it = document.getElementById('theme'); it.value = arguments[0]; it.dispatchEvent(new Event('change'))"
    script(page, choice, "light")
    assert script(page, ground) == found[0]
    page.refresh()
    drawn(page)
    assert script(page, ground) == found[0], "the address keeps the theme"
    script(page, choice, "dark")
    assert script(page, ground) == found[1]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_phone_does_not_scroll_sideways(page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        script(page, "document.querySelectorAll('#cards .card')[0].click()")
        WebDriverWait(page, 20, poll_frequency=0.03).until(
            lambda it: it.find_elements("css selector", "#dialog .large")
        )
        widths = "return [document.documentElement, document.getElementById('dialog')]" \
                 ".map((it) => it.scrollWidth <= it.clientWidth)"  # fmt: skip
        assert script(page, widths) == [True, True]
        script(
            page,
            "document.getElementById('dialog').close(); document.getElementById('filter-panel').open = true",
        )
        assert script(page, widths)[0]
        ends = script(
            page,
            "for (const it of document.querySelectorAll('table')) it.style.width = '900px';"
            "return [...document.querySelectorAll('caption')].map((it) => it.getBoundingClientRect().right)",
        )
        assert 0 < max(ends) <= 390, "what a table is about is read without scrolling it"
        cards = "return [...document.querySelectorAll('#cards .card')].map((it) => [it.offsetTop, it.offsetHeight])"
        heights_by_row: dict[int, set[int]] = {}
        for top, height in script(page, cards):
            heights_by_row.setdefault(top, set()).add(height)
        assert 1 < len(heights_by_row) < 60
        assert all(len(heights) == 1 for heights in heights_by_row.values()), (
            "those in a row are equally high"
        )
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_that_a_store_holds_runs(page):
    choose(page, "q", "b>bold")
    matches(page, "2 of 129")
    assert page.title == HOSTILE[0]
    assert script(page, "return document.querySelectorAll('img, b, #cards script').length") == 0
    choose(page, "q", "")
    matches(page, "129 of 129")
    choose(page, "q", "gnp.exe")
    matches(page, "2 of 129")
    # A mark that turns the reading direction round is spelled out.
    assert "\\u202egnp.exe" in page.find_element("id", "cards").text
    blocked = script(
        page,
        "const added = document.createElement('script'); added.textContent = 'window.ran = 1'; document.body.append(added);"
        "return window.ran ?? null",
    )
    assert blocked is None
    (complaint,) = page.get_log("browser")
    assert "Content Security Policy" in complaint["message"]
