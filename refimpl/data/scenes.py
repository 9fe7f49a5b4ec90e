"""Scenes of MNIST's digits, to learn segmentation on without a download.

A scene is 56 x 56 pixels, grey. From back to front: four to eight pieces of digits, clutter that
belongs to the background, then two to four digits of 26 to 36 pixels with their dark margin, which
may leave the frame. A pixel is labelled with a digit, 0 to 9, where that digit's own brightness is
at least 64, and with 10, background, everywhere else. A later digit covers earlier ones, up to a
quarter of its own labelled pixels and of theirs; one that finds no such place is left out.

Scenes of the training split are made of training digits, those of the test split of test digits. A
seed fixes them, each by itself: the first hundred are the same whatever the number.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from refimpl.conventions import DataError
from refimpl.data import mnist
from refimpl.data.segmentation import SPLITS

SIDE = 56
BACKGROUND = 10  # its label
CLASS_NAMES = (*mnist.CLASS_NAMES, "background")
DIGITS = (2, 4)  # fewest and most a scene
SIZES = (26, 36)
MARGIN = 4  # of a digit that may be beyond the frame
COVERED = 0.25  # most of a digit's pixels that may be those of another, too
TRIES = 20
CLUTTER = (4, 8)
PIECES = (6, 9)  # size of a piece, cut out of a digit of 28 x 28
INK = 64  # of 255, from here on a pixel belongs to the digit

Place = tuple[slice, slice]
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
        _lay(scene, piece, BACKGROUND, _place(piece, rng))
    masks: list[np.ndarray] = []  # of the digits
    for _ in range(rng.integers(*DIGITS, endpoint=True)):
        chosen, side = rng.integers(len(images)), int(rng.integers(*SIZES, endpoint=True))
        digit = Image.fromarray(images[chosen]).resize((side, side), Image.Resampling.BILINEAR)
        place = _free_place(np.asarray(digit) >= INK, masks, rng)
        if place is not None:
            _lay(scene, np.asarray(digit), int(labels[chosen]), place)
    inside = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
    return Scene(scene.image[inside].copy(), scene.labels[inside].copy())


def write(
    mnist_folder: str | Path,
    out: str | Path,
    counts: dict[str, int],
    seed: int = 0,
    progress: Progress = lambda count: None,
) -> None:
    """Scenes of each split, "train" and "test", as a data set in the layout of `segmentation`.

    counts: how many of each split. progress: called with the number of scenes that were just
    written. The folder is there as a whole or not at all: DataError where `out` exists or MNIST is
    missing, OSError from the disk.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise DataError(f"{out}: exists, expected the name of a new folder")
    digits = {split: mnist.load(mnist_folder, split) for split in counts}
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        lines = [f"{i} {name}\n" for i, name in enumerate(CLASS_NAMES)]
        (temporary / "classes.txt").write_text("".join(lines), encoding="utf-8")
        for split, count in counts.items():
            for i in range(count):
                # a generator of its own: a scene does not depend on those before it
                rng = np.random.default_rng([seed, list(SPLITS).index(split), i])
                _write(temporary, f"{split}/{i:05}.png", draw(*digits[split], rng))
                progress(1)
        temporary.chmod(0o755)  # mkdtemp's 0700 is meant for secrets
        temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _place(ink: np.ndarray, rng: np.random.Generator) -> Place:
    """Anywhere on the canvas."""
    top, left = (int(rng.integers(SIDE + 2 * MARGIN - side, endpoint=True)) for side in ink.shape)
    return np.s_[top : top + ink.shape[0], left : left + ink.shape[1]]


def _free_place(
    mask: np.ndarray, masks: list[np.ndarray], rng: np.random.Generator
) -> Place | None:
    """Where a digit covers no other by too much; its mask is then added to `masks`."""
    for _ in range(TRIES):
        place = _place(mask, rng)
        shared = [np.count_nonzero(other[place] & mask) for other in masks]
        if all(
            count <= COVERED * min(np.count_nonzero(mask), np.count_nonzero(other))
            for count, other in zip(shared, masks, strict=True)
        ):
            whole = np.zeros((SIDE + 2 * MARGIN, SIDE + 2 * MARGIN), bool)
            whole[place] = mask
            masks.append(whole)
            return place
    return None


def _lay(scene: Scene, ink: np.ndarray, label: int, place: Place) -> None:
    """Lay a picture on the scene; its light parts have the label."""
    np.maximum(scene.image[place], ink, out=scene.image[place])
    scene.labels[place][ink >= INK] = label


def _write(folder: Path, name: str, scene: Scene) -> None:
    for kind, pixels in (("images", scene.image), ("annotations", scene.labels)):
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
