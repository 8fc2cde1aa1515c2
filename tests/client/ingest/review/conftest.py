"""One Chromium for all tests that need no other, and the page in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from tests.client.ingest.review.browser import Page, a_browser, served


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """One Chromium for all tests that need no other."""
    with a_browser(tmp_path_factory.mktemp("profile"), "en-GB") as driver:
        yield driver


@pytest.fixture
def page(tmp_path: Path, english: webdriver.Chrome) -> Iterator[Page]:
    """The page, not opened yet, of a queue without cases."""
    english.get_log("performance")
    english.get_log("browser")
    with served(english, tmp_path / "review", "Dr A. Martin") as shown:
        yield shown
    assert [entry for entry in english.get_log("browser") if entry["source"] != "rendering"] == []
