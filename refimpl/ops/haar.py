"""Haar transforms on the last two axes, rows and columns [SPEC 4].

On a block [[x00, x01], [x10, x11]], times 1/2 (norm="ortho") or 1/4 (norm="average"):

    cA = (x00 + x01) + (x10 + x11)      the low band
    cH = (x00 + x01) - (x10 + x11)      difference of rows: answers to horizontal edges
    cV = (x00 - x01) + (x10 - x11)      difference of columns: answers to vertical edges
    cD = (x00 - x01) - (x10 - x11)

Coefficients are `(cA, (cH, cV, cD))`, PyWavelets' order and names. The maps are linear: they have
no cache, and each backward is the adjoint, a function of the gradient alone.

>>> _, (cH, cV, cD) = dwt2(np.array([[1.0, 1.0], [0.0, 0.0]]))        # a horizontal edge
>>> cH.item(), cV.item(), cD.item()
(1.0, 0.0, 0.0)
"""

from __future__ import annotations

import numpy as np

from refimpl.conventions import ShapeError, float_dtype, require_choice, require_shape

MODES = ("edge", "periodic")
FACTORS = {"ortho": 0.5, "average": 0.25}  # powers of two: scaling never rounds

Coefficients = tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]


def swt2(x: np.ndarray, mode: str = "edge", norm: str = "average") -> Coefficients:
    """Undecimated: x (..., H, W) -> four bands (..., H, W).

    The block at (i, j) is rows i, i+1 and columns j, j+1; past the end mode="edge" repeats the
    last row and column and "periodic" wraps (then it equals pywt.swt2 at level 1).
    """
    factor = _check_options("swt2", mode, norm)
    _check_image("swt2", x)
    right = _next(x, -1, mode)
    sums, differences = x + right, x - right  # of columns
    sums_below, differences_below = _next(sums, -2, mode), _next(differences, -2, mode)
    return (sums + sums_below) * factor, (
        (sums - sums_below) * factor,
        (differences + differences_below) * factor,
        (differences - differences_below) * factor,
    )


def swt2_backward(dcoeffs: Coefficients, mode: str = "edge", norm: str = "average") -> np.ndarray:
    """Adjoint of swt2: gradients of the four bands (..., H, W) -> dx (..., H, W)."""
    factor = _check_options("swt2_backward", mode, norm)
    _check_bands("swt2_backward", dcoeffs)
    dA, (dH, dV, dD) = dcoeffs
    # forward was cA, cH = sums +- next_row(sums) and cV, cD = differences +- next_row(differences)
    dsums = (dA + dH) + _next_adjoint(dA - dH, -2, mode)
    ddifferences = (dV + dD) + _next_adjoint(dV - dD, -2, mode)
    # forward was sums, differences = x +- next_column(x)
    dx = (dsums + ddifferences) + _next_adjoint(dsums - ddifferences, -1, mode)
    return dx * factor


def iswt2(coeffs: Coefficients, norm: str = "average") -> np.ndarray:
    """Rebuild x (..., H, W): cA + cH + cV + cD for "average", half of it for "ortho"."""
    factor = _check_options("iswt2", "edge", norm)
    cA, (cH, cV, cD) = coeffs
    _check_bands("iswt2", coeffs)
    return (((cA + cH) + cV) + cD) * (0.25 / factor)


def iswt2_backward(dx: np.ndarray, norm: str = "average") -> Coefficients:
    """Adjoint of iswt2: dx (..., H, W) -> gradients of the four bands, all alike."""
    factor = _check_options("iswt2_backward", "edge", norm)
    dband = dx * (0.25 / factor)
    return dband, (dband.copy(), dband.copy(), dband.copy())


def dwt2(x: np.ndarray) -> Coefficients:
    """Decimated, orthonormal: x (..., H, W), H and W even -> four bands (..., H/2, W/2)."""
    _check_image("dwt2", x)
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ShapeError(f"dwt2: x has {x.shape[-2]} x {x.shape[-1]} pixels; expected even sizes")
    x00, x01 = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    x10, x11 = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    top, bottom = x00 + x01, x10 + x11
    top_difference, bottom_difference = x00 - x01, x10 - x11
    return (top + bottom) * 0.5, (
        (top - bottom) * 0.5,
        (top_difference + bottom_difference) * 0.5,
        (top_difference - bottom_difference) * 0.5,
    )


def dwt2_backward(dcoeffs: Coefficients) -> np.ndarray:
    """Adjoint of dwt2, which is orthonormal: its adjoint is its inverse."""
    return idwt2(dcoeffs)


def idwt2(coeffs: Coefficients) -> np.ndarray:
    """Inverse of dwt2: four bands (..., H/2, W/2) -> x (..., H, W)."""
    cA, (cH, cV, cD) = coeffs
    dtype = _check_bands("idwt2", coeffs)
    top, bottom = cA + cH, cA - cH  # x00 + x01, x10 + x11
    top_difference, bottom_difference = cV + cD, cV - cD  # x00 - x01, x10 - x11
    x = np.empty((*cA.shape[:-2], 2 * cA.shape[-2], 2 * cA.shape[-1]), dtype)
    x[..., 0::2, 0::2] = (top + top_difference) * 0.5
    x[..., 0::2, 1::2] = (top - top_difference) * 0.5
    x[..., 1::2, 0::2] = (bottom + bottom_difference) * 0.5
    x[..., 1::2, 1::2] = (bottom - bottom_difference) * 0.5
    return x


def idwt2_backward(dx: np.ndarray) -> Coefficients:
    """Adjoint of idwt2, which is orthonormal: its adjoint is dwt2."""
    return dwt2(dx)


def _next(x: np.ndarray, axis: int, mode: str) -> np.ndarray:
    """The neighbour at index i + 1; past the end the last one ("edge") or the first."""
    head = [slice(None)] * x.ndim
    body, head[axis] = list(head), slice(-1, None) if mode == "edge" else slice(0, 1)
    body[axis] = slice(1, None)
    return np.concatenate([x[tuple(body)], x[tuple(head)]], axis=axis)


def _next_adjoint(dy: np.ndarray, axis: int, mode: str) -> np.ndarray:
    """Adjoint of _next: the gradient at i goes to i + 1, the last one where _next took it from."""
    if mode == "periodic":
        return np.roll(dy, 1, axis)
    d = np.moveaxis(dy, axis, 0)
    dx = np.zeros_like(d)
    dx[1:] = d[:-1]
    dx[-1] += d[-1]
    return np.moveaxis(dx, 0, axis)


def _check_options(op: str, mode: str, norm: str) -> float:
    require_choice(op, "mode", mode, MODES)
    require_choice(op, "norm", norm, tuple(FACTORS))
    return FACTORS[norm]


def _check_image(op: str, x: np.ndarray) -> None:
    float_dtype(op, x=x)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ShapeError(f"{op}: x has shape {x.shape}; expected rows and columns, at least one")


def _check_bands(op: str, coeffs: Coefficients) -> np.dtype:
    cA, (cH, cV, cD) = coeffs
    _check_image(op, cA)
    for name, band in (("cH", cH), ("cV", cV), ("cD", cD)):
        require_shape(op, name, band, cA.shape)
    return float_dtype(op, cA=cA, cH=cH, cV=cV, cD=cD)
