"""The page in a real browser: by keyboard, by mouse, magnified, in two languages, and with hundreds of cases."""

import json
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from echofed.client.ingest.geometry import Box
from echofed.client.ingest.outcomes import FOR_A_PERSON, Why
from echofed.client.ingest.review.queue import cases, decide, undoable
from tests.client.ingest.review.browser import LOOK_SECONDS, SHOWN, Page, a_browser, served
from tests.client.ingest.review.review_cases import WRITTEN, a_case, accepting, put


def test_all_by_keyboard(page: Page) -> None:
    for number in range(4):
        put(page.folder, a_case(number, layout=f"layout{number}"))
    page.open()
    assert page.text("#counts") == "4 waiting · 0 decided"
    page.press(Keys.ARROW_RIGHT, Keys.ENTER)
    page.until_shown(1)
    page.press("a")  # with writing in sight: asks again
    assert "Press A again" in page.text("#said")
    assert undoable(page.folder) == []
    page.press("m")
    assert page.masks() == ["Mask, 124 × 24 pixels at 28, 18"]
    page.press("a")
    page.until_shown(2)
    page.press("r")
    page.until_shown(3)
    kept = {decision.instance: decision for decision in undoable(page.folder)}
    assert kept["INSTANCE0001"].boxes == (Box(18, 28, 42, 152),)
    assert (kept["INSTANCE0001"].decision, kept["INSTANCE0001"].remember) == ("accept", False)
    assert kept["INSTANCE0001"].by == "Dr A. Martin"
    assert (kept["INSTANCE0002"].decision, kept["INSTANCE0002"].boxes) == ("reject", ())
    page.press("u")
    page.until_shown(2)
    page.press("u")
    page.until_shown(1)
    assert undoable(page.folder) == []
    assert page.masks() == ["Mask, 124 × 24 pixels at 28, 18"]  # as they were drawn
    page.press("c", "a", "a")  # insisting
    page.until_shown(2)
    assert [(decision.decision, decision.boxes) for decision in undoable(page.folder)] == [("accept", ())]
    page.press("p")
    page.until_shown(0)
    page.press("n", "n")
    page.until_shown(3)
    page.press(Keys.ESCAPE)
    page.until(lambda: page.run("return document.activeElement.dataset.instance") == "INSTANCE0003")
    assert page.text("#counts") == "3 waiting · 1 decided"


def test_the_last_decision_ends_in_the_empty_overview(page: Page) -> None:
    put(page.folder, a_case())
    page.open()
    page.press(Keys.ENTER)
    page.until_shown(0)
    page.press("r")
    page.until(lambda: "Nothing waits" in page.text("#overview"))
    page.press("u")
    page.until_shown(0)
    assert len(cases(page.folder)) == 1


def test_a_mask_is_remembered_for_its_layout(page: Page) -> None:
    for number, layout in enumerate(("one", "one", "two")):
        put(page.folder, a_case(number, layout=layout))
    page.open()
    page.press(Keys.ENTER)
    page.until_shown(0)
    page.press("t")
    assert "nothing to remember" in page.text("#said")
    page.press("m", "t")
    assert page.one("#remember").get_attribute("aria-checked") == "true"
    page.press("a")
    page.until_shown(1)
    assert undoable(page.folder)[0].remember
    assert page.masks() == ["Mask, 124 × 24 pixels at 28, 18"]
    page.press("a")
    page.until_shown(2)
    assert page.masks() == []
    assert [decision.remember for decision in undoable(page.folder)] == [True, False]


def test_masks_are_drawn_moved_and_removed_by_mouse_and_keyboard(page: Page) -> None:
    put(page.folder, a_case(height=100, width=200))
    page.open()
    page.press(Keys.ENTER)
    page.until_shown(0)
    page.drag((0.5, 0.6), (0.75, 0.8))
    (label,) = page.masks()
    assert label is not None
    width, height, left, top = (int(word.strip(",")) for word in label.split() if word.strip(",").isdigit())
    assert (abs(width - 50) <= 2, abs(height - 20) <= 2, abs(left - 100) <= 2, abs(top - 60) <= 2) == (True,) * 4
    page.drag((0.8, 0.9), (0.6, 0.7))  # towards the upper left, over the first
    assert len(page.masks()) == 2
    middle = ((WRITTEN.left + WRITTEN.right) / 400, (WRITTEN.top + WRITTEN.bottom) / 200)
    page.drag(middle, middle)  # a click masks what was found there
    assert page.masks()[2] == "Mask, 124 × 24 pixels at 28, 18"
    page.drag(middle, middle)  # a second one selects that mask
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert page.masks()[2] == "Mask, 124 × 24 pixels at 32, 14"
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN, Keys.ARROW_LEFT).key_up(
        Keys.SHIFT
    ).perform()
    assert page.masks()[2] == "Mask, 120 × 28 pixels at 32, 14"
    page.press(*[Keys.ARROW_UP] * 6)
    assert page.masks()[2] == "Mask, 120 × 28 pixels at 32, 0"
    page.press(Keys.DELETE)
    assert len(page.masks()) == 2
    page.press("d", Keys.DELETE, Keys.DELETE)
    assert page.masks() == [label]
    page.press("c", "k")
    page.drag((0.25, 0.25), (0.75, 0.75))  # kept; all around it is masked
    assert len(page.masks()) == 4
    page.press("a", "a")
    page.until(lambda: undoable(page.folder))
    (kept,) = undoable(page.folder)
    masked = sum(box.height * box.width for box in kept.boxes)
    assert abs(masked - 0.75 * 100 * 200) < 300
    assert all(box.bottom <= 100 and box.right <= 200 for box in kept.boxes)


def test_a_clip_is_stepped_played_and_seen_at_once(page: Page) -> None:
    put(page.folder, a_case(frames=4))
    page.open()
    page.press(Keys.ENTER)
    page.until_shown(0)
    first_pixel = "return document.querySelector('canvas').getContext('2d').getImageData(0, 0, 1, 1).data[0]"
    for frame in (1, 2, 3, 0, 1):
        page.press(Keys.ARROW_RIGHT)
        page.until_shown(0, frame)
        assert page.run(first_pixel) == frame
    page.press(Keys.ARROW_LEFT)
    page.until_shown(0, 0)
    page.press("v")
    page.until_shown(0, "brightest")
    assert page.run(first_pixel) == 3
    page.press("v", "b", Keys.SPACE)
    assert "brightness" in page.one("canvas").value_of_css_property("filter")
    seen = set()
    page.until(lambda: seen.add(page.run(SHOWN)) or len(seen - {"INSTANCE0000/brightest"}) == 4)
    page.press(Keys.SPACE)
    assert page.text("#play").startswith("Play")


def test_the_page_asks_once_who_decides(tmp_path: Path, english: webdriver.Chrome) -> None:
    with served(english, tmp_path / "review", None) as page:
        put(page.folder, a_case(0))
        put(page.folder, a_case(1))
        page.open()
        page.until(lambda: page.one("#who").is_displayed())
        page.press(Keys.ESCAPE, Keys.ESCAPE, Keys.ENTER, " ", Keys.ENTER)
        assert page.one("#who").is_displayed()
        page.press("Dr. A. Petit", Keys.ENTER)  # A and R are letters here
        page.until(lambda: not page.one("#who").is_displayed())
        page.press(Keys.ENTER)
        page.until_shown(0)
        page.press("r")
        page.until_shown(1)
        assert [decision.by for decision in undoable(page.folder)] == ["Dr. A. Petit"]
        english.refresh()
        page.until(lambda: page.text("#counts"))
        assert not page.one("#who").is_displayed()


def test_nothing_is_asked_of_another_host_and_nothing_is_kept(page: Page) -> None:
    put(page.folder, a_case(frames=2))
    page.open()
    page.press(Keys.ENTER)
    page.until_shown(0)
    page.press("m", "a")
    page.until(lambda: undoable(page.folder))
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    kept = [event for event in events if event["method"] == "Network.requestServedFromCache"]
    assert len(asked) > 8
    assert {url.split("/")[2] for url in asked} == {f"127.0.0.1:{page.server.server_port}"}
    assert kept == []
    assert page.run("return document.cookie") == ""
    assert page.run("return localStorage.length") == 0


def test_what_another_tab_decided_is_said(page: Page) -> None:
    case = put(page.folder, a_case(writing=()))
    page.open()
    page.press(Keys.ENTER)
    page.until_shown(0)
    decide(page.folder, accepting(case, by="Dr B. Petit"))
    page.press("r")
    page.until(lambda: "Dr B. Petit decided otherwise" in page.text("#said"))
    assert page.one("#said").get_attribute("class") == "error"
    page.press(Keys.ESCAPE)
    page.until(lambda: page.text("#counts") == "0 waiting · 1 decided")
    page.driver.get_log("browser")  # Chromium notes the refusal


def test_a_key_held_or_pressed_twice_decides_on_what_was_seen_alone(page: Page) -> None:
    for number in range(4):
        put(page.folder, a_case(number))
    page.open()
    page.press(Keys.ENTER)
    page.until_shown(0)
    time.sleep(LOOK_SECONDS)
    presses = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'r', repeat: %s}))"
    page.run(f"for (const repeat of [false, true, true]) {presses % 'repeat'}")
    page.until_shown(1)
    assert len(undoable(page.folder)) == 1
    time.sleep(LOOK_SECONDS)
    page.run(f"for (let times = 0; times < 5; times++) {presses % 'false'}")
    page.until_shown(2)
    page.press("n", "p", "b")  # done in turn, after all of the above
    page.until_shown(2)
    assert len(undoable(page.folder)) == 2


def test_an_image_that_cannot_be_shown_can_only_be_rejected(page: Page) -> None:
    case = put(page.folder, a_case(writing=()))
    (page.folder / case.instance / "frames.npy").write_bytes(b"damaged")
    page.open()
    page.press(Keys.ENTER)
    page.until(lambda: "cannot be shown" in page.text("#said"))
    page.press("a", "a")
    assert undoable(page.folder) == []
    page.press("r")
    page.until(lambda: undoable(page.folder))
    page.driver.get_log("browser")  # Chromium notes the refusals


def test_french(tmp_path: Path) -> None:
    with (
        a_browser(tmp_path / "profile", "fr-FR") as driver,
        served(driver, tmp_path / "review", "Dr A. Martin") as page,
    ):
        put(page.folder, a_case(why=Why.UNCERTAIN_STILL))
        page.open()
        assert page.text("#counts") == "1 en attente · 0 traitées"
        assert "Image fixe, texte possible" in page.text("#grid")
        assert page.run("return document.documentElement.lang") == "fr"
        page.press("?")
        assert "annuler la dernière décision" in page.text("#legend")


def test_both_languages_say_the_same(page: Page) -> None:
    page.open()
    script = """const done = arguments[0];
    const shape = (part) => typeof part === 'string' ? part.match(/\\{\\w+\\}/g) ?? [] :
      Object.fromEntries(Object.entries(part).map(([key, value]) => [key, key === 'legend' ? value.length : shape(value)]));
    import('./texts.js').then(({ TEXTS }) => done([shape(TEXTS.en), shape(TEXTS.fr), Object.keys(TEXTS)]));"""
    english, french, languages = page.driver.execute_async_script(script)
    assert languages == ["en", "fr"]
    assert {
        placeholder: sorted(names) if isinstance(names, list) else names for placeholder, names in english.items()
    } == {placeholder: sorted(names) if isinstance(names, list) else names for placeholder, names in french.items()}
    assert english["maskLabel"] == ["{width}", "{height}", "{left}", "{top}"]
    assert {why.name for why in FOR_A_PERSON} <= set(english["why"])


CONTRASTS = """
const channel = (c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
const light = (rgb) => .2126 * channel(rgb[0]) + .7152 * channel(rgb[1]) + .0722 * channel(rgb[2]);
const ground = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parse(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const seen = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.checkVisibility() || element.closest(':disabled')) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
  seen.push([element.textContent.trim().slice(0, 30), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]);
}
return seen;
"""


def test_contrast_is_enough_everywhere(page: Page) -> None:
    put(page.folder, a_case(frames=2))
    put(page.folder, a_case(1, why=Why.NO_REGION))
    page.open()
    seen = page.run(CONTRASTS)
    page.press(Keys.ENTER)
    page.until_shown(0)
    page.press("m", "t", "b")
    seen += page.run(CONTRASTS)
    page.press("?")
    seen += page.run(CONTRASTS)
    assert len(seen) > 60
    assert [pair for pair in seen if pair[1] < 4.5] == []


def test_focus_is_always_seen(page: Page) -> None:
    put(page.folder, a_case(frames=2))
    page.open()
    page.press(Keys.ENTER)
    page.until_shown(0)
    page.press("m")
    seen = set()
    for _ in range(25):
        page.press(Keys.TAB)
        name, outline = page.run(
            "const at = document.activeElement; return [at.id || at.ariaLabel, parseFloat(getComputedStyle(at).outlineWidth)]"
        )
        if name:
            seen.add(name)
            assert outline >= 1, name
    assert {"accept", "reject", "remember", "show-legend", "frame", "Mask, 124 × 24 pixels at 28, 18"} <= seen


def test_magnified_twice_all_is_in_reach(page: Page) -> None:
    put(page.folder, a_case(frames=2))
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 640, "height": 400, "deviceScaleFactor": 2, "mobile": False}
    )
    try:
        page.open()
        page.press(Keys.ENTER)
        page.until_shown(0)
        wide, inner = page.run("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner == 640
        for selector in ("#picture", "#accept", "#reject"):
            area = page.run(f"return document.querySelector('{selector}').getBoundingClientRect().toJSON()")
            assert (area["left"] >= 0, area["top"] >= 0) == (True, True), selector
            assert (area["right"] <= 640, area["bottom"] <= 400) == (True, True), selector
        for button in page.all("aside button:not(:disabled)"):
            page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
            assert button.is_displayed()
        page.one("#take").click()
        time.sleep(LOOK_SECONDS)
        page.one("#accept").click()
        page.until(lambda: undoable(page.folder))
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_five_hundred_cases_are_no_slower_to_begin_with(page: Page) -> None:
    """The first thumbnails of 500 cases are there within a bound, and opening and deciding takes as long as with 20."""
    images = "[...document.querySelectorAll('#grid img')]"
    first_row = f"return {images}.slice(0, 6).every((image) => image.complete && image.naturalWidth)"

    def seconds_to_begin() -> tuple[float, float]:
        started = time.monotonic()
        page.open()
        page.until(lambda: page.run(first_row))
        began = time.monotonic()
        page.press(Keys.ENTER)
        page.until(lambda: page.run(SHOWN))
        for _ in range(5):
            before = page.run(SHOWN)
            page.press("r")
            page.until(lambda before=before: page.run(SHOWN) not in (None, before))
        return began - started, time.monotonic() - began

    for number in range(20):
        put(page.folder, a_case(number, height=240, width=320))
    seconds_to_begin()
    few = seconds_to_begin()
    for number in range(20, 520):
        put(page.folder, a_case(number, height=240, width=320))
    many = seconds_to_begin()
    assert len(cases(page.folder)) == 520 - 15
    assert many[0] < 20 * few[0] + 2, (few, many)
    assert many[1] < 10 * few[1] + 2, (few, many)
    asked = "performance.getEntriesByType('resource').filter((entry) => entry.name.includes('thumbnail'))"
    assert page.run(f"return {asked}.length") < 200  # what is out of sight is not asked for
