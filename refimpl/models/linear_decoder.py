"""From tokens to the logits of every pixel: the linear decoder [SPEC 10].

token  = head(x), of every patch token
logits = token on the patch grid, enlarged bilinearly to the image

With decoder="fpn" it is the end of the pyramid: x are the tokens that this one made of all stages.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.conventions import require_shape
from refimpl.models.config import Config
from refimpl.models.params import Params
from refimpl.models.run import Run, pick

PYRAMID = "decoder.gelu.out"  # the tap of the tokens that decoder="fpn" made


class Cache(NamedTuple):
    head: ops.linear.Cache
    interpolate: ops.interpolate.Cache


def forward(params: Params, x: np.ndarray, run: Run) -> tuple[np.ndarray, Cache]:
    """params of the head, x (B, N, C), the tap of `_source` -> logits (B, classes, H, W)."""
    config, backend, tap, _ = run
    token, head_cache = backend.linear.forward(x[:, config.first_patch :], **params)
    logits, interpolate_cache = backend.interpolate.forward(
        on_grid(token, config.decoded_stage.grid), config.image_size, "bilinear"
    )
    if tap is not None:
        first = config.first_patch
        tap("head.out", token, lambda x: ops.linear.forward(x[:, first:], **params)[0],
            [_source(config)])  # fmt: skip
        tap("logits", logits, lambda token: enlarge(token, config), ["head.out"])
    return logits, Cache(head_cache, interpolate_cache)


def backward(
    dlogits: np.ndarray, params: Params, cache: Cache, run: Run
) -> tuple[np.ndarray, Params]:
    """dlogits (B, classes, H, W) -> (dx (B, N, C), gradients of the head's params)."""
    config, backend, tap, _ = run
    require_shape("backward", "dlogits", dlogits, (len(cache.head.x), *config.logits_shape))
    (dimage,) = backend.interpolate.backward(dlogits, cache.interpolate)
    dtoken = off_grid(dimage)
    dpatches, dweight, dbias = backend.linear.backward(dtoken, cache.head)
    dx = _with_class_token(dpatches, config)
    grads = {"weight": dweight, "bias": dbias}
    if tap is not None:
        _tap_backward(params, dlogits, dtoken, dx, grads, run)
    return dx, grads


def on_grid(token: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(B, gh*gw, C) -> (B, C, gh, gw)."""
    batch, _, channels = token.shape
    return token.swapaxes(1, 2).reshape(batch, channels, *grid)


def off_grid(image: np.ndarray) -> np.ndarray:
    """(B, C, gh, gw) -> (B, gh*gw, C), the inverse."""
    batch, channels, height, width = image.shape
    return image.reshape(batch, channels, height * width).swapaxes(1, 2)


def enlarge(token: np.ndarray, config: Config) -> np.ndarray:
    """(B, gh*gw, classes) -> (B, classes, H, W)."""
    image = on_grid(token, config.decoded_stage.grid)
    return ops.interpolate.forward(image, config.image_size, "bilinear")[0]


def enlarge_backward(dlogits: np.ndarray, config: Config) -> np.ndarray:
    """(B, classes, H, W) -> (B, gh*gw, classes)."""
    grid = np.empty(
        (*dlogits.shape[:2], *config.decoded_stage.grid), dlogits.dtype
    )  # its size alone is read
    _, cache = ops.interpolate.forward(grid, config.image_size, "bilinear")
    return off_grid(ops.interpolate.backward(dlogits, cache)[0])


def _source(config: Config) -> str:
    """The tap that the head reads."""
    return PYRAMID if config.decoder == "fpn" else "norm.out"


def _with_class_token(dpatches: np.ndarray, config: Config) -> np.ndarray:
    """(B, gh*gw, C) -> (B, N, C): nobody decodes the class token."""
    if config.first_patch == 0:
        return dpatches
    return np.concatenate([np.zeros_like(dpatches[:, :1]), dpatches], axis=1)


def _tap_backward(params: Params, dlogits, dtoken, dx, grads: Params, run: Run) -> None:
    config, tap = run.config, run.tap

    def head(dtoken, x):
        patches = x[:, config.first_patch :]
        return ops.linear.backward(dtoken, ops.linear.forward(patches, **params)[1])

    def dx_of(dtoken, x):
        return _with_class_token(head(dtoken, x)[0], config)

    tap("grads/logits", dlogits, None, [])
    tap("grads/head.out", dtoken, lambda dlogits: enlarge_backward(dlogits, config),
        ["grads/logits"])  # fmt: skip
    read = ["grads/head.out", _source(config)]
    for i, leaf in enumerate(("weight", "bias")):
        tap(f"grads/param.head.{leaf}", grads[leaf], pick(head, i + 1), read)
    tap(f"grads/{_source(config)}", dx, dx_of, read)
