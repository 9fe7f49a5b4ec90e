"""The real product, of the first layer, the last and a pyramid: sixteen rows times sixteen lanes.

Products are added one after the other in the order of the reduction, by a fused multiply-add that
is asked for, so the sums are the same on every CPU that has it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refimpl.kernels.compile import jit
from refimpl.kernels.stencils import GRID
from refimpl.kernels.vector import (
    LANES,
    WIDE,
    broadcast,
    compiled_as,
    fma,
    fused,
    gather,
    load,
    pointer,
    select,
    splat,
    spread,
    store,
)

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
TOGETHER = 2  # tiles that `embed` makes at once
PIECE = 192  # inputs of these, and of as many rows of a weight, lie in 36 KB


def blocked(weight: np.ndarray) -> np.ndarray:
    """(O, I) -> (blocks, I, 16): sixteen rows side by side, the last block filled up with 0."""
    outputs, inputs = weight.shape
    padded = np.zeros((-(-outputs // LANES) * LANES, inputs), np.float32)
    padded[:outputs] = weight
    return np.ascontiguousarray(padded.reshape(-1, LANES, inputs).swapaxes(1, 2))


def _dot(tiles: int):
    """The generator of a product of so many tiles."""

    def typed(typing, x, x_at, across, w, w_at, length, out, out_at, out_across):
        index = types.intp
        result = types.none(x, index, index, w, index, index, out, index, index)

        def generate(context, builder, signature, values):
            x, x_at, across, w, w_at, length, out, out_at, out_across = values
            starts, places = (
                [
                    pointer(context, builder, signature.args[place], array, _after(builder, *at, i))
                    for i in range(tiles)
                ]
                for place, array, at in ((0, x, (x_at, across)), (6, out, (out_at, out_across)))
            )
            w = pointer(context, builder, signature.args[3], w, w_at)
            for some, rows in _at_once(tiles):
                _sums_of(builder, starts[some], w, length, places[some], rows)
            return context.get_dummy_value()

        return result, generate

    return typed


def _at_once(tiles: int) -> Iterator[tuple[slice, range]]:
    """Tiles and rows, of sixteen, for whose sums, values and a weight there are registers."""
    if WIDE:
        step = LANES // tiles
        for first in range(0, LANES, step):
            yield slice(tiles), range(first, first + step)
    else:
        for tile in range(tiles):
            for rows in (range(6), range(6, 11), range(11, LANES)):
                yield slice(tile, tile + 1), rows


def _sums_of(builder, starts, w, length, places, rows: range) -> None:
    """Some rows' sums of each tile, in registers until the last product."""
    sums = []
    for place in places:
        for row in rows:
            at = _vector_at(builder, place, length.type(row * LANES))
            sums.append((at, cgutils.alloca_once_value(builder, builder.load(at, align=4))))
    with cgutils.for_range(builder, length) as loop:
        first = builder.mul(loop.index, ir.Constant(length.type, LANES))
        lanes = [builder.load(_vector_at(builder, start, first), align=4) for start in starts]
        for i, row in enumerate(rows):
            place = builder.gep(w, [builder.add(first, ir.Constant(length.type, row))])
            number = spread(builder, builder.load(place))
            for tile, values in enumerate(lanes):
                _, total = sums[tile * len(rows) + i]
                builder.store(fused(builder, values, number, builder.load(total)), total)
    for at, total in sums:
        builder.store(builder.load(total), at, align=4)


def _after(builder, at, across, tile: int):
    return builder.add(at, builder.mul(across, ir.Constant(across.type, tile)))


def _vector_at(builder, base, at):
    return builder.bitcast(builder.gep(base, [at]), _FLOATS.as_pointer())


def _function(tiles: int):
    """A product of so many tiles as a function: compiled, or where nothing is compiled in NumPy.

    out (16, 16) += x[k, lane] * w[k, row], one k after the other; places are flat indices. The
    second tile's x and out begin `across` and `out_across` behind the first one's.
    """

    @compiled_as(_dot(tiles))
    def dot(x, x_at, across, w, w_at, length, out, out_at, out_across):
        for tile in range(tiles):
            begin = out_at + tile * out_across
            sums = out.reshape(-1)[begin : begin + LANES * LANES].reshape(LANES, LANES)
            for k in range(length):
                lanes = load(x, x_at + tile * across + k * LANES)
                for row in range(LANES):
                    sums[row] = fma(lanes, broadcast(w, w_at + k * LANES + row), sums[row])

    return dot


dot, dot_of_two = _function(1), _function(TOGETHER)


def corners(grid: tuple[int, int], first: int, lanes: int, size: int) -> np.ndarray:
    """(lanes,) int32: the flat index of each token's first pixel in a plane, -1 without a patch."""
    height, width = grid
    found = np.full(lanes, -1, np.int32)
    rows, columns = np.divmod(np.arange(height * width), width)
    found[first : first + height * width] = (rows * width * size + columns) * size
    return found


@jit
def patches(image, corners, token, size, out, out_at):
    """Pixels of sixteen patches from `token` on, (channels * size * size, 16); 0 without a patch.

    image (channels, H, W); see `corners`.
    """
    zero, places = splat(np.int32(0)), load(corners, token)
    off_grid = zero > places
    places = select(off_grid, zero, places)
    channels, height, width = image.shape
    pixels, k = image.reshape(-1), out_at
    for channel in range(channels):
        for y in range(size):
            row = (channel * height + y) * width
            for x in range(row, row + size):
                pixel = gather(pixels, places + splat(np.int32(x)))
                store(out, k, select(off_grid, splat(np.float32(0)), pixel))
                k += LANES


@jit
def embed(pixels, inputs, tiles, weight, outputs, floats, bias, sums, out, out_at):
    """weight . pixels + bias of one tile or two.

    pixels (tiles, inputs, 16) -> out (tiles, outputs, 16);
    sums (tiles, outputs in whole sixteens, 16) is room. A piece of the inputs at a time, which for
    all rows of the weight stays in the nearest cache.
    """
    room = -(-outputs // LANES) * LANES * LANES
    for i in range(tiles * room // LANES):
        store(sums, i * LANES, splat(np.float32(0)))
    for begin in range(0, inputs, PIECE):
        length, at = min(PIECE, inputs - begin), begin * LANES
        for first in range(0, outputs, LANES):
            rows, place, across = first * inputs + at, first * LANES, inputs * LANES
            if tiles == TOGETHER:
                dot_of_two(pixels, at, across, weight, rows, length, sums, place, room)
            else:
                dot(pixels, at, across, weight, rows, length, sums, place, room)
    for tile in range(tiles):
        for o in range(outputs):
            y = load(sums, tile * room + o * LANES) + broadcast(floats, bias + o)
            store(out, out_at + (tile * outputs + o) * LANES, y)


@jit
def position(x, x_at, outputs, floats, cls, places, lanes, masks, token):
    """x, or the class token where no patch is, + position: a tile's tokens.

    cls (outputs,) and the positions (outputs, lanes) begin at their places of `floats`; masks as in
    `stencils`.
    """
    on_grid = load(masks, GRID * lanes + token) > splat(np.int32(0))
    for o in range(outputs):
        y = select(on_grid, load(x, x_at + o * LANES), broadcast(floats, cls + o))
        store(x, x_at + o * LANES, y + load(floats, places + o * lanes + token))


@jit
def classify(weight, inputs, x, floats, bias, sums, logits):
    """logits (classes,) = weight . x + bias for the token in lane 0 of the tile x.

    Of every fourth input a sum of its own: one would wait for each addition.
    """
    zero = splat(np.float32(0))
    for first in range(0, len(logits), LANES):  # classes by lane
        a, b, c, d = zero, zero, zero, zero
        for i in range(inputs):
            at = first * inputs + i * LANES
            a, b, c, d = b, c, d, fma(load(weight, at), broadcast(x, i * LANES), a)
        store(sums, 0, (a + b) + (c + d))
        for k in range(first, min(first + LANES, len(logits))):
            logits[k] = sums[k - first] + floats[bias + k]


@jit
def linear(x, inputs, weight, weight_at, outputs, floats, bias, sums, field, pitch, here):
    """weight . x + bias of a tile, into a field (outputs, pitch), where it begins at `here`."""
    for first in range(0, outputs, LANES):
        for row in range(LANES):
            store(sums, row * LANES, splat(np.float32(0)))
        dot(x, 0, 0, weight, weight_at + first * inputs, inputs, sums, 0, 0)
        for o in range(first, min(first + LANES, outputs)):
            y = load(sums, (o - first) * LANES) + broadcast(floats, bias + o)
            store(field, o * pitch + here, y)
