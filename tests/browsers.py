"""A real browser for the tests of pages."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _missing() -> str | None:
    if importlib.util.find_spec("selenium") is None:
        return 'selenium is not installed; pip install -e ".[test]" brings it'
    if not any(map(shutil.which, BROWSERS)):
        return f"found no browser, looked for {', '.join(BROWSERS)}"
    if not shutil.which("chromedriver"):
        return "found no chromedriver"
    return None


def chromium() -> Any:
    """Headless Chromium, driven by selenium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    # a container may run tests as root and has little shared memory
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options, service)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; with REFIMPL_REQUIRE_BROWSER=1, as in CI, its absence is a failure."""
    if missing := _missing():
        if os.environ.get("REFIMPL_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    driver = chromium()
    yield driver
    driver.quit()


def emulate(driver: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    for key in keys:
        ActionChains(driver).send_keys(getattr(Keys, key)).perform()
