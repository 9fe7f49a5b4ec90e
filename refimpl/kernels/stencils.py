"""What looks at neighbours on the grid: Haar bands, the differential term, a convolution's input.

[SPEC 4, 6.2, 10]

The source is a field: (channels, pitch) float32, the tokens of a channel side by side with a margin
of zeros on both sides, so that a tile's neighbours in any direction are one load away. Which
neighbours exist is a mask a direction and token, from `masks`.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.vector import LANES, broadcast, fma, load, select, splat, store

# In the order in which the neighbour mean adds them; (0, 1), (1, 0) and (1, 1) are Haar's.
OFFSETS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
RIGHT, BELOW = OFFSETS.index((0, 1)), OFFSETS.index((1, 0))
GRID = len(OFFSETS)  # the row of the mask of tokens that are on the grid at all
MIDDLE = GRID // 2  # where the token itself stands among its 3 x 3, row by row


def margin(width: int) -> int:
    """Zeros on each side of a field's channel: as far as a diagonal neighbour, in whole tiles."""
    return -(-(width + 1) // LANES) * LANES


def masks(grid: tuple[int, int], first: int, lanes: int) -> np.ndarray:
    """(9, lanes) int32, 1 where a token has the neighbour; the last row: is it on the grid.

    The grid begins at token `first`; lanes is the number of tokens in whole tiles.
    """
    height, width = grid
    found = np.zeros((GRID + 1, lanes), np.int32)
    patches = found[:, first : first + height * width].reshape(-1, height, width)
    for row, (i, j) in zip(patches, OFFSETS, strict=False):
        row[max(-i, 0) : height - max(i, 0), max(-j, 0) : width - max(j, 0)] = 1
    patches[GRID] = 1
    return found


def counts(grid: tuple[int, int], first: int, lanes: int, border: str) -> np.ndarray:
    """(lanes,) float32: what the sum of a token's neighbours is divided by; never 0."""
    if border == "eight":
        return np.full(lanes, 8, np.float32)
    return np.maximum(masks(grid, first, lanes)[:GRID].sum(axis=0), 1).astype(np.float32)


@inlined
def _mask(masks, row, lanes, token):
    return load(masks, row * lanes + token) > splat(np.int32(0))


@jit
def bands(field, pitch, at, channels, masks, lanes, token, width, high_cls, low, high):
    """Low and high Haar band of a tile, edge mode; the tile's first token is at `at` + token.

    A token without neighbours, as the class token, is its own low band.
    """
    zero, quarter = splat(np.float32(0)), splat(np.float32(0.25))
    right, below = _mask(masks, RIGHT, lanes, token), _mask(masks, BELOW, lanes, token)
    on_grid = _mask(masks, GRID, lanes, token)
    for c in range(channels):
        here = c * pitch + at + token
        x00, under = load(field, here), load(field, here + width)
        x01 = select(right, load(field, here + 1), x00)
        x10 = select(below, under, x00)
        x11 = select(below, select(right, load(field, here + width + 1), under), x01)
        top, bottom = x00 + x01, x10 + x11
        left, left_below = x00 - x01, x10 - x11  # differences of columns
        # cH + cV + cD: a quarter of each is taken at the end, which rounds nothing
        details = ((top - bottom) + (left + left_below)) + (left - left_below)
        cls = x00 if high_cls else zero
        store(low, c * LANES, (top + bottom) * quarter)
        store(high, c * LANES, select(on_grid, details * quarter, cls))


@jit
def periodic_bands(field, pitch, at, channels, first, grid, tokens, token, high_cls, low, high):
    """`bands` in periodic mode, token by token: the other side of the grid is no load away."""
    height, width = grid
    quarter = np.float32(0.25)
    for c in range(channels):
        start = c * pitch + at
        for lane in range(LANES):
            n = token + lane - first
            x00 = field[start + token + lane]
            if n < 0 or token + lane >= tokens:
                low[c * LANES + lane] = x00
                high[c * LANES + lane] = x00 if high_cls else np.float32(0)
                continue
            i, j = n // width, n % width
            row, next_row = start + first + i * width, start + first + (i + 1) % height * width
            x01, x10 = field[row + (j + 1) % width], field[next_row + j]
            x11 = field[next_row + (j + 1) % width]
            top, bottom = x00 + x01, x10 + x11
            left, left_below = x00 - x01, x10 - x11
            rows = (top - bottom) * quarter
            columns, diagonal = (left + left_below) * quarter, (left - left_below) * quarter
            low[c * LANES + lane] = (top + bottom) * quarter
            high[c * LANES + lane] = (rows + columns) + diagonal


@jit
def differential(
    field, pitch, at, channels, masks, counts, lanes, token, width, floats, weights, mean, out
):
    """out = lam_s * value - lam_n * mean of the eight neighbours, a tile, and that mean.

    The mean is 0 for the class token. lam_s and -lam_n of a channel lie side by side in `floats`.
    """
    share = splat(np.float32(1)) / load(counts, token)
    m0, m1 = _mask(masks, 0, lanes, token), _mask(masks, 1, lanes, token)
    m2, m3 = _mask(masks, 2, lanes, token), _mask(masks, 3, lanes, token)
    m4, m5 = _mask(masks, 4, lanes, token), _mask(masks, 5, lanes, token)
    m6, m7 = _mask(masks, 6, lanes, token), _mask(masks, 7, lanes, token)
    for c in range(channels):
        here = c * pitch + at + token
        above, below = here - width, here + width
        total = select(m0, load(field, above - 1), splat(np.float32(0)))
        total = select(m1, total + load(field, above), total)
        total = select(m2, total + load(field, above + 1), total)
        total = select(m3, total + load(field, here - 1), total)
        total = select(m4, total + load(field, here + 1), total)
        total = select(m5, total + load(field, below - 1), total)
        total = select(m6, total + load(field, below), total)
        total = select(m7, total + load(field, below + 1), total)
        around = total * share
        store(mean, c * LANES, around)
        kept = load(field, here) * broadcast(floats, weights + 2 * c)
        store(out, c * LANES, fma(around, broadcast(floats, weights + 2 * c + 1), kept))


@jit
def around(field, pitch, at, channels, masks, lanes, token, width, out):
    """The 3 x 3 tokens around each of a tile, row by row, (9 channels, 16); 0 beyond the grid."""
    zero = splat(np.float32(0))
    for place in range(GRID + 1):
        row = GRID if place == MIDDLE else place - (place > MIDDLE)
        exists = _mask(masks, row, lanes, token)
        there = at + token + (place // 3 - 1) * width + place % 3 - 1
        for c in range(channels):
            seen = select(exists, load(field, c * pitch + there), zero)
            store(out, (place * channels + c) * LANES, seen)
