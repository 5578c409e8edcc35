"""The pages as a person meets them: a real browser, a real server, what is on the screen and what is in the log."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from serving.log_tail import last_of_user
from serving.segments import framed
from serving.user_search import starting_with
from tests.serving.conftest import EVIL
from tests.serving.running_server import Running, copy_of, promote

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_WAITS_S = 60  # a machine that is busy with other tests lets a browser wait
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1100",
)
needs_browser = pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="there is no chromium with chromedriver")


class Browser:
    """A tab, and the few things that a person does with it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(url)

    def all(self, css: str) -> list[webdriver.remote.webelement.WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return self.driver.find_element(By.CSS_SELECTOR, css).text

    def until(self, holds: Callable[[], object], what: str) -> None:
        ignored = (NoSuchElementException, StaleElementReferenceException, IndexError)
        try:
            WebDriverWait(self.driver, _WAITS_S, 0.05, ignored_exceptions=ignored).until(lambda _: holds())
        except TimeoutException:
            said = f"{self.text('#status')!r}, on the console {self.complaints()}"
            raise AssertionError(f"{what}: not within {_WAITS_S} s; the page says {said}") from None

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    @property
    def focused(self) -> str:
        return self.driver.switch_to.active_element.get_attribute("id") or ""

    def picture(self, name: str) -> None:
        """A screenshot of more than a blank page; kept as NAME.png in the folder HEADRACE_SCREENSHOTS."""
        png = self.driver.get_screenshot_as_png()
        pixels = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).reshape(-1, 3)
        assert len(np.unique(pixels, axis=0)) > 50, "text and its edges have many colours, a blank page has one"
        if (folder := os.environ.get("HEADRACE_SCREENSHOTS")) is not None:
            Path(folder, f"{name}.png").write_bytes(png)

    def complaints(self) -> list[str]:
        """What the console holds: errors of scripts, of the policy, of what was not found."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    assert CHROMIUM is not None
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The driver's path is given: without one selenium would fetch a driver.
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Browser]:
    """The page with its key; what a test leaves on the console fails it."""
    browser.complaints()
    browser.open(f"{server.url}/#key={server.key}")
    browser.until(lambda: len(browser.all("#found button")) == 12, "people to choose from")
    # Until the popular titles are there, too, nothing of it is shown, and a hidden field takes no keys.
    browser.until(lambda: browser.driver.find_element(By.ID, "content").is_displayed(), "the page")
    yield browser
    assert browser.complaints() == []


def choose(page: Browser, person: str) -> None:
    field = page.driver.find_element(By.ID, "find")
    field.clear()
    field.send_keys(person, Keys.ENTER)
    page.until(lambda: page.text("#status") == f"12 titles for {person}.", f"titles for {person}")


@needs_browser
@pytest.mark.slow
def test_a_person_is_found_sees_titles_clicks_and_sees_what_was_logged(page: Browser, server: Running) -> None:
    page.driver.find_element(By.ID, "find").send_keys("u1")
    page.until(lambda: [chip.text for chip in page.all("#found button")][:3] == ["u1", "u10", "u11"], "only those")
    page.all("#found button")[0].click()
    page.until(lambda: len(page.all("#for-you .card")) == 12, "titles")
    assert page.text("#person") == "u1"
    assert len(page.all("#popular .card")) == 12
    page.all("#for-you .card .action")[0].click()
    page.until(lambda: page.text("#status").startswith("Logged: click on "), "that it is logged")

    shown = last_of_user(server.wheel / "logs", "impressions", "u1", most=1)[0]
    done = last_of_user(server.wheel / "logs", "actions", "u1", most=1)[0]
    assert (done["request_id"], done["item_id"]) == (shown["request_id"], shown["items"][0]["item_id"])
    logged = page.all("#impressions details")[0]
    assert shown["request_id"] in logged.text
    assert "generation 0001" in logged.text
    rows = logged.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(rows) == 12
    assert rows[0].text.endswith("click")
    by_chance = [row for row in rows if "by chance" in row.text]
    assert len(by_chance) == sum(item["explored"] for item in shown["items"]) == len(page.all("#for-you .badge"))
    clicked = page.all("#for-you .card h3")[0].text
    assert page.all("#watched h3")[0].text == clicked
    page.picture("serving-page")
    page.driver.execute_script("arguments[0].scrollIntoView()", logged)
    page.picture("serving-logged")


@needs_browser
@pytest.mark.slow
def test_titles_and_ids_are_text_whatever_they_look_like(page: Browser) -> None:
    choose(page, "u2")
    titles = [card.get_attribute("textContent") for card in page.all("h3")]
    assert EVIL in titles
    choose(page, EVIL)
    assert page.text("#person") == EVIL
    assert page.all("main img, main script") == []
    assert page.driver.title == "Headrace: titles"


@needs_browser
@pytest.mark.slow
def test_somebody_new_gets_titles_under_an_id_of_their_own(page: Browser, server: Running) -> None:
    page.driver.find_element(By.ID, "new-person").click()
    page.until(lambda: len(page.all("#for-you .card")) == 12, "titles")
    person = page.text("#person")
    assert re.fullmatch(r"new-[0-9a-f]{12}", person)
    page.until(lambda: "Nothing yet." in page.text("#watched"), "that nothing was watched")
    assert len(last_of_user(server.wheel / "logs", "impressions", person, most=5)) == 1


@needs_browser
@pytest.mark.slow
def test_all_of_it_works_by_keyboard(page: Browser, server: Running) -> None:
    page.press(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the titles"
    page.press(Keys.ENTER, Keys.TAB)
    assert page.focused == "find"
    page.press("u5", Keys.ENTER)
    page.until(lambda: page.text("#status") == "12 titles for u5.", "titles")
    for _ in range(40):
        page.press(Keys.TAB)
        if "action" in (page.driver.switch_to.active_element.get_attribute("class") or ""):
            break
    button = page.driver.switch_to.active_element
    outline = button.value_of_css_property("outline-style"), button.value_of_css_property("outline-width")
    assert outline == ("solid", "3px"), "focus can be seen"
    page.press(Keys.SPACE)
    page.until(lambda: page.text("#status").startswith("Logged: click"), "that it is logged")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.driver.switch_to.active_element == button, "focus stays where it was"


@needs_browser
@pytest.mark.slow
def test_controls_have_names_and_the_page_its_landmarks(page: Browser) -> None:
    choose(page, "u3")
    for css in ("header", "main", "nav[aria-label]", "form[role=search]", "html[lang]", "h1"):
        assert page.all(css), css
    for control in page.all("button, input, a, ul.row, ol.row"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")


@needs_browser
@pytest.mark.slow
def test_a_phone_scrolls_rows_and_not_the_page(page: Browser) -> None:
    size = page.driver.get_window_size()
    page.driver.set_window_size(500, 900)
    try:
        choose(page, "u4")
        assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert page.driver.execute_script(
            "const r = document.querySelector('ol.row'); return r.scrollWidth > r.clientWidth"
        )
        page.picture("serving-phone")
    finally:
        page.driver.set_window_size(size["width"], size["height"])


@needs_browser
@pytest.mark.slow
def test_the_key_is_asked_for_kept_by_the_tab_and_in_no_address(browser: Browser, server: Running) -> None:
    browser.open(server.url)
    browser.driver.execute_script("sessionStorage.clear()")
    browser.open(server.url)
    browser.until(lambda: browser.driver.find_element(By.ID, "key").is_displayed(), "the field for the key")
    assert not browser.driver.find_element(By.ID, "content").is_displayed()
    browser.driver.find_element(By.ID, "key").send_keys("wrong", Keys.ENTER)
    browser.until(lambda: browser.text("#status") == "The server does not know this key.", "a refusal")
    browser.driver.find_element(By.ID, "key").send_keys(server.key, Keys.ENTER)
    browser.until(lambda: len(browser.all("#found button")) == 12, "people to choose from")
    assert browser.driver.current_url == f"{server.url}/"
    assert browser.driver.execute_script("return localStorage.length + document.cookie.length") == 0
    browser.open(f"{server.url}/#key={server.key}")
    browser.until(lambda: len(browser.all("#found button")) == 12, "people to choose from")
    assert browser.driver.current_url == f"{server.url}/", "a fragment is taken out of the address"
    assert server.key not in server.said()
    refused = [entry for entry in browser.complaints() if "401" not in entry]
    assert refused == []


@needs_browser
@pytest.mark.slow
def test_the_dashboard_draws_generations_and_says_why_one_was_refused(browser: Browser, server: Running) -> None:
    browser.complaints()
    browser.open(f"{server.url}/dashboard#key={server.key}")
    browser.until(lambda: browser.text("#status") == "3 generations; 0003 is the champion.", "generations")
    assert browser.text("h1") == "Generations of films"
    charts = {chart.get_attribute("aria-label") for chart in browser.all("#charts svg")}
    assert any(
        label.startswith("retriever: ndcg@10. candidate: 0001 0.231, 0002 0.201, 0003 0.262.") for label in charts
    )
    assert any(
        label == "Popularity amplification. Popularity amplification: 0001 1.40, 0002 –, 0003 1.20" for label in charts
    )
    assert any(label.startswith("Columns drifted.") for label in charts)
    turns = [row.text for row in browser.all("#turns tbody tr")]
    assert turns[0].startswith(
        "0003 2026-03-04 09:30 promoted, in service 160,000 20,000 2 of 12 0 of 9 4,000 9.5 % 1.20"
    )
    refused = browser.all("#verdicts details[open]")
    assert len(refused) == 1
    assert "0002 · refused: metrics" in refused[0].text
    assert EVIL in refused[0].get_attribute("textContent")
    assert browser.all("main img, main script") == []
    assert browser.complaints() == []
    browser.picture("serving-dashboard")


@needs_browser
@pytest.mark.slow
def test_a_swap_is_offered_and_changes_who_answers(
    page: Browser, server: Running, released: tuple[Path, object]
) -> None:
    choose(page, "u6")
    again = copy_of(released[0], server.wheel / "generations" / "0002" / "release", "0002")
    promote(server.wheel, again, "0002")
    page.until(lambda: "Generation 0002 is in service now" in page.text("#swap"), "the offer")
    assert page.text("#generation") == "0001", "what is on the screen is of the old one until it is asked for"
    page.driver.find_element(By.ID, "refresh").click()
    page.until(lambda: page.text("#answer").startswith("Answered by generation 0002."), "titles of the new one")
    assert not page.driver.find_element(By.ID, "swap").is_displayed()
    page.until(lambda: "generation 0002" in page.all("#impressions details")[0].text, "the new impression")
    assert "generation 0001" in page.all("#impressions details")[1].text


def test_text_can_be_read_in_light_and_in_dark() -> None:
    """WCAG 2.1, 1.4.3: a contrast of at least 4.5."""
    css = files("serving").joinpath("static/page.css").read_text(encoding="utf-8")
    blocks = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    assert len(blocks) == 2
    for colours in blocks:
        on = [(name, ground) for name in ("text", "quiet", "strong", "good", "bad") for ground in ("ground", "panel")]
        for text, ground in [*on, ("on-strong", "strong"), ("chance", "chance-ground"), ("text", "chance-ground")]:
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_pages_ask_nobody_else_for_anything_and_hold_no_script_of_their_own() -> None:
    for entry in files("serving").joinpath("static").iterdir():
        text = entry.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(https?:)?//[\w.-]+\.\w", text), entry.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            entry.name
        )
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=\"", text), entry.name


def test_users_are_found_by_how_their_ids_begin() -> None:
    ids = [pa.array(["u3", "v1", "u20"]), pa.array(["u2", "%u", "u9"])]
    assert starting_with("u2", ids, most=5) == ["u2", "u20"]
    assert starting_with("u", ids, most=3) == ["u2", "u20", "u3"], "those met first"
    assert starting_with("%", ids, most=5) == ["%u"], "nothing in a prefix is a pattern"
    assert len(starting_with("", ids, most=4)) == 4


def test_the_tail_of_a_log_is_the_users_own_latest_whole_lines(tmp_path: Path) -> None:
    folder = tmp_path / "actions"
    folder.mkdir()
    records = [{"user_id": f"u{i % 2}", "time_ms": i, "says": '"user_id": "u1"'} for i in range(10_000)]
    lines = [framed(json.dumps(record).encode()) for record in records]
    (folder / "a.log").write_bytes(b"".join(lines[:5000]))
    (folder / "b.open").write_bytes(b"".join(lines[5000:]) + lines[1][:-9])
    assert [record["time_ms"] for record in last_of_user(tmp_path, "actions", "u1", most=3)] == [9999, 9997, 9995]
    assert len(last_of_user(tmp_path, "actions", "u1", most=9999)) == 5000, "segments before the last one too"
    few = last_of_user(tmp_path, "actions", "u0", most=9999, most_bytes=10 * len(lines[-1]))
    assert 3 <= len(few) <= 5, "no more is read than may be"
    assert last_of_user(tmp_path, "actions", "u", most=3) == []


def _contrast(one: str, other: str) -> float:
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
