"""What a run needs: all that can be known before its first step, so that nothing fails after it.

>>> from refimpl.models import create_model
>>> _check_classes(create_model("didb_micro"), ["odd", "even"])
Traceback (most recent call last):
    ...
refimpl.conventions.ConfigError: the model has 10 classes, the data has 2: create the model with \
num_classes=2
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refimpl.conventions import IGNORED, ConfigError, DataError
from refimpl.data.image_folder import Array, in_batches, require_array, slices
from refimpl.machine import memory
from refimpl.models import VisionTransformer
from refimpl.models.params import shapes
from refimpl.models.summary import value_bytes
from refimpl.training.batches import FLOAT, Prepare, parts
from refimpl.training.recipes import Recipe

MOST = 2**29  # bytes of the images of a batch, before they are cut
BYTES = 16  # of a parameter at least: itself, its gradient, and two means of the optimizer
TRAINING, VALIDATION = "training data", "validation data"


def check(
    model: VisionTransformer,
    recipe: Recipe,
    images: Array,
    labels: Array,
    class_names: Sequence[str],
    prepare: Prepare,
    threads: int,
    validation: tuple[Array, Array] | None,
) -> None:
    """Raise ConfigError or DataError where model, recipe and data do not fit together."""
    given = {TRAINING: (images, labels)} | ({VALIDATION: validation} if validation else {})
    for what, pair in given.items():
        _check_shapes(model, what, *pair)
    _check_memory(model, recipe, images, threads)
    _check_classes(model, class_names)
    check_recipe(model, recipe, images.shape[1:3])
    expected = (model.config.channels, *model.config.image_size)
    for what, (some, _) in given.items():
        found = prepare(some[:1]).shape[1:]
        if found != expected:
            raise DataError(
                f"{what}: images are {found} (channels, H, W) after preprocessing, "
                f"the model reads {expected}"
            )


def check_recipe(model: VisionTransformer, recipe: Recipe, size: tuple[int, int]) -> None:
    """ConfigError where a recipe asks for what images of a size (H, W), or a model, cannot do."""
    if recipe.shift >= min(size):
        raise ConfigError(
            f"recipe: shift is {recipe.shift} pixels, expected fewer than the images have: "
            f"{size[0]} x {size[1]}"
        )
    if model.config.task == "segmentation" and recipe.distillation > 0:
        raise ConfigError(
            f"recipe: distillation is {recipe.distillation}, expected 0.0: "
            "there is no distillation for a segmenter"
        )


def check_labels(
    model: VisionTransformer,
    recipe: Recipe,
    labels: Array,
    seen: Callable[[int], Any],
    what: str,
) -> None:
    """DataError for a label that the model has no class for; `what` are the data.

    Reads them all, some at a time, and calls `seen` with how many these were.
    """
    low, high = np.inf, -np.inf
    for some in in_batches(labels, slices(len(labels), min(recipe.batch_size, 100))):
        seen(len(some))
        given = some if some.ndim == 1 else some[some != IGNORED]
        if given.size:
            low, high = min(low, given.min()), max(high, given.max())
    if low > high:
        raise DataError(f"{what}: no pixel has a label, expected at least one")
    if low < 0 or high >= model.config.num_classes:
        raise DataError(
            f"{what}: labels run from {low} to {high}, expected 0 to {model.config.num_classes - 1}"
        )


def _check_memory(model: VisionTransformer, recipe: Recipe, images: Array, threads: int) -> None:
    needed = BYTES * sum(math.prod(shape) for shape in shapes(model.config).values())
    _require_memory("the parameters, their gradients and the optimizer take", needed)
    batch = min(recipe.batch_size, max(len(images), 1))
    count = parts(model.network, batch, recipe.shards)
    at_once = min(threads, count) * -(-batch // count)
    needed = at_once * value_bytes(model.network, FLOAT)  # of which backward keeps four fifths
    _require_memory(f"the values of {at_once:,} images at once take", needed)
    pixels = batch * math.prod(images.shape[1:])
    if pixels > MOST:
        size = " x ".join(map(str, images.shape[1:3]))
        raise ConfigError(
            f"recipe: batch_size is {recipe.batch_size}: images of {size} take {pixels:,} bytes a "
            f"batch; expected at most {MOST:,}"
        )


def _require_memory(what: str, needed: int) -> None:
    if needed > memory():
        raise ConfigError(
            f"{what} {needed / 1e9:,.0f} GB; "
            f"expected a model that fits into the {memory() / 1e9:,.0f} GB of this machine"
        )


def _check_classes(model: VisionTransformer, class_names: Sequence[str]) -> None:
    classes = model.config.num_classes
    if len(class_names) != classes:
        raise ConfigError(
            f"the model has {classes} classes, the data has {len(class_names)}: "
            f"create the model with num_classes={len(class_names)}"
        )


def _check_shapes(model: VisionTransformer, what: str, images: Array, labels: Array) -> None:
    require_array(f"{what}: images", images)
    require_array(f"{what}: labels", labels)
    if len(images) == 0 or len(images) != len(labels):
        raise DataError(
            f"{what}: {len(images)} images and {len(labels)} labels, "
            "expected as many labels as images and at least one"
        )
    if len(images.shape) not in (3, 4):
        raise DataError(
            f"{what}: images are {images.shape}, expected (n, H, W) or (n, H, W, 3), uint8"
        )
    maps, size = model.config.task == "segmentation", images.shape[1:3]
    if labels.shape[1:] != (size if maps else ()):
        wanted = f"a map of {size[0]} x {size[1]} an image" if maps else "one an image"
        raise DataError(f"{what}: labels are {labels.shape}, expected {wanted}")
    dtype = getattr(labels, "dtype", np.dtype(np.uint8))  # files of maps are read as uint8
    if (maps and dtype != np.uint8) or dtype.kind not in "iu":
        raise DataError(f"{what}: labels are {dtype}, expected {'uint8' if maps else 'integers'}")
