"""Patch embedding: a convolution whose kernel is its stride, so a linear map of patches [SPEC 6.3].

The patches lie row by row; inside one, pixels are ordered (channel, row, column), as in the weight.

>>> image = np.arange(8.0).reshape(1, 1, 2, 4)           # two patches of 2 x 2, side by side
>>> weight = np.array([[[[1.0, 10.0], [100.0, 1000.0]]]])
>>> forward(image, weight, np.array([0.5]))[0][0, :, 0]
array([5410.5, 7632.5])
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_shape
from refimpl.ops import linear


class Cache(NamedTuple):
    image_shape: tuple[int, int, int, int]  # (B, channels, H, W)
    weight_shape: tuple[int, int, int, int]  # (C, channels, p, p)
    linear: linear.Cache  # its x are the patches (B, gh*gw, channels*p*p)


def forward(image: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, Cache]:
    """image (B, channels, H, W), weight (C, channels, p, p), bias (C,) -> y (B, gh*gw, C)."""
    float_dtype("patch_embed", image=image, weight=weight, bias=bias)
    require_shape("patch_embed", "weight", weight, (None, None, *2 * weight.shape[-1:]))
    require_shape("patch_embed", "image", image, (None, weight.shape[1], None, None))
    batch, channels, height, width = image.shape
    p = weight.shape[-1]
    if p < 1 or height % p or width % p:
        raise ShapeError(
            f"patch_embed: image has {height} x {width} pixels; expected multiples of {p}"
        )
    # (B, channels, gh, p, gw, p) -> (B, gh, gw, channels, p, p)
    blocks = image.reshape(batch, channels, height // p, p, width // p, p)
    # not -1 for what is known: of an empty batch NumPy would not find it
    patches = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(
        batch, height // p * (width // p), channels * p * p
    )
    y, cache = linear.forward(patches, weight.reshape(weight.shape[0], patches.shape[-1]), bias)
    return y, Cache(image.shape, weight.shape, cache)


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dy (B, gh*gw, C) -> (dimage, dweight, dbias)."""
    batch, channels, height, width = cache.image_shape
    p = cache.weight_shape[-1]
    dpatches, dweight, dbias = linear.backward(dy, cache.linear)
    # (B, gh, gw, channels, p, p) -> (B, channels, gh, p, gw, p)
    blocks = dpatches.reshape(batch, height // p, width // p, channels, p, p)
    dimage = blocks.transpose(0, 3, 1, 4, 2, 5).reshape(cache.image_shape)
    return dimage, dweight.reshape(cache.weight_shape), dbias
