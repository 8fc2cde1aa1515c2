"""The review page in Chromium, as a person sees and uses it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from echofed.client.ingest.review.answers import Review
from echofed.client.ingest.review.server import ReviewServer

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
)
PATIENCE_SECONDS = 30.0
LOOK_SECONDS = 0.25
"""An image is decided on once it has been seen for a fifth of a second."""
SHOWN = "return document.querySelector('#case').hidden ? null : document.querySelector('canvas').dataset.shows"


@contextmanager
def a_browser(profile: Path, language: str) -> Iterator[webdriver.Chrome]:
    """Start Chromium with a fresh profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1360,850"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page as a person sees and uses it."""

    def __init__(self, driver: webdriver.Chrome, server: ReviewServer) -> None:
        self.driver, self.server, self.folder = driver, server, server.review.folder

    def open(self) -> None:
        """Open the address and wait for the cases."""
        self.driver.get(self.server.url)
        self.until(lambda: self.text("#counts"))

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        for key in keys:
            if key in ("a", "r"):
                time.sleep(LOOK_SECONDS)
            ActionChains(self.driver).send_keys(key).perform()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag from one part of the picture (0 to 1, from left and top) to another."""
        picture = self.one("#picture")
        width, height = picture.size["width"], picture.size["height"]
        (x, y), (to_x, to_y) = (((part[0] - 0.5) * width, (part[1] - 0.5) * height) for part in (start, end))
        actions = ActionChains(self.driver, duration=20)
        actions.move_to_element_with_offset(picture, round(x), round(y)).click_and_hold()
        actions.move_by_offset(round(to_x - x), round(to_y - y)).release().perform()

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < give_up_at, (self.text("#said"), self.driver.get_log("browser"))
            time.sleep(0.02)

    def until_shown(self, number: int, frame: int | str = 0) -> None:
        """Wait until the picture is a frame of a case."""
        self.until(lambda: self.run(SHOWN) == f"INSTANCE{number:04d}/{frame}")

    def masks(self) -> list[str | None]:
        return [mask.get_attribute("aria-label") for mask in self.all("#masks button")]


@contextmanager
def served(driver: webdriver.Chrome, folder: Path, who: str | None) -> Iterator[Page]:
    """Serve while a test runs."""
    folder.mkdir(mode=0o700)
    with ReviewServer(Review(folder, who)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Page(driver, server)
        finally:
            driver.get("about:blank")
            server.shutdown()
            thread.join()
