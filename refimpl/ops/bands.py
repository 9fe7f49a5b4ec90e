"""Low and high Haar band of the tokens on their patch grid [SPEC 4, 6.2, R3, R4].

    low = cA        high = (cH + cV) + cD        of swt2(x, mode, norm="average"), each channel

so low + high = x up to rounding (never computed as x - low). The class token is not on the grid:
both bands get it unchanged (cls="both"), or the low one gets it and the high one 0 (cls="low").
mode="none" is a control for ablations: no transform, low = high = x on the grid. A network then
has the parameters of the bands without the bands.

>>> x = np.array([[[5.0], [0.0], [4.0]]])                # a class token and a grid of 1 x 2
>>> (low, high), _ = forward(x, grid=(1, 2))
>>> low[0, :, 0], high[0, :, 0]
(array([5., 2., 4.]), array([ 5., -2.,  0.]))
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from refimpl.conventions import float_dtype, require_choice
from refimpl.ops import _grid, haar

MODES = (*haar.MODES, "none")
CLS = ("both", "low")


class Cache(NamedTuple):
    grid: tuple[int, int]  # gh, gw
    mode: str
    cls: str


def forward(
    x: np.ndarray, grid: tuple[int, int], mode: str = "edge", cls: str = "both"
) -> tuple[tuple[np.ndarray, np.ndarray], Cache]:
    """x (B, N, C), N = gh*gw or 1 + gh*gw (class token first) -> (low, high), both like x."""
    float_dtype("bands", x=x)
    require_choice("bands", "mode", mode, MODES)
    require_choice("bands", "cls", cls, CLS)
    first = _grid.class_tokens("bands", x, grid)
    low, high = x.copy(), x.copy()
    if mode != "none":
        cA, (cH, cV, cD) = haar.swt2(_image(x, first, grid), mode, norm="average")
        _image(low, first, grid)[:] = cA
        _image(high, first, grid)[:] = (cH + cV) + cD
    if cls == "low":
        high[:, :first] = 0
    return (low, high), Cache(grid, mode, cls)


def backward(dy: tuple[np.ndarray, np.ndarray], cache: Cache) -> tuple[np.ndarray]:
    """dy = (dlow, dhigh), each (B, N, C) -> (dx (B, N, C),)."""
    dlow, dhigh = dy
    grid, mode, cls = cache
    first = _grid.class_tokens("bands", dlow, grid)
    dx = dlow + dhigh
    if mode != "none":
        # forward was high = (cH + cV) + cD: each detail gets the whole gradient
        ddetail = _image(dhigh, first, grid)
        dcoeffs = _image(dlow, first, grid), (ddetail, ddetail, ddetail)
        _image(dx, first, grid)[:] = haar.swt2_backward(dcoeffs, mode, norm="average")
    if cls == "low":
        dx[:, :first] = dlow[:, :first]
    return (dx,)


def _image(x: np.ndarray, first: int, grid: tuple[int, int]) -> np.ndarray:
    """The patch tokens of x (B, N, C) as a view (B, C, gh, gw): Haar acts on the last two axes."""
    return _grid.patches(x, first, grid).transpose(0, 3, 1, 2)
