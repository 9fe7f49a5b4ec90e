"""Augmentation of uint8 images as they were loaded, before preprocessing.

The random numbers come from a generator of the caller: same generator state, same images.

>>> image = np.array([[[1, 2], [3, 4]]], dtype=np.uint8)
>>> shift(image, down=np.array([1]), right=np.array([0]))[0].tolist()
[[0, 0], [1, 2]]
"""

import numpy as np


def augment(
    images: np.ndarray, rng: np.random.Generator, *, shift: int = 0, flip: bool = False
) -> np.ndarray:
    """Images (B, H, W) or (B, H, W, 3), flipped at random and then shifted, as a recipe says."""
    if flip:
        images = random_flip(images, rng)
    return random_shift(images, shift, rng)


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror every image, left for right, or leave it: (B, H, W) or (B, H, W, 3), a new array."""
    flipped = images.copy()
    mirrored = rng.random(len(images)) < 0.5
    flipped[mirrored] = images[mirrored, :, ::-1]
    return flipped


def shift(
    images: np.ndarray, down: np.ndarray, right: np.ndarray, background: int = 0
) -> np.ndarray:
    """Move image b by `down[b]` rows and `right[b]` columns (negative: up, left).

    images (B, H, W) or (B, H, W, 3) of any dtype; down, right (B,) integers.
    Pixels that come in from outside are `background`. Returns a new array like images.
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
    images: np.ndarray, most: int, rng: np.random.Generator, background: int = 0
) -> np.ndarray:
    """Shift every image by its own random -most..most pixels, down and right independently.

    images (B, H, W) or (B, H, W, 3); with `most` 0 they are returned as they are.
    """
    if most == 0:
        return images
    down, right = rng.integers(-most, most, size=(2, len(images)), endpoint=True)
    return shift(images, down, right, background)
