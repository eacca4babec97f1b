"""The report's page in a headless Chromium; skipped where Debian's chromium-driver is missing."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.reports import write_masks, write_run
from tools import report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000")
PICTURE = """
let from = document.getElementById('after'), c = document.createElement('canvas');
c.width = from.width, c.height = from.height;
let context = c.getContext('2d', {willReadFrequently: true});
context.drawImage(from, 0, 0);
let d = context.getImageData(0, 0, c.width, c.height).data;
let s = 0; for (let i = 0; i < d.length; i += 7) s = (s * 31 + d[i]) % 1000000007;
return s
"""


class Browser(webdriver.Chrome):
    def __init__(self):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in FLAGS:
            options.add_argument(flag)
        super().__init__(options, webdriver.ChromeService(DRIVER))

    def js(self, expression: str):
        return self.execute_script(f"return {expression}")

    def wait_for(self, expression: str) -> None:
        WebDriverWait(self, 15, 0.05).until(lambda _: self.js(expression))

    def click(self, selector: str) -> None:
        self.find_element(By.CSS_SELECTOR, selector).click()

    def press(self, *keys: str) -> None:
        ActionChains(self).send_keys(*keys).perform()

    def drag(self, pixels: int, kind: str) -> None:
        """Drag horizontally from the centre of the stage, with ``mouse`` or ``touch``."""
        actions = ActionBuilder(self, mouse=PointerInput(kind, kind), duration=60)
        stage = self.find_element(By.ID, "stage")
        actions.pointer_action.move_to(stage).pointer_down().move_to(stage, pixels // 2)
        actions.pointer_action.move_to(stage, pixels).pointer_up()
        actions.perform()

    def prefer(self, theme: str) -> None:
        """Let the system prefer ``light`` or ``dark``, and no smooth scrolling."""
        wanted = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def clip(self) -> float:
        """Share of the upper picture that is cut off, in percent."""
        text = self.js("getComputedStyle(document.getElementById('after')).clipPath")
        return float(re.fullmatch(r"inset\(0px 0px 0px ([\d.]+)%\)", text)[1])

    def new_picture(self, seen: set[int]) -> None:
        """Wait until the upper canvas shows what it has not shown yet."""
        WebDriverWait(self, 15, 0.05).until(lambda _: self.execute_script(PICTURE) not in seen)
        seen.add(self.execute_script(PICTURE))


@pytest.fixture
def browser(sample_root, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    write_run(tmp_path / "out", "fcn_a_20260101-000000-aaaa", sample_root)
    write_run(tmp_path / "out", "fcn_b_20260102-000000-bbbb", sample_root, draw=1)
    write_masks(tmp_path / "out" / "masks" / "test", sample_root / "val")
    page = report.main([str(tmp_path / "out")])
    with Browser() as browser:
        browser.prefer("light")
        browser.get(page.resolve().as_uri())
        browser.wait_for("document.getElementById('stage').dataset.pair === '00002'")
        yield browser


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's chromium-driver")
def test_page_works_in_chromium(browser, binary_root, tmp_path):
    assert browser.js("document.querySelectorAll('#main-charts svg').length") == 6
    names = browser.js("[...document.querySelectorAll('#thumbs button b')].map(b => b.textContent)")
    assert names == ["00002", "00000", "00003", "00001"]
    browser.execute_script("document.getElementById('pairs').scrollIntoView()")

    # Sweeping with mouse, finger and keyboard moves the clip of the upper picture.
    assert browser.clip() == 50
    browser.drag(-150, "mouse")
    assert browser.clip() < 40
    browser.drag(150, "touch")
    by_touch = browser.clip()
    assert by_touch > 60
    assert browser.js("document.activeElement.id") == "sweep"
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert browser.clip() == round(by_touch) + 1
    for key, pair in (("n", "00000"), ("p", "00002")):
        browser.press(key)
        browser.wait_for(f"document.getElementById('stage').dataset.pair === '{pair}'")

    # Each overlay, the opacity and the palette change what is drawn.
    seen = {browser.execute_script(PICTURE)}
    for layer in ("prediction", "label", "error"):
        browser.click(f"[data-layer={layer}]")
        browser.new_picture(seen)
    browser.press("3", "1")  # errors off, predictions on
    browser.new_picture(seen)
    browser.click("[data-palette=safe]")
    browser.new_picture(seen)
    browser.execute_script(
        "let o = document.getElementById('opacity'); o.value = 20;"
        "o.dispatchEvent(new Event('input'))"
    )
    browser.new_picture(seen)
    swatch = "getComputedStyle(document.querySelector('[data-class=\"1\"]')).backgroundColor"
    assert browser.js(swatch) == "rgb(0, 114, 178)"

    # An epoch is read from a chart by keyboard; a run leaves the curves when its legend is clicked.
    browser.execute_script("document.querySelector('#main-charts svg').focus()")
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.js("document.querySelector('.tip:not([hidden])').innerText").startswith(
        "Epoch 2"
    )
    browser.execute_script("document.querySelector('#legend button').click()")
    assert browser.js("document.querySelectorAll('#main-charts .curve').length") == 6

    # Light and dark: by the system's preference, then by the button.
    background = "getComputedStyle(document.body).backgroundColor"
    light = browser.js(background)
    browser.save_screenshot(tmp_path / "light.png")
    browser.prefer("dark")
    browser.wait_for("document.documentElement.dataset.theme === 'dark'")
    assert browser.js(background) != light
    browser.save_screenshot(tmp_path / "dark.png")
    browser.click("#theme")
    assert browser.js(background) == light
    for name in ("light.png", "dark.png"):
        with Image.open(tmp_path / name) as shown:
            assert len(np.unique(np.asarray(shown.convert("RGB")).reshape(-1, 3), axis=0)) > 200

    # On a phone the first score of every run is seen.
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    cells = "[...document.querySelectorAll('td[data-column=score]')]"
    edges = browser.js(f"{cells}.map(cell => cell.getBoundingClientRect().right)")
    assert len(edges) == 2 and max(edges) <= browser.js("document.documentElement.clientWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    # Change masks without a run: white on black, whatever the theme.
    masks = tmp_path / "masks only" / "masks" / "test"
    shutil.copytree(binary_root / "val" / "label", masks / "change")
    page = report.main([str(masks.parents[1]), "--data-root", str(binary_root)])
    browser.get(page.resolve().as_uri())
    browser.wait_for("document.querySelector('#glance canvas')")
    colors = browser.execute_script(
        "let c = document.querySelector('#glance canvas');"
        "let d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return [...new Set(new Uint32Array(d.buffer))]"
    )
    assert sorted(colors) == [0xFF000000, 0xFFFFFFFF]
    assert browser.get_log("browser") == []
