"""The page of one image in a real browser: it loads, it draws what it should, it can be used."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl.classifiers import Classifier
from refimpl.report import image
from tests import networks
from tests.browsers import emulate, press
from tests.command_line import SEVEN, run
from tests.test_report_image import CONFIGS, HOSTILE, asker, data_of, photo, taps_of

# A grid whose sides differ, several heads, no width that is a multiple of 8.
DIDB = networks.small(image_size=(6, 10), dim=15, heads=3, **networks.DIDB)
REACT = networks.small(pool="mean", layer_scale=True)
PAGES = {
    "didb": asker(DIDB),
    "react": asker(REACT),
    "deit": asker(CONFIGS["deit-pool-cls"]),
    "real numbers": asker(CONFIGS["didb-binarize-none"]),
    "hostile": asker(DIDB, [f"{HOSTILE}{i}" for i in range(DIDB.num_classes)]),
    "one patch": asker(networks.small(image_size=(2, 2), **networks.DIDB)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A page of each kind, and that of the shipped model."""
    folder = tmp_path_factory.mktemp("pages")
    for name, ask in PAGES.items():
        called = HOSTILE if name == "hostile" else name
        (folder / f"{name}.html").write_bytes(image.page(ask, photo(), called, called).content)
    assert run("report", SEVEN, "-o", folder / "shipped.html").status == 0
    return folder


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Path:
    """The page of a comparison in which a tap differs."""
    folder = tmp_path_factory.mktemp("comparison")
    bundle = Path(refimpl.__file__).parents[1] / "weights" / "golden" / "small_tie_free"
    shutil.copytree(bundle / "taps", folder / "port")
    (tap,) = (folder / "port").glob("*.blocks.0.attn.v.out.npy")
    values = np.load(tap)
    values.flat[5:9] += 1
    np.save(tap, values)
    page = folder / "page.html"
    assert run("golden", "compare", "small_tie_free", folder / "port", "--html", page).status == 1
    return page


@pytest.fixture
def show(browser, folder):
    """Open a page: show(name, scheme, width) -> the driver, with empty logs."""

    def show(name: str, scheme: str = "light", width: int = 1300) -> Any:
        for log in ("browser", "performance"):
            browser.get_log(log)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        emulate(browser, scheme)
        browser.get((folder / f"{name}.html").as_uri())
        wait(browser)
        return browser

    return show


def wait(driver: Any) -> None:
    """Until the first token is chosen and drawn."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, 20).until(lambda _: chosen(driver))


def chosen(driver: Any) -> str:
    return driver.find_element("id", "chosen").text


def cells(driver: Any) -> list:
    return driver.find_elements("css selector", "[role=gridcell]")


def pictures(driver: Any, draw: str) -> list[str]:
    """The canvases of a kind, as they look now."""
    script = "return [...document.querySelectorAll(arguments[0])].map((c) => c.toDataURL())"
    return driver.execute_script(script, f"canvas[data-draw={draw}]")


def colours(driver: Any, draw: str, tap: str, head: int, points: list) -> np.ndarray:
    """Colours (points, 3) of a canvas at points (x, y) given as fractions of its sides."""
    script = """
      const [draw, tap, head, points] = arguments;
      const canvas = document.querySelector(
        `canvas[data-draw=${draw}][data-tap="${tap}"][data-head="${head}"]`);
      const context = canvas.getContext("2d");
      return points.map(([x, y]) => [...context.getImageData(
        Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data].slice(0, 3));"""
    return np.array(driver.execute_script(script, draw, tap, head, points))


def palette(driver: Any) -> dict[str, np.ndarray]:
    script = (
        "return getComputedStyle(document.documentElement).getPropertyValue('--' + arguments[0])"
    )
    found = {}
    for name in ("minus", "plus", "one", "zero", "card", "text"):
        colour = driver.execute_script(script, name).strip()
        found[name] = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return found


def nearest(found: np.ndarray, colours: list[np.ndarray]) -> np.ndarray:
    """Which of the colours each one found (n, 3) is closest to."""
    return np.argmin([np.abs(found - colour).sum(axis=1) for colour in colours], axis=0)


# --- loading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [*PAGES, "shipped"])
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
    drawn = {
        picture for kind in ("planes", "matrix", "boolean") for picture in pictures(driver, kind)
    }
    assert "data:," not in drawn  # no canvas without pixels
    assert drawn or name == "real numbers"


def test_hostile_names_run_nothing(show) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    driver = show("hostile")
    with pytest.raises(NoAlertPresentException):
        _ = driver.switch_to.alert.text
    assert len(driver.find_elements("tag name", "script")) == 2
    assert driver.find_elements("css selector", "[onerror]") == []
    heading = driver.find_element("tag name", "h1").text
    assert '</script><script>alert("1")</script><img src=x onerror=alert(2)>' in heading


def test_the_policy_stops_what_gets_in(show) -> None:
    """Were a name not escaped after all, its script would still not run."""
    driver = show("didb")
    driver.execute_script("""
      window.reached = 0;
      const script = document.createElement("script");
      script.textContent = "window.reached = 1";
      document.body.append(script);
      document.body.insertAdjacentHTML("beforeend", "<img src='x' onerror='window.reached = 2'>");
      return new Promise((done) => setTimeout(done, 200));""")
    assert driver.execute_script("return window.reached") == 0


# --- what is drawn --------------------------------------------------------------------------------


def grid_points(ask: Classifier) -> list[tuple[float, float]]:
    """Where in a map of tokens the corner of each token is, the class token in front."""
    (rows, columns), first = ask.model.config.grid, ask.model.config.pool == "cls"
    shift = 1.5 if first else 0.0
    width = columns + shift
    patches = [
        ((shift + column + 0.2) / width, (row + 0.2) / rows)
        for row in range(rows)
        for column in range(columns)
    ]
    return [(0.2 / width, 0.2 / rows)] * first + patches


@pytest.mark.parametrize("name", ["didb", "react"])
def test_a_click_shows_the_boolean_attention_of_that_patch(show, name) -> None:
    driver, ask = show(name), PAGES[name]
    config, seen = ask.model.config, taps_of(ask)
    rows, columns = config.grid
    first = config.tokens - rows * columns
    for patch in (0, columns, rows * columns - 1):
        before = pictures(driver, "boolean")
        cells(driver)[patch].click()
        assert pictures(driver, "boolean") != before
        row, column = divmod(patch, columns)
        assert chosen(driver) == f"The patch in row {row + 1}, column {column + 1}"
        for block in range(config.depth):
            tap = f"blocks.{block}.attn.prob.bit"
            for head in range(config.heads):
                expected = seen[tap][head, first + patch]
                found = colours(driver, "boolean", tap, head, grid_points(ask))
                # the picture shines through, in greys: what is purple attends
                purple = (found[:, 2] - found[:, 1]) > 40
                np.testing.assert_array_equal(purple, expected, err_msg=f"{tap} {head} {patch}")
                count = driver.find_element(
                    "css selector", f'[data-count="{tap}"][data-head="{head}"]'
                )
                assert count.text == f"{expected.sum()} of {config.tokens}"


def test_the_class_token_can_be_chosen(show) -> None:
    driver, seen = show("didb"), taps_of(PAGES["didb"])
    button = driver.find_element("id", "class-token")
    button.click()
    assert chosen(driver) == "The class token"
    assert button.get_attribute("aria-pressed") == "true"
    assert driver.find_elements("css selector", "[aria-selected=true]") == []
    count = driver.find_element("css selector", '[data-count="blocks.1.attn.prob.bit"]').text
    assert count == f"{seen['blocks.1.attn.prob.bit'][0, 0].sum()} of {DIDB.tokens}"
    assert show("react").find_elements("id", "class-token") == []  # it has none


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bit_planes_are_the_signs(show, scheme) -> None:
    driver, seen = show("didb", scheme), taps_of(PAGES["didb"])
    colour = palette(driver)
    (rows, columns), heads, d = DIDB.grid, DIDB.heads, DIDB.head_dim
    wide = next(w for w in range(4, 9) if d % w == 0)  # columns of small maps
    tile = -(-d // wide) * (rows + 1) + 1
    width, height = wide * (columns + 1) - 1, heads * tile - 2
    for t in ("q_low", "k_low", "q_high", "k_high"):
        name = f"blocks.1.attn.{t}.head_bit"
        points, expected = [], []
        for head, channel in np.ndindex(heads, d):
            for row, column in np.ndindex(rows, columns):
                x = channel % wide * (columns + 1) + column
                y = head * tile + channel // wide * (rows + 1) + row
                points.append(((x + 0.5) / width, (y + 0.5) / height))
                expected.append(seen[name][head, 1 + row * columns + column, channel])
        found = colours(driver, "planes", name, 0, points)
        signs = nearest(found, [colour["minus"], colour["plus"]])
        np.testing.assert_array_equal(signs, np.array(expected, int), err_msg=name)
    middle = 1 + rows // 2 * columns + columns // 2  # the token that is chosen at first
    points = [
        ((channel + 0.5) / d, (2 * head + 0.5) / (2 * heads - 1))
        for head, channel in np.ndindex(heads, d)
    ]
    found = colours(driver, "bits", "blocks.0.attn.k_low.head_bit", 0, points)
    expected = seen["blocks.0.attn.k_low.head_bit"][:, middle].ravel()
    np.testing.assert_array_equal(nearest(found, [colour["minus"], colour["plus"]]), expected)


def test_values_below_and_above_zero_have_the_colours_of_the_signs(show, folder) -> None:
    driver = show("didb")
    colour, taps = palette(driver), data_of((folder / "didb.html").read_text())["taps"]
    (rows, columns), channels = DIDB.grid, DIDB.dim
    wide = next(w for w in range(4, 9) if channels % w == 0)
    width = wide * (columns + 1) - 1
    height = -(-channels // wide) * (rows + 1) - 1
    seen = taps_of(PAGES["didb"])
    for name in ("blocks.0.attn.low", "blocks.1.attn.high", "blocks.1.attn.neighbour_mean"):
        points, values = [], []
        for channel in range(channels):
            for row, column in np.ndindex(rows, columns):
                if (row, column) == (rows // 2, columns // 2):
                    continue  # framed: it is chosen
                x = channel % wide * (columns + 1) + column
                y = channel // wide * (rows + 1) + row
                points.append(((x + 0.5) / width, (y + 0.5) / height))
                values.append(seen[name][1 + row * columns + column, channel])
        share = np.clip(np.array(values) / taps[name]["scale"], -1, 1)[:, None]
        end = np.where(share < 0, colour["minus"], colour["plus"])
        expected = colour["card"] + np.abs(share) * (end - colour["card"])
        found = colours(driver, "channels", name, 0, points)
        np.testing.assert_allclose(found, expected, atol=2.5, err_msg=name)


def test_fading_shows_the_margins(show) -> None:
    driver = show("didb")
    solid, attention = pictures(driver, "planes"), pictures(driver, "boolean")
    box = driver.find_element("id", "fade")
    box.click()
    faded = pictures(driver, "planes")
    assert all(a != b for a, b in zip(solid, faded, strict=True))
    assert pictures(driver, "boolean") == attention
    box.click()
    assert pictures(driver, "planes") == solid


# --- using it -------------------------------------------------------------------------------------


def test_the_keyboard_is_enough(show) -> None:
    driver = show("didb")
    rows, columns = DIDB.grid
    press(driver, "TAB")
    focused = driver.switch_to.active_element
    assert focused.get_attribute("role") == "gridcell"
    middle = (rows // 2 + 1, columns // 2 + 1)
    assert chosen(driver) == "The patch in row {}, column {}".format(*middle)
    outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    before = pictures(driver, "boolean")
    for keys, expected in (
        (["ARROW_RIGHT"], (middle[0], middle[1] + 1)),
        (["ARROW_UP"], (middle[0] - 1, middle[1] + 1)),
        (["HOME"], (middle[0] - 1, 1)),
        (["ARROW_LEFT"], (middle[0] - 1, 1)),  # the edge
        (["END"], (middle[0] - 1, columns)),
        (["ARROW_RIGHT"], (middle[0] - 1, columns)),
        (["ARROW_DOWN"] * (rows + 1), (rows, columns)),
    ):
        press(driver, *keys)
        assert chosen(driver) == "The patch in row {}, column {}".format(*expected), keys
        focused = driver.switch_to.active_element
        assert focused.get_attribute("aria-selected") == "true"
        assert focused.get_attribute("aria-label") == "Row {}, column {}".format(*expected)
    assert pictures(driver, "boolean") != before
    press(driver, "TAB", "ENTER")
    assert chosen(driver) == "The class token"
    planes = pictures(driver, "planes")
    press(driver, "TAB", "SPACE")
    assert driver.find_element("id", "fade").is_selected()
    assert pictures(driver, "planes") != planes
    press(driver, "TAB")  # on to the links: the grid is one stop, not many
    assert driver.switch_to.active_element.tag_name == "a"


@pytest.mark.parametrize("name", ["didb", "deit"])
def test_everything_has_a_name_for_those_who_do_not_see_it(show, name) -> None:
    driver = show(name)
    tree = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {"image", "img", "gridcell", "button", "checkbox", "link", "grid", "heading"}
    found = [node for node in tree if node.get("role", {}).get("value") in named]
    assert {node["role"]["value"] for node in found} >= {"gridcell", "grid", "heading", "link"}
    for node in found:
        text = node.get("name", {}).get("value", "")
        assert text.strip() and "{" not in text, node
    levels = [int(tag[1]) for tag in re.findall("<(h[1-6])>", driver.page_source)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    labels = [c.get_attribute("aria-label") for c in driver.find_elements("tag name", "canvas")]
    assert any("the patch in row" in label for label in labels)


def test_dark_and_light(show) -> None:
    driver = show("shipped", "light")
    looks = {}
    for scheme in ("light", "dark", "light"):
        emulate(driver, scheme)
        screen = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("L")
        looks.setdefault(scheme, []).append((np.mean(screen), pictures(driver, "planes")))
    (light, planes), (again, planes_again) = looks["light"]
    ((dark, dark_planes),) = looks["dark"]
    assert light > 180 > 75 > dark
    assert planes_again == planes and light == pytest.approx(again, abs=1)
    assert all(a != b for a, b in zip(planes, dark_planes, strict=True))


@pytest.mark.parametrize("width", [360, 700, 1300])
@pytest.mark.parametrize("name", ["shipped", "deit", "hostile"])
def test_it_fits_the_window(show, name, width) -> None:
    driver = show(name, width=width)
    found = driver.execute_script("return document.documentElement.scrollWidth")
    assert found <= width
    picture = driver.find_element("id", "picture").rect
    for key in ("width", "height"):
        patches = driver.find_element("class name", "patches").rect
        assert patches[key] == pytest.approx(picture[key], abs=1)


def test_a_click_draws_little_anew(show) -> None:
    """What is the same for every patch, tens of thousands of cells, is kept: so it is quick."""
    driver = show("shipped")
    script = """
      const put = CanvasRenderingContext2D.prototype.putImageData;
      let drawn = 0;
      CanvasRenderingContext2D.prototype.putImageData = function (image, ...place) {
        drawn += image.width * image.height;
        put.call(this, image, ...place);
      };
      arguments[0].click();
      return drawn;"""
    model, _ = refimpl.load("didb_micro_mnist")
    bits = model.config.head_dim * (2 * model.config.heads - 1)  # a row a head, and gaps
    kinds = len(model.config.attention_inputs) - 1  # without the values
    assert driver.execute_script(script, cells(driver)[3]) == bits * kinds * model.config.depth


# --- any size of a window -------------------------------------------------------------------------


def test_no_table_is_cut_on_a_desktop(show) -> None:
    driver = show("shipped", width=1280)
    script = (
        "return [...document.querySelectorAll('.scroll')].map("
        "(e) => e.scrollWidth - e.clientWidth)"
    )
    found = driver.execute_script(script)
    assert len(found) > 4
    assert max(found) <= 0


def test_arrow_keys_work_without_a_click(show) -> None:
    driver = show("shipped")
    for key, expected in (("ARROW_RIGHT", "row 4, column 5"), ("ARROW_DOWN", "row 5, column 5")):
        press(driver, key)
        assert chosen(driver).endswith(expected)
    driver = show("shipped")
    press(driver, "ARROW_UP")
    assert chosen(driver).endswith("row 3, column 4")
    driver = show("shipped")
    driver.execute_script("window.scrollTo(0, 900)")
    press(driver, "ARROW_DOWN")  # scrolls
    assert chosen(driver).endswith("row 4, column 4")
    press(driver, "ARROW_LEFT")
    assert chosen(driver).endswith("row 4, column 3")


def test_the_menu_of_blocks_is_there_on_a_phone(show) -> None:
    driver = show("shipped", width=390)
    links = driver.find_elements("css selector", "nav a")
    assert [link.text for link in links][:3] == ["Answer", "Block 0", "Block 1"]
    for link in links:
        target = driver.find_element("css selector", link.get_attribute("hash"))
        driver.execute_script("arguments[0].scrollIntoView({inline: 'center'})", link)
        link.click()
        top = "return document.querySelector(arguments[0]).getBoundingClientRect().{}"
        bar = driver.execute_script(top.format("bottom"), "aside")
        assert target.is_displayed()
        last = "return window.scrollY + window.innerHeight >= document.body.scrollHeight - 2"
        if not driver.execute_script(last):
            assert driver.execute_script(top.format("top"), link.get_attribute("hash")) >= bar - 1


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_verdicts_of_a_comparison_are_on_the_screen(browser, comparison, width) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(comparison.as_uri())
    script = (
        "return [...document.querySelectorAll('td.verdict')].map((e) => "
        "e.getBoundingClientRect().right)"
    )
    found = browser.execute_script(script)
    assert len(found) > 100
    assert 0 < max(found) <= width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
