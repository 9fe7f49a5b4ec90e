"""From one grid to a larger one, and GELU: what a decoder does with whole fields [SPEC 10].

A field is (channels, pitch) float32, the tokens of a channel side by side; see stencils.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.compile import inlined, jit
from refimpl.kernels.twins.gelu import tail_of
from refimpl.kernels.vector import LANES, load, select, splat, store


@jit
def enlarge(source, pitch, at, grid, channels, factor, room, out, out_pitch, out_at, first):
    """Bilinear interpolation to a grid with `factor` times the sides: columns first, then rows.

    The grid begins at `at` of each channel of a field, the larger one at `out_at`. Added to `out`
    unless it is the first term. room: (rows, columns of the larger grid). The end of a row lies
    inside a vector, so these loops are plain: the compiler makes vectors of them.
    """
    rows, columns = grid
    width = columns * factor
    for c in range(channels):
        for j in range(width):
            left, right, nearer, farther = _between(j, columns, factor)
            for i in range(rows):
                row = c * pitch + at + i * columns
                room[i * width + j] = source[row + left] * nearer + source[row + right] * farther
        for i in range(rows * factor):
            above, below, nearer, farther = _between(i, rows, factor)
            here = c * out_pitch + out_at + i * width
            for j in range(width):
                y = room[above * width + j] * nearer + room[below * width + j] * farther
                out[here + j] = y if first else out[here + j] + y


@inlined
def _between(i, inputs, factor):
    """The two inputs around the source of output i, and their shares, each rounded once.

    source(i) = (i + 1/2) / factor - 1/2, here times 2 factor: a whole number.
    """
    unit = 2 * factor
    source = min(max(2 * i + 1 - factor, 0), (inputs - 1) * unit)
    before, rest = source // unit, source % unit
    nearer, farther = np.float32(unit - rest), np.float32(rest)
    return (
        before,
        min(before + 1, inputs - 1),
        nearer / np.float32(unit),
        farther / np.float32(unit),
    )


@jit
def copy(source, out):
    """All of a field, of whole vectors, to where another one begins."""
    for first in range(0, source.size, LANES):
        store(out, first, load(source, first))


@jit
def gelu(x):
    """GELU in place, of whole vectors."""
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    for first in range(0, x.size, LANES):
        v = load(x, first)
        _, _, tail = tail_of(v)
        store(x, first, v * select(v < zero, tail, one - tail))
