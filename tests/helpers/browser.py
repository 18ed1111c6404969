"""Pages in a real browser: Chromium without a window, driven by selenium; one for all tests of a worker.

A test asks for the fixture ``browser`` and opens files with it. What the page writes to the console, and
every address that the browser asks for, is kept: ``Browser.quiet`` holds that there is nothing of either.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.golden import ROOT

#: Pictures of pages, for people to look at; git ignores the folder.
SCREENS = ROOT / "build" / "screens"

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
]


class Browser:
    """Chromium, showing one page at a time."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1280, height: int = 900) -> None:
        """Show a page of a file in a window of that inner size, in light colours."""
        self.resize(width, height)
        self.light()
        self.logged()
        self.driver.get(page.as_uri())

    def resize(self, width: int, height: int = 900) -> None:
        """Give the page that many pixels; a window itself is never narrower than 500."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def light(self, scheme: str = "light") -> None:
        """Have the system prefer light colours, or dark ones."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: object) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def click(self, css: str) -> None:
        """Click on the first element of a selector, as a user does."""
        found = self.one(css)
        self.run("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def choose(self, css: str, value: str) -> None:
        """Choose an option of a select by its value."""
        from selenium.webdriver.support.select import Select

        Select(self.one(css)).select_by_value(value)

    def type(self, css: str, text: str) -> None:
        """Put a text into a field, in the place of what is there."""
        field = self.one(css)
        field.clear()
        field.send_keys(text or " \ue003")  # a field that is cleared says so only after a key

    def until(self, script: str) -> None:
        """Wait until a script in the page returns what is true."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 60, 0.02).until(lambda driver: driver.execute_script(script))

    def one(self, css: str) -> Any:
        """The first element of a selector."""
        return self.driver.find_element("css selector", css)

    def texts(self, css: str) -> list[str]:
        """The texts of all elements of a selector that can be seen."""
        found = "[...document.querySelectorAll(arguments[0])]"
        return list(self.run(f"return {found}.filter(e => e.checkVisibility()).map(e => e.innerText)", css))

    def hover(self, element: Any, x: int = 0, y: int = 0) -> None:
        """Move the mouse to a place in an element, counted from its middle."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element_with_offset(element, x, y).perform()

    def keys(self, *keys: str) -> None:
        """Press keys, whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return int(self.run("const e = document.documentElement; return e.scrollWidth - e.clientWidth"))

    def screen(self, name: str) -> Path:
        """A picture of the whole page, for people to look at."""
        SCREENS.mkdir(parents=True, exist_ok=True)
        path = SCREENS / f"{name}.png"
        self.run("scrollTo(0, 0)")
        whole = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(whole["data"]))
        return path

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])

    def logged(self) -> tuple[list[str], list[str]]:
        """What the page wrote to the console, and the addresses that were asked for, since the last call."""
        said = [str(entry["message"]) for entry in self.driver.get_log("browser")]
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        asked = [
            str(event["params"]["request"]["url"])
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return said, [url for url in asked if not url.startswith("data:")]

    def quiet(self, page: Path) -> None:
        """Hold that the page wrote nothing to the console and asked for nothing but itself."""
        said, asked = self.logged()
        assert said == []
        assert set(asked) <= {page.as_uri()}


def started(folder: Path) -> Browser:
    """A new browser whose profile is in a folder."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*_FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Browser(webdriver.Chrome(options, Service(shutil.which("chromedriver"))))


def browser_of_worker(folder: Path) -> Iterator[Browser]:
    """The browser of a worker, or a skip that says what is missing."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed")
    pytest.importorskip("selenium")
    os.environ.setdefault("SE_AVOID_STATS", "true")
    browser = started(folder)
    try:
        yield browser
    finally:
        browser.driver.quit()
