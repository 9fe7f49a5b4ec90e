"""Draw a digit into the live page, take its picture, and print how long a stroke takes.

    python -m tests.make_live_picture notebooks/pictures/live.png

Needs Chromium with its driver and selenium. A stroke is one movement of the pen: the whole network
and the pictures that are in view, as the page measures and shows it.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import tempfile
from pathlib import Path

from PIL import Image

from tests.browsers import chromium
from tests.command_line import run

SIZE = (1280, 934)
# A 3 in two bows: centre, radius and the angles between which it runs, in degrees.
BOWS = (((0.47, 0.32), 0.165, -165, 85), ((0.47, 0.66), 0.19, -80, 160))
LOOK = (0.62, 0.4)  # where the pointer rests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="the .png file to write")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    args = parser.parse_args()
    driver = chromium()
    try:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "live.html"
            assert run("live", "-o", page).status == 0
            picture, milliseconds = _drawn(driver, page, args.scheme)
    finally:
        driver.quit()
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, 2, dither=Image.Dither.NONE)
    few.save(args.picture, optimize=True)
    size = args.picture.stat().st_size
    print(f"{args.picture}: {size:,} bytes")
    print(
        f"{len(milliseconds)} strokes: median {statistics.median(milliseconds):.1f} ms, "
        f"fastest {min(milliseconds):.1f} ms, slowest {max(milliseconds):.1f} ms"
    )


def _drawn(driver, page: Path, scheme: str) -> tuple[Image.Image, list[float]]:
    """The page with a digit in it, and the milliseconds of every stroke."""
    from selenium.webdriver import ActionChains

    size = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    driver.get(page.as_uri())
    board = driver.find_element("id", "board")

    def move(x: float, y: float, then: str | None = None) -> None:
        chain = ActionChains(driver, duration=0)
        sides = board.size["width"], board.size["height"]
        chain.move_to_element_with_offset(
            board, *(int((p - 0.5) * s) for p, s in zip((x, y), sides))
        )
        if then is not None:
            getattr(chain, then)()
        chain.perform()
        driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )

    milliseconds = []
    for i, (x, y) in enumerate(_points()):
        move(x, y, "click_and_hold" if i == 0 else None)
        script = "return Number(document.documentElement.dataset.milliseconds)"
        milliseconds.append(driver.execute_script(script))
    move(x, y, "release")
    move(*LOOK)
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"), milliseconds


def _points() -> list[tuple[float, float]]:
    found = []
    for (x, y), radius, begin, end in BOWS:
        for step in range(31):
            angle = math.radians(begin + (end - begin) * step / 30)
            found.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return found


if __name__ == "__main__":
    main()
