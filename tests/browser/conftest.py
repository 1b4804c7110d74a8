"""Chromium without a window, for tests of pages.

They need selenium and axe-core (`pip install '.[browser]'`), and Chromium with its driver (Debian:
`apt-get install chromium-driver`); without them they are skipped.
"""

import shutil
import tempfile

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests, which logs its console and its requests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install '.[browser]'")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and its driver: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for argument in (
            *("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update"),
            *("disable-dev-shm-usage", "disable-sync", "no-first-run", f"user-data-dir={profile}"),
        ):
            options.add_argument(f"--{argument}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        yield driver
        driver.quit()


@pytest.fixture
def screen(chromium):
    """Sets the size of the screen in pixels, and whether the system is dark or prints."""

    def show(width=1280, height=900, *, dark=False, media=""):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})

    return show


@pytest.fixture
def browser(chromium, screen):
    """The browser with an empty page and empty logs, 1280 x 900 pixels in a light system."""
    chromium.get("about:blank")
    screen()
    for log in ("browser", "performance"):
        chromium.get_log(log)
    return chromium


@pytest.fixture
def axe_findings(browser):
    """Runs axe-core's rules on the page as it is shown; gives `rule: elements` for each that is broken."""
    axe = pytest.importorskip("axe_core_python.selenium", reason="needs axe-core: pip install '.[browser]'").Axe()

    def run() -> list[str]:
        violations = axe.run(browser)["violations"]
        return [f"{v['id']}: {[node['html'][:200] for node in v['nodes'][:3]]}" for v in violations]

    return run
