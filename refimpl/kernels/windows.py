"""Windows cut out of what lies in the order of the grid, and put back; patch merging [SPEC 6.7].

`order` holds the token at each place of a window, as many as fill whole tiles of sixteen; -1 where
a window has no more tokens.
"""

from __future__ import annotations

import numpy as np

from refimpl.kernels.compile import jit
from refimpl.kernels.vector import LANES


@jit
def cut_words(words, words_at, count, order, order_at, places, out, out_at):
    """Packed rows of tokens (tiles, count, 16) -> those of a window, (places / 16, count, 16)."""
    for place in range(places):
        n = order[order_at + place]
        if n < 0:
            continue
        here = words_at + n // LANES * count * LANES + n % LANES
        there = out_at + place // LANES * count * LANES + place % LANES
        for word in range(count):
            out[there + word * LANES] = words[here + word * LANES]


@jit
def cut_field(field, pitch, at, channels, order, order_at, places, out):
    """The tokens of a window from a field (channels, pitch) -> (channels, places); 0 for -1."""
    for c in range(channels):
        for place in range(places):
            n = order[order_at + place]
            out[c * places + place] = field[c * pitch + at + n] if n >= 0 else np.float32(0)


@jit
def put_back(tile, channels, order, order_at, out):
    """A tile of a window, (channels, 16), to its tokens in the tiles of the grid."""
    for lane in range(LANES):
        n = order[order_at + lane]
        if n < 0:
            continue
        there = n // LANES * channels * LANES + n % LANES
        for c in range(channels):
            out[there + c * LANES] = tile[c * LANES + lane]


@jit
def merge_patches(x, channels, token, tokens, width, out):
    """Sixteen tokens of the merged grid from `token` on: their 2 x 2 neighbours' channels.

    x (tiles, channels, 16) -> out (4 channels, 16), in Swin's order; 0 beyond the last token.
    tokens, width: of the merged grid.
    """
    for lane in range(LANES):
        n = token + lane
        for part in range(4):
            row, column = n // width * 2 + part % 2, n % width * 2 + part // 2
            m = row * 2 * width + column
            here, there = m // LANES * channels * LANES + m % LANES, part * channels * LANES + lane
            for c in range(channels):
                value = x[here + c * LANES] if n < tokens else np.float32(0)
                out[there + c * LANES] = value
