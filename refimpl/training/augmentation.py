"""Augmentation of uint8 images as they were loaded, before preprocessing.

The random numbers come from a generator of the caller: same generator state, same images.

>>> image = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
>>> shift(image, down=np.array([1]), right=np.array([0]))[0].tolist()
[[0, 0], [1, 2]]
"""

from typing import Any

import numpy as np

from refimpl.conventions import IGNORED


def augment(
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    shift: int = 0,
    flip: bool = False,
    crop: float = 1.0,
    background: int | np.ndarray = 0,
) -> np.ndarray:
    """Images (B, H, W) or (B, H, W, c), flipped at random, shifted and cut, as a recipe says."""
    if flip:
        images = random_flip(images, rng)
    return random_crop(random_shift(images, shift, rng, background), crop, rng)


def augment_with_labels(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """`augment` of images (B, H, W) or (B, H, W, 3) and of their uint8 labels (B, H, W) alike.

    The labels are one channel more, so they go where their pixels go; what comes in from outside
    is IGNORED.
    """
    channels = images.reshape(*images.shape[:3], -1)
    background = np.array([0] * channels.shape[-1] + [IGNORED], np.uint8)
    together = np.concatenate([channels, labels[..., None]], axis=-1)
    together = augment(together, rng, background=background, **options)
    shape = (*together.shape[:3], *images.shape[3:])
    return together[..., :-1].reshape(shape), together[..., -1]


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror every image, left for right, or leave it: (B, H, W) or (B, H, W, 3), a new array."""
    flipped = images.copy()
    mirrored = rng.random(len(images)) < 0.5
    flipped[mirrored] = images[mirrored, :, ::-1]
    return flipped


def shift(
    images: np.ndarray, down: np.ndarray, right: np.ndarray, background: int | np.ndarray = 0
) -> np.ndarray:
    """Move image b by `down[b]` rows and `right[b]` columns (negative: up, left).

    images (B, H, W) or (B, H, W, 3) of any dtype; down, right (B,) integers.
    Pixels that come in from outside are `background`, one number or one a channel. Returns a new
    array like images.
    """
    count, height, width = images.shape[:3]
    source_row = np.arange(height) - down[:, None]  # (B, H)
    source_column = np.arange(width) - right[:, None]  # (B, W)
    moved = images[
        np.arange(count)[:, None, None],
        np.clip(source_row, 0, height - 1)[:, :, None],
        np.clip(source_column, 0, width - 1)[:, None, :],
    ]
    row_inside = (source_row >= 0) & (source_row < height)
    column_inside = (source_column >= 0) & (source_column < width)
    moved[~(row_inside[:, :, None] & column_inside[:, None, :])] = background
    return moved


def random_shift(
    images: np.ndarray,
    most: int,
    rng: np.random.Generator,
    background: int | np.ndarray = 0,
) -> np.ndarray:
    """Shift every image by its own random -most..most pixels, down and right independently.

    images (B, H, W) or (B, H, W, 3); with `most` 0 they are returned as they are.
    """
    if most == 0:
        return images
    down, right = rng.integers(-most, most, size=(2, len(images)), endpoint=True)
    return shift(images, down, right, background)


def random_crop(images: np.ndarray, part: float, rng: np.random.Generator) -> np.ndarray:
    """Cut a window with this part of both sides out of every image, each at its own random place.

    images (B, H, W) or (B, H, W, c) -> (B, h, w) or (B, h, w, c), sides rounded, at least 1; with
    `part` 1 they are returned as they are.
    """
    if part == 1:
        return images
    count, height, width = images.shape[:3]
    h, w = (max(1, round(part * side)) for side in (height, width))
    row = rng.integers(height - h, size=(count, 1), endpoint=True) + np.arange(h)  # (B, h)
    column = rng.integers(width - w, size=(count, 1), endpoint=True) + np.arange(w)
    return images[np.arange(count)[:, None, None], row[:, :, None], column[:, None, :]]
