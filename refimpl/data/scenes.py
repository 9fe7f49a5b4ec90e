"""Scenes of MNIST's digits, to learn segmentation on without a download.

A scene is 56 x 56 pixels, grey. From back to front: clutter, six to twelve pieces of digits in and
around the frame that belong to the background; then three or four digits, each in a quarter of its
own. A digit is 36 to 44 pixels wide with its dark margin, more than a quarter, and its middle lies
up to three pixels off the quarter's each way: it may overlap others and leave the frame. Strokes
hide what is behind them, and a dark edge goes with them. A pixel is labelled with a digit, 0 to 9,
where that digit is seen there with a brightness of at least 64, and with 10, background, everywhere
else.

Scenes of the training split are made of training digits, those of the test split of test digits. A
seed fixes them, each by itself: the first hundred are the same whatever the number.
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from refimpl import disk
from refimpl.conventions import OutputError
from refimpl.data import mnist
from refimpl.data.segmentation import SPLITS

SIDE = 56
BACKGROUND = 10  # its label
CLASS_NAMES = (*mnist.CLASS_NAMES, "background")
DIGITS = (3, 4)  # fewest and most a scene
SIZES = (36, 44)
JITTER = 3  # pixels
MARGIN = 12  # around the frame, for what leaves it
CLUTTER = (6, 12)
PIECES = (6, 9)  # size of a piece, cut out of a digit of 28 x 28
INK = 64  # of 255, from here on a pixel belongs to the digit

CLASSES = "".join(f"{i} {name}\n" for i, name in enumerate(CLASS_NAMES))  # of classes.txt
FILES = re.compile(r"classes\.txt|(images|annotations)/(train|test)/[0-9]{5,}\.png")

Progress = Callable[[int], object]


class Scene(NamedTuple):
    """An image and its labels."""

    image: np.ndarray  # uint8 (56, 56)
    labels: np.ndarray  # uint8 (56, 56)


def draw(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Scene:
    """A scene of digits from images uint8 (n, 28, 28) with labels (n,)."""
    whole = (SIDE + 2 * MARGIN, SIDE + 2 * MARGIN)
    scene = Scene(np.zeros(whole, np.uint8), np.full(whole, BACKGROUND, np.uint8))
    for _ in range(rng.integers(*CLUTTER, endpoint=True)):
        side = rng.integers(*PIECES, endpoint=True)
        # from the middle, where there is ink
        top, left = rng.integers(6, 23 - side, size=2)
        digit = images[rng.integers(len(images))]
        piece = digit[top : top + side, left : left + side]
        _lay(scene, piece, BACKGROUND, rng.integers(whole[0] - side, size=2, endpoint=True))
    quarters = rng.permutation(4)
    for quarter in quarters[: rng.integers(*DIGITS, endpoint=True)]:
        chosen, side = rng.integers(len(images)), int(rng.integers(*SIZES, endpoint=True))
        digit = Image.fromarray(images[chosen]).resize((side, side), Image.Resampling.BILINEAR)
        middle = MARGIN + SIDE // 4 + SIDE // 2 * np.array(divmod(quarter, 2))
        off = rng.integers(-JITTER, JITTER, size=2, endpoint=True)
        _lay(scene, np.asarray(digit), int(labels[chosen]), middle + off - side // 2)
    inside = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return Scene(scene.image[inside].copy(), scene.labels[inside].copy())


def write(
    mnist_folder: str | Path,
    out: str | Path,
    counts: dict[str, int],
    seed: int = 0,
    progress: Progress = lambda count: None,
    *,
    overwrite: bool = False,
) -> None:
    """Scenes of each split, "train" and "test", as a data set in the layout of `segmentation`.

    counts: how many of each split. progress: called with the number of scenes that were just
    written. The folder is there as a whole or not at all: OutputError where `out` exists and is no
    empty folder, and with `overwrite` where it holds more than scenes; DataError where MNIST is
    missing, OSError from the disk.
    """
    if overwrite and Path(out).is_dir():
        _require_scenes(Path(out))
    with disk.new_folder(out, overwrite=overwrite) as temporary:
        digits = {split: mnist.load(mnist_folder, split) for split in counts}
        (temporary / "classes.txt").write_text(CLASSES, encoding="utf-8")
        for split, count in counts.items():
            for i in range(count):
                # a generator of its own: a scene does not depend on those before it
                rng = np.random.default_rng([seed, list(SPLITS).index(split), i])
                _write(temporary, f"{split}/{i:05}.png", draw(*digits[split], rng))
                progress(1)


def _require_scenes(folder: Path) -> None:
    """OutputError where a folder holds what no earlier call has written: it is nobody's to go."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or FILES.fullmatch(name)):
            raise OutputError(f"{folder}: holds {name}; expected a new folder or one of scenes")
    with contextlib.suppress(OSError, UnicodeError):
        if not any(folder.iterdir()) or disk.read_text(folder / "classes.txt") == CLASSES:
            return
    raise OutputError(f"{folder}: no classes.txt of scenes in it; expected a new folder or theirs")


def _lay(scene: Scene, ink: np.ndarray, label: int, corner: np.ndarray) -> None:
    """Lay strokes on the scene; their dark edges are background. corner: row and column."""
    place = tuple(slice(first, first + len(ink)) for first in corner)
    painted = ink > 0
    scene.image[place][painted] = ink[painted]
    scene.labels[place][painted] = np.where(ink >= INK, label, BACKGROUND)[painted]


def _write(folder: Path, name: str, scene: Scene) -> None:
    for kind, pixels in (("images", scene.image), ("annotations", scene.labels)):
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
