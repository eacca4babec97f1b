import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser import MISSING, Browser
from tests.unit.tools.test_report import write_masks, write_run
from tools import report


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_page_works_in_chromium(sample_root, tmp_path):
    write_run(tmp_path / "out", "fcn_a_20260101-000000-aaaa", sample_root)
    write_run(tmp_path / "out", "fcn_b_20260102-000000-bbbb", sample_root, seed=1)
    write_masks(tmp_path / "out" / "masks" / "test", sample_root / "val")
    page = report.main([str(tmp_path / "out")])
    with Browser(tmp_path / "profile") as browser:
        browser.prefer("light")
        browser.open(page)
        browser.wait_for("document.getElementById('stage').dataset.pair === '00002'")
        look(browser, tmp_path)
        assert browser.log() == []
    assert browser.processes() == []


def look(browser: Browser, folder: Path) -> None:
    assert browser.js("return document.querySelectorAll('#main-charts svg').length") == 6
    assert browser.js("return document.querySelectorAll('#thumbs button').length") == 4
    names = browser.js("return [...document.querySelectorAll('#thumbs b')].map(b => b.textContent)")
    assert names == ["00002", "00000", "00003", "00001"]
    browser.js("document.getElementById('pairs').scrollIntoView()")

    # Sweeping with mouse, finger and keyboard moves the clip of the upper picture.
    assert clip(browser) == 50
    browser.drag("#stage", 0, -150, "mouse")
    by_mouse = clip(browser)
    assert by_mouse < 40
    browser.drag("#stage", 0, 150, "touch")
    by_touch = clip(browser)
    assert by_touch > 60
    assert browser.js("return document.activeElement.id") == "sweep"
    browser.press("\ue014", "\ue014", "\ue012")  # right, right, left
    assert clip(browser) == round(by_touch) + 1
    browser.press("n")
    browser.wait_for("document.getElementById('stage').dataset.pair === '00000'")
    browser.press("p")
    browser.wait_for("document.getElementById('stage').dataset.pair === '00002'")

    # Each overlay, the opacity and the palette change what is drawn.
    seen = {drawn(browser)}
    browser.click("[data-layer=prediction]")
    seen.add(changed_picture(browser, seen))
    browser.click("[data-layer=label]")
    seen.add(changed_picture(browser, seen))
    browser.click("[data-layer=error]")
    seen.add(changed_picture(browser, seen))
    browser.press("3", "1")  # errors off, predictions on
    seen.add(changed_picture(browser, seen))
    browser.click("[data-palette=safe]")
    seen.add(changed_picture(browser, seen))
    browser.js("let o = document.getElementById('opacity'); o.value = 20;"
               "o.dispatchEvent(new Event('input'))")  # fmt: skip
    changed_picture(browser, seen)
    swatch = "getComputedStyle(document.querySelector('[data-class=\"1\"]')).backgroundColor"
    assert browser.js(f"return {swatch}") == "rgb(0, 114, 178)"

    # An epoch is read from a chart by keyboard; a run leaves the curves when its legend is clicked.
    browser.js("document.querySelector('#main-charts svg').focus()")
    browser.press("\ue014", "\ue014")
    assert browser.js("return document.querySelector('.tip:not([hidden])').innerText").startswith(
        "Epoch 2"
    )
    browser.js("document.querySelector('#legend button').click()")
    assert browser.js("return document.querySelectorAll('#main-charts .curve').length") == 6

    # Light and dark: by the system's preference, then by the button.
    light = browser.js("return getComputedStyle(document.body).backgroundColor")
    browser.screenshot(folder / "light.png")
    browser.prefer("dark")
    browser.wait_for("document.documentElement.dataset.theme === 'dark'")
    assert browser.js("return getComputedStyle(document.body).backgroundColor") != light
    browser.screenshot(folder / "dark.png")
    browser.click("#theme")
    assert browser.js("return getComputedStyle(document.body).backgroundColor") == light
    for name in ("light.png", "dark.png"):
        assert len(np.unique(np.asarray(Image.open(folder / name)).reshape(-1, 3), axis=0)) > 200


def clip(browser: Browser) -> float:
    text = browser.js("return getComputedStyle(document.getElementById('after')).clipPath")
    return float(re.fullmatch(r"inset\(0px 0px 0px ([\d.]+)%\)", text)[1])


def drawn(browser: Browser) -> int:
    """Return a sum over the upper canvas that tells pictures apart."""
    return browser.js(
        "let from = document.getElementById('after'), c = document.createElement('canvas');"
        "c.width = from.width, c.height = from.height;"
        "let context = c.getContext('2d', {willReadFrequently: true});"
        "context.drawImage(from, 0, 0);"
        "let d = context.getImageData(0, 0, c.width, c.height).data;"
        "let s = 0; for (let i = 0; i < d.length; i += 7) s = (s * 31 + d[i]) % 1000000007;"
        "return s"
    )


def changed_picture(browser: Browser, seen: set[int]) -> int:
    browser.wait_for(lambda: drawn(browser) not in seen)
    return drawn(browser)
