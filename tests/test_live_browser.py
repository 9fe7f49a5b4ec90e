"""The live page in a real browser: one draws into it, and its engine passes there, too."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl.data import bundled
from refimpl.data.preprocessing import Preprocessing
from refimpl.live.page import page
from refimpl.models import packing
from tests import live_port, networks
from tests.browsers import emulate, press
from tests.command_line import SEVEN, run
from tests.live_port import BUNDLES, GOLDEN

SHIPPED = ("didb_micro_mnist", "didb_cifar10")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
SMALL = {  # without a class token and any of the three ideas; with names that mean harm
    "react": networks.small(pool="mean", channels=1),
    "hostile": networks.small(channels=3, num_classes=1, **networks.DIDB),
}
THREE = [(0.3, 0.2), (0.6, 0.15), (0.65, 0.3), (0.45, 0.46), (0.68, 0.6), (0.6, 0.8), (0.3, 0.78)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    for name in SHIPPED:
        assert run("live", "--model", name, "-o", folder / f"{name}.html").status == 0
    for name, config in SMALL.items():
        arrays = packing.pack(config, networks.parameters(config, np.random.default_rng(37)))
        names = [f"{HOSTILE}{i}" for i in range(config.num_classes)]
        plain = Preprocessing.plain(config.image_size, config.channels)
        (folder / f"{name}.html").write_bytes(page(config, arrays, plain, names, HOSTILE))
    return folder


@pytest.fixture
def show(browser, pages):
    """Open a page: show(name, scheme, width) -> the driver, with empty logs."""

    def show(name: str = SHIPPED[0], scheme: str = "light", width: int = 1280) -> Any:
        for log in ("browser", "performance"):
            browser.get_log(log)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        emulate(browser, scheme)
        browser.get((pages / f"{name}.html").as_uri())
        settle(browser)
        return browser

    return show


def settle(driver: Any) -> None:
    """Until what was asked for is drawn: two frames."""
    script = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
    driver.execute_async_script(script)


def text(driver: Any, name: str) -> str:
    return driver.find_element("id", name).get_attribute("textContent")


def draw(driver: Any, points: list[tuple[float, float]]) -> None:
    """A stroke with the mouse, by shares of the board's sides; the pointer stays where it ends."""
    from selenium.webdriver import ActionChains

    board = driver.find_element("id", "board")
    width, height = board.size["width"], board.size["height"]
    chain = ActionChains(driver, duration=20)
    for i, (x, y) in enumerate(points):
        chain.move_to_element_with_offset(board, int((x - 0.5) * width), int((y - 0.5) * height))
        if i == 0:
            chain.click_and_hold()
    chain.release().perform()
    settle(driver)


# --- the engine is a port -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLES)
def test_every_tap_of_the_shipped_bundles_passes(show, tmp_path, name) -> None:
    bundle = GOLDEN / name
    script = """
      const network = engine.load(JSON.parse(arguments[0])), image = JSON.parse(arguments[1]);
      const values = engine.run(network, {shape: image.shape, data: Float32Array.from(image.data)});
      const file = engine.safetensors(engine.taps(network, values));
      let text = "";
      for (const byte of file) text += String.fromCharCode(byte);
      return btoa(text);"""
    driver, network, files = show(), json.dumps(live_port.written(bundle)), []
    for i, image in enumerate(live_port.images_of(bundle)):
        files.append(tmp_path / f"{i}.safetensors")
        files[-1].write_bytes(
            base64.b64decode(driver.execute_script(script, network, json.dumps(image)))
        )
    taps = live_port.together(files)
    for mode in ("free", "replay"):
        live_port.assert_every_tap_passes(live_port.compared(bundle, taps, mode))


# --- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*SHIPPED, *SMALL])
def test_it_loads_in_silence_and_asks_nobody(show, name, scheme) -> None:
    driver = show(name, scheme)
    assert driver.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in urls if not url.startswith("data:")] == [driver.current_url]
    screen = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("L")
    assert (np.mean(screen) < 90) == (scheme == "dark")


@pytest.mark.parametrize("width", [360, 700, 1280])
@pytest.mark.parametrize("name", [*SHIPPED, *SMALL])
def test_it_fits_the_window(show, name, width) -> None:
    driver = show(name, width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_hostile_names_run_nothing(show) -> None:
    driver = show("hostile")
    assert len(driver.find_elements("tag name", "script")) == 2
    assert driver.find_elements("css selector", "[onerror]") == []
    assert text(driver, "label") == f"{HOSTILE}0"


# --- drawing --------------------------------------------------------------------------------------


def test_a_digit_drawn_with_the_mouse_is_read(show) -> None:
    driver = show()
    draw(driver, THREE)
    assert text(driver, "label") == "3"
    assert text(driver, "status").startswith("3, ")  # for those who do not see it
    (best,) = driver.find_elements("css selector", "#bars tr.best")
    assert best.text.split()[0] == "3"
    flips, bits = (int(word.replace(",", "")) for word in text(driver, "flipped").split()[3:6:2])
    assert 0 < flips < bits
    driver.find_element("id", "undo").click()
    blank = text(driver, "probability")
    driver.find_element("id", "clear").click()
    assert text(driver, "probability") == blank


def test_a_digit_drawn_with_the_keyboard_is_read(show) -> None:
    driver = show()
    driver.execute_script("document.getElementById('board').focus()")
    down, left = ["ARROW_DOWN"], ["ARROW_LEFT"]
    press(driver, *["ARROW_UP"] * 3, *left * 5, "SPACE")
    assert text(driver, "status") == "pen down, row 5, column 10"
    press(driver, *["ARROW_RIGHT"] * 9, *["ARROW_DOWN", "ARROW_DOWN", "ARROW_LEFT"] * 3, *down * 9)
    assert text(driver, "status") == "drawing, row 20, column 16"
    press(driver, "SPACE")
    assert text(driver, "label") == "7"
    assert text(driver, "status").startswith("pen up. 7, ")
    seen = text(driver, "probability")
    press(driver, "BACKSPACE")
    assert text(driver, "probability") != seen


@pytest.fixture
def finger(show) -> Iterator[Callable[..., None]]:
    """Fingers on a phone: finger(kind, *points) by shares of the board's sides."""
    driver = show(width=375)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    script = "return document.getElementById('board').getBoundingClientRect().toJSON()"
    box = driver.execute_script(script)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": i}
            for i, (x, y) in enumerate(points)
        ]
        event = {"type": f"touch{kind}", "touchPoints": places}
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", event)
        settle(driver)

    touch.driver = driver  # type: ignore[attr-defined]
    yield touch
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


@pytest.mark.parametrize("hand", [(), ((0.1, 0.9),)], ids=["one", "two"])
def test_a_digit_drawn_with_a_finger_is_read(finger, hand) -> None:
    """The page stays where it is, and a second finger, or the ball of the hand, draws nothing."""
    finger("Start", THREE[0])
    if hand:
        finger("Start", THREE[0], *hand)
    for point in THREE[1:]:
        finger("Move", point, *((x, y - 0.05 * point[0]) for x, y in hand))
    finger("End")
    driver = finger.driver
    assert text(driver, "label") == "3"
    assert text(driver, "status").startswith("3, ")
    assert driver.execute_script("return scrollY") == 0
    driver.find_element("id", "undo").click()  # it was one stroke
    board = "return document.getElementById('board').toDataURL()"
    blank = driver.execute_script(board)
    driver.find_element("id", "clear").click()
    assert driver.execute_script(board) == blank


POINTER = """
  const board = document.getElementById("board"), box = board.getBoundingClientRect();
  board.setPointerCapture = () => {};  // there is no such pointer
  for (const [kind, x, y] of arguments[0]) {
    const place = { clientX: box.x + x * box.width, clientY: box.y + y * box.height };
    const how = { ...place, button: 0, isPrimary: true, bubbles: true };
    if (kind === "undo") document.getElementById("undo").click();
    else board.dispatchEvent(new PointerEvent(`pointer${kind}`, how));
  }"""


def test_a_dot_is_read_though_the_pointer_goes_on_at_once(show) -> None:
    """All within a frame: what is drawn for the next patch does not take the place of the run."""
    driver = show()
    driver.execute_script(POINTER, [("down", 0.2, 0.2), ("up", 0.2, 0.2), ("move", 0.9, 0.9)])
    settle(driver)
    seen, said = text(driver, "probability"), text(driver, "status")
    assert said.startswith(f"{text(driver, 'label')}, {seen}. ")
    for _ in range(2):  # twice the other way: as it was, computed anew
        driver.find_element("id", "centre").click()
    settle(driver)
    assert text(driver, "probability") == seen


def test_what_is_undone_while_it_is_drawn_is_gone(show) -> None:
    driver = show()
    driver.execute_script(POINTER, DOT)
    settle(driver)
    one = driver.execute_script(BOARD)
    strokes = [("down", 0.6, 0.6), ("move", 0.7, 0.7), ("undo", 0, 0), ("move", 0.8, 0.2)]
    driver.execute_script(POINTER, [*strokes, ("up", 0.8, 0.2), ("move", 0.2, 0.2)])
    settle(driver)
    assert driver.execute_script(BOARD) == one
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_same_picture_can_be_opened_again(show) -> None:
    driver = show()
    for _ in range(2):
        driver.find_element("id", "clear").click()
        assert text(driver, "status") == "cleared"
        by_button(driver, SEVEN)
        for _ in range(50):
            settle(driver)
            if text(driver, "status") != "cleared":
                break
        assert text(driver, "status").startswith("7, ")


BOARD = "return document.getElementById('board').toDataURL()"
DOT = [("down", 0.2, 0.2), ("up", 0.2, 0.2)]


def test_undoing_a_picture_brings_back_what_was_drawn(show) -> None:
    driver = show()
    driver.find_element("id", "clear").click()
    driver.execute_script(POINTER, DOT)
    settle(driver)
    drawn = driver.execute_script(BOARD)
    driver.find_element("css selector", "[data-sample]").click()
    settle(driver)
    assert driver.execute_script(BOARD) != drawn
    driver.find_element("id", "undo").click()
    settle(driver)
    assert driver.execute_script(BOARD) == drawn
    driver.find_element("css selector", "[data-sample]").click()
    driver.execute_script(POINTER, DOT)  # over a picture one begins anew
    settle(driver)
    driver.find_element("id", "undo").click()
    driver.find_element("id", "undo").click()
    settle(driver)
    empty = driver.execute_script(BOARD)
    driver.find_element("id", "clear").click()
    settle(driver)
    assert driver.execute_script(BOARD) == empty != drawn


# The first picture takes until it is called for, and later ones no time.
SLOW = """
    const decode = createImageBitmap;
    let first = true;
    window.createImageBitmap = async (...given) => {
      if (first) {
        first = false;
        await new Promise((done) => (window.release = done));
      }
      return decode(...given);
    };"""


@pytest.mark.parametrize("later", ["picture", "stroke", "clear"])
def test_a_picture_that_is_late_takes_the_place_of_nothing(show, tmp_path, later) -> None:
    driver = show()
    driver.execute_script(SLOW)
    by_button(driver, SEVEN)
    if later == "picture":
        Image.new("L", (28, 28)).save(tmp_path / "black.png")
        before = driver.execute_script(BOARD)
        by_button(driver, tmp_path / "black.png")
        for _ in range(50):
            settle(driver)
            if driver.execute_script(BOARD) != before:
                break
    elif later == "stroke":
        driver.execute_script(POINTER, DOT)
    else:
        driver.find_element("id", "clear").click()
    settle(driver)
    seen = driver.execute_script(BOARD)
    driver.execute_script("window.release()")
    for _ in range(20):
        settle(driver)
    assert driver.execute_script(BOARD) == seen


def by_button(driver: Any, path: Path) -> None:
    driver.find_element("id", "file").send_keys(str(path))


def by_drop(driver: Any, path: Path) -> None:
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 200, "y": 300, "data": data}
        driver.execute_cdp_cmd("Input.dispatchDragEvent", event)


@pytest.mark.parametrize("give", [by_button, by_drop])
@pytest.mark.parametrize(
    ("name", "path"), [(SHIPPED[0], SEVEN), (SHIPPED[1], bundled.photographs()[-2])]
)
def test_a_picture_is_read_as_the_classifier_reads_it(show, name, path, give) -> None:
    driver = show(name)
    give(driver, path)
    (expected,) = refimpl.classifier(name, backend="numpy")(path)
    wanted = f"{100 * expected.probability:.1f} %"
    for _ in range(50):
        settle(driver)
        if text(driver, "probability") == wanted:
            break
    assert (text(driver, "label"), text(driver, "probability")) == (expected.label, wanted)


def test_the_taps_of_a_picture_are_saved(show, tmp_path) -> None:
    driver, saved, bundle = show(), tmp_path / "taps.safetensors", tmp_path / "bundle"
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    by_drop(driver, SEVEN)
    for _ in range(50):
        settle(driver)
        if text(driver, "label") == "7":
            break
    driver.find_element("id", "save").click()
    for _ in range(100):
        settle(driver)
        if saved.exists():
            break
    made = run("golden", "make", "--model", SHIPPED[0], "--image", SEVEN, "-o", bundle)
    assert made.status == 0
    live_port.assert_every_tap_passes(live_port.compared(bundle, saved, "free"))


def test_what_is_no_picture_is_said(show, tmp_path) -> None:
    driver = show()
    (tmp_path / "words.png").write_text("no picture")
    driver.find_element("id", "file").send_keys(str(tmp_path / "words.png"))
    for _ in range(50):
        settle(driver)
        if text(driver, "status").startswith("words.png: no picture"):
            break
    assert text(driver, "warning") == text(driver, "status") != ""


def test_a_picture_of_ink_on_paper_can_be_exchanged(show, tmp_path) -> None:
    driver = show()
    paper = Image.fromarray(255 - np.asarray(Image.open(SEVEN).convert("L")))
    paper.save(tmp_path / "paper.png")
    driver.find_element("id", "file").send_keys(str(tmp_path / "paper.png"))
    for _ in range(50):
        settle(driver)
        if text(driver, "warning"):
            break
    assert "brightness" in text(driver, "warning")
    driver.find_element("id", "exchange").click()
    assert text(driver, "label") == "7"
    assert not driver.find_element("id", "warning").is_displayed()
    driver.find_element("id", "exchange").click()
    assert driver.find_element("id", "warning").is_displayed()
    draw(driver, THREE)  # takes the place of the picture, which does not come back
    assert not driver.find_element("id", "warning").is_displayed()
    driver.find_element("id", "exchange").click()
    assert text(driver, "label") == "3"


# --- looking inside -------------------------------------------------------------------------------


def seen_by_reference(path: Path) -> dict[str, np.ndarray]:
    """The taps of the reference on a bundled digit, in float32."""
    ask = refimpl.classifier(SHIPPED[0], backend="numpy").astype(np.float32)
    x = ask.preprocessing.apply(Image.open(path))[None]
    found = {}
    ask.model.forward(
        ask.params, x, tap=lambda name, value, op, inputs: found.update({name: value[0]})
    )
    return found


def test_the_attention_of_the_patch_under_the_pointer(show) -> None:
    from selenium.webdriver import ActionChains

    driver = show()
    taps = seen_by_reference(bundled.digits()[0])  # what the page shows at first
    driver.find_element("css selector", "[name=block][value='2'] + span").click()
    board = driver.find_element("id", "board")
    x, y = (int((share - 0.5) * board.size["width"]) for share in (5.5 / 7, 1.5 / 7))
    ActionChains(driver).move_to_element_with_offset(board, x, y).perform()
    settle(driver)
    assert driver.find_element("class name", "token").text == "the patch in row 2, column 6"
    bits = taps["blocks.2.attn.prob.bit"][:, 1 + 7 + 5]
    counts = [span.text for span in driver.find_elements("css selector", "[data-count]")]
    assert counts == [f"attends to {head.sum()} of 50" for head in bits]


def test_signs_about_to_flip_are_counted(show) -> None:
    driver = show()
    taps = seen_by_reference(bundled.digits()[0])
    table = driver.find_element("id", "margins")
    driver.execute_script("arguments[0].scrollIntoView()", table)
    settle(driver)
    settle(driver)
    for row in table.find_elements("css selector", "tbody tr"):
        *_, near, count = [cell.text.replace(",", "") for cell in row.find_elements("xpath", "*")]
        name = row.find_element("tag name", "code").text
        threshold = 0.5 if name.endswith("prob.z") else 0.0
        distance = np.abs(taps[f"blocks.0.{name}"].astype(np.float64) - threshold)
        expected = np.mean(distance < 0.01 * np.sqrt(np.mean(distance**2)))
        assert int(count) == distance.size
        assert int(near) / distance.size == pytest.approx(expected, abs=2e-3)


def test_one_idea_at_a_time(show) -> None:
    driver = show()
    whole = text(driver, "probability")
    slide = """
      const slider = document.querySelector(`[data-op=${arguments[0]}]`);
      slider.value = arguments[1];
      slider.dispatchEvent(new Event("input"));"""
    for op in ("bands", "differential", "rprelu"):
        driver.execute_script(slide, op, 0)
        settle(driver)
        values = {s.get_attribute("data-op"): s.get_attribute("value")
                  for s in driver.find_elements("css selector", "[data-op]")}  # fmt: skip
        assert {name for name, value in values.items() if value == "0"} == {op}
        assert text(driver, "probability") != whole
        assert whole in text(driver, "difference")
    driver.execute_script(slide, "rprelu", 100)
    settle(driver)
    assert text(driver, "probability") == whole


def test_everything_has_a_name_for_those_who_do_not_see_it(show) -> None:
    driver = show()
    tree = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {
        *("image", "img", "gridcell", "button", "checkbox", "radio", "slider", "grid", "heading"),
        "application",
    }
    found = [node for node in tree if node.get("role", {}).get("value") in named]
    assert {node["role"]["value"] for node in found} >= {"application", "slider", "radio", "grid"}
    for node in found:
        name = node.get("name", {}).get("value", "")
        assert name.strip() and "{" not in name, node
    levels = [int(tag[1]) for tag in re.findall("<(h[1-6])>", driver.page_source)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert driver.find_element("id", "status").get_attribute("aria-live") == "polite"


def test_the_patches_can_be_chosen_by_keyboard(show) -> None:
    driver = show()
    driver.execute_script("document.querySelector('.patches [tabindex=\"0\"]').focus()")
    press(driver, "ARROW_LEFT", "ARROW_UP")
    assert driver.find_element("class name", "token").text == "the patch in row 3, column 3"
    assert text(driver, "status").startswith("the patch in row 3, column 3: attends to ")
