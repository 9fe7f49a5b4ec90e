"""Images that a run does not train on: settings are chosen on them, never on the test set.

>>> split = hold_out(np.zeros((5, 2, 3), np.uint8), np.arange(5), 2)
>>> split.training[1].tolist(), split.validation[1].tolist()
([0, 1, 2], [3, 4])
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.conventions import DataError
from refimpl.data.image_folder import Array, subset
from refimpl.training.recipes import require_integer


class Split(NamedTuple):
    """Hold images and labels in two parts, each in its old order.

    >>> hold_out(np.zeros((5, 2, 3), np.uint8), np.arange(5), 0).validation is None
    True
    """

    training: tuple[Array, Array]
    validation: tuple[Array, Array] | None  # None where nothing is held out
    card: dict[str, Any]  # how it was split, JSON values for the model's card


def hold_out(images: Array, labels: Array, count: int, seed: int | None = None) -> Split:
    """Hold out `count` of images (n, ...) and labels (n, ...): drawn by `seed`, or the last ones.

    Draw them where the images are sorted by class: the last ones would be of one class only.
    ConfigError for a negative count or seed, DataError where nothing would be left to train on, or
    where there are not as many labels as images.

    >>> hold_out(np.zeros((5, 2, 3), np.uint8), np.arange(5), 2, seed=0).training[1].tolist()
    [2, 3, 4]
    """
    require_integer("held-out images: the number", count, 0)
    count = int(count)  # of NumPy's integers some have no negative
    if seed is not None:
        require_integer("held-out images: seed", seed, 0)
        seed = int(seed)
    if len(images) != len(labels):
        raise DataError(f"training data: {len(images)} images, {len(labels)} labels")
    if count == 0:
        return Split((images, labels), None, {})
    if count >= len(images):
        raise DataError(f"training data: {len(images)} images, too few to hold out {count}")
    order = np.arange(len(images))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    kept, held = np.sort(order[:-count]), np.sort(order[-count:])
    card = {"held_out": {"images": count, "drawn": seed is not None, "seed": seed}}
    training, validation = ((subset(images, part), subset(labels, part)) for part in (kept, held))
    return Split(training, validation, card)


def draw_evenly(labels: Array, counts: Sequence[int], seed: int) -> list[np.ndarray]:
    """Draws of so many images each, which share none: indices into labels (n,), ascending.

    Every class has its equal part in each draw, or one image more; of label maps (n, H, W) any are
    drawn. A draw does not depend on the counts after it. DataError where there are too few.

    >>> [draw.tolist() for draw in draw_evenly(np.array([0, 0, 1, 1, 1]), (2, 2), seed=0)]
    [[0, 4], [1, 2]]
    """
    rng = np.random.default_rng(seed)
    maps = len(labels.shape) > 1
    kinds = np.zeros(len(labels), int) if maps else labels
    classes = np.unique(kinds)
    drawn: list[list[np.ndarray]] = [[] for _ in counts]
    for place, label in enumerate(classes):
        order = rng.permutation(np.flatnonzero(kinds == label))
        parts = [count // len(classes) + (place < count % len(classes)) for count in counts]
        if sum(parts) > len(order):
            what = "images" if maps else f"images of class {label}"
            raise DataError(f"training data: {len(order)} {what}, expected {sum(parts)}")
        for draw, part, end in zip(drawn, parts, np.cumsum(parts), strict=True):
            draw.append(order[end - part : end])
    return [np.sort(np.concatenate(parts)) for parts in drawn]
