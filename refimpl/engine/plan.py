"""What is fixed before the first image: weights in the kernels' layout, places, buffers.

All floats lie in one array and all bits in another; `table` says where. A row of it is one unit of
a block: its projections, then what attention and the block add. See `columns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from refimpl.engine import columns
from refimpl.kernels import dense, popcount, stencils
from refimpl.kernels.popcount import WORD
from refimpl.kernels.vector import LANES
from refimpl.models.config import Config
from refimpl.ops import boolean

PROJECTION = {
    "scale": columns.SCALE,
    "move": columns.MOVE,
    "norm.weight": columns.NORM_WEIGHT,
    "norm.bias": columns.NORM_BIAS,
    "rprelu.shift_in": columns.SHIFT_IN,
    "rprelu.slope": columns.SLOPE,
    "rprelu.shift_out": columns.SHIFT_OUT,
}
ATTENTION = {"shortcut": columns.SHORTCUT, "neighbour": columns.NEIGHBOUR, **PROJECTION}
TOKEN_SHIFTS = {
    "rprelu.token_shift_in": columns.TOKEN_IN,
    "rprelu.token_shift_out": columns.TOKEN_OUT,
}
BLOCK = {
    "norm1.weight": columns.NORM1_WEIGHT,
    "norm1.bias": columns.NORM1_BIAS,
    "norm2.weight": columns.NORM2_WEIGHT,
    "norm2.bias": columns.NORM2_BIAS,
}
SCALES = {"scale1": (columns.ALPHA1, columns.BETA1), "scale2": (columns.ALPHA2, columns.BETA2)}


class Plan(NamedTuple):
    """Read by every thread, written by none. Places are flat indices."""

    path: popcount.Path
    table: np.ndarray  # (depth * rows, columns) int64, see columns
    floats: np.ndarray  # float32
    bits: np.ndarray  # uint32, weights as `bits.pack` lays them out
    masks: np.ndarray  # (9, lanes) int32, see stencils
    counts: np.ndarray  # (lanes,) float32, number of neighbours
    embed: np.ndarray  # patch embedding, see dense.blocked
    head: np.ndarray  # see dense.blocked
    bias: int  # of the patch embedding
    cls_token: int
    position: int  # (C, lanes)
    norm_weight: int
    norm_bias: int
    head_bias: int
    depth: int
    inputs: int  # projections that feed attention; the last is the value's
    rows: int  # of the table, a block
    tokens: int
    tiles: int  # of sixteen tokens
    first: int  # token of the grid, 0 or 1
    grid: tuple[int, int]
    patch: int
    pixels: int  # of a patch, all channels
    margin: int  # of a field
    pitch: int  # of a field
    channels: int  # C
    hidden: int
    heads: int
    head_dim: int
    classes: int
    decode: bool  # logits of every token of the grid
    haar: bool
    split: bool  # False: both bands are the tokens themselves
    periodic: bool
    high_cls: bool
    differential: bool
    eps: np.float32


class Work(NamedTuple):
    """What one image needs room for; one a thread."""

    x: np.ndarray  # (tiles, C, 16), the residual stream
    shortcut: np.ndarray  # (tiles, C, 16), sum of m_t of queries and keys
    normalised: np.ndarray  # (C, pitch), a field: LayerNorm of x
    value: np.ndarray  # (C, pitch), a field: m_v
    low: np.ndarray  # (C, 16)
    high: np.ndarray  # (C, 16)
    out: np.ndarray  # (C, 16)
    linear: np.ndarray  # (hidden, 16)
    hidden: np.ndarray  # (hidden, 16)
    pixels: np.ndarray  # (tiles, pixels, 16)
    weights: np.ndarray  # (tokens + 1, 16)
    words: np.ndarray  # a packed tile of activations
    heads: np.ndarray  # packed queries and keys, values, boolean: see `head_at`, `values_at`
    ints: np.ndarray  # whole numbers: scores of each band
    ones: np.ndarray  # (16,)
    sums: np.ndarray  # (16,)


@register_jitable
def words(length: int) -> int:
    """Lanes of 32 bits that hold so many."""
    return -(-length // WORD)


def build(config: Config, arrays: Mapping[str, np.ndarray]) -> Plan:
    """arrays: by the names of `packing.shapes`, float32 or float16 and packed bits."""
    store = _Store(config, arrays)
    rows = len(config.attention_inputs) + 4
    table = np.zeros((config.depth * rows, columns.COUNT), np.int64)
    for i in range(config.depth):
        _fill_block(table[i * rows : (i + 1) * rows], f"blocks.{i}", config, store)
    tiles = -(-config.tokens // LANES)
    first, lanes = config.first_patch, tiles * LANES
    margin = stencils.margin(config.grid[1])
    position = np.zeros((config.dim, lanes), np.float32)
    position[:, : config.tokens] = arrays["pos_embed"][0].T
    cls_token = arrays.get("cls_token", np.zeros(config.dim))
    embed = arrays["patch_embed.weight"].reshape(config.dim, -1)
    return Plan(
        path=popcount.path(),
        table=table,
        bias=store.keep("patch_embed.bias"),
        cls_token=store.add(cls_token),
        position=store.add(position),
        norm_weight=store.keep("norm.weight"),
        norm_bias=store.keep("norm.bias"),
        head_bias=store.keep("head.bias"),
        floats=np.concatenate(store.floats),
        bits=np.concatenate(store.bits),
        masks=stencils.masks(config.grid, first, lanes),
        counts=stencils.counts(config.grid, first, lanes, config.neighbours),
        embed=dense.blocked(embed),
        head=dense.blocked(arrays["head.weight"]),
        depth=config.depth,
        inputs=len(config.attention_inputs),
        rows=rows,
        tokens=config.tokens,
        tiles=tiles,
        first=first,
        grid=config.grid,
        patch=config.patch_size,
        pixels=embed.shape[1],
        margin=margin,
        pitch=lanes + 2 * margin,
        channels=config.dim,
        hidden=config.dim * config.mlp_ratio,
        heads=config.heads,
        head_dim=config.head_dim,
        classes=config.num_classes,
        decode=config.decoder == "linear",
        haar=config.similarity == "haar",
        split=config.haar_mode != "none",
        periodic=config.haar_mode == "periodic",
        high_cls=config.haar_cls == "both",
        differential=config.attention == "differential",
        eps=np.float32(config.norm_eps),
    )


def work(plan: Plan) -> Work:
    """Buffers for one image; what is never written stays 0."""
    tile = plan.channels * LANES
    widest = max(plan.hidden, plan.channels, LANES)  # a block of sixteen at least

    def floats(size: int) -> np.ndarray:
        return aligned(size, np.float32)

    return Work(
        x=floats(plan.tiles * tile),
        shortcut=floats(plan.tiles * tile),
        normalised=floats(plan.channels * plan.pitch),
        value=floats(plan.channels * plan.pitch),
        low=floats(tile),
        high=floats(tile),
        out=floats(tile),
        linear=floats(widest * LANES),
        hidden=floats(widest * LANES),
        pixels=floats(plan.tiles * plan.pixels * LANES),
        weights=floats((plan.tokens + 1) * LANES),
        words=aligned(words(widest) * LANES, np.uint32),
        heads=aligned(values_at(plan, plan.heads) + words(plan.tokens) * LANES, np.uint32),
        ints=aligned(2 * plan.tiles * LANES * LANES, np.int32),
        ones=aligned(LANES, np.int32),
        sums=floats(LANES),
    )


def aligned(size: int, dtype: type) -> np.ndarray:
    """Zeros that begin where a line of the cache does: a vector across two of them costs twice."""
    room = np.zeros(size + LANES, dtype)  # of four-byte values, sixteen to a line
    first = -room.ctypes.data % (LANES * room.itemsize) // room.itemsize
    return room[first : first + size]


# In Work.heads lie the packed queries and keys, then the values, last the boolean of a head.


@register_jitable
def head_at(plan: Plan, t: int, head: int, tile: int) -> int:
    """Where the packed queries or keys t of a head and tile begin."""
    return ((t * plan.heads + head) * plan.tiles + tile) * words(plan.head_dim) * LANES


@register_jitable
def values_at(plan: Plan, head: int) -> int:
    """Where the packed values of a head begin; of one head more than there is: the boolean."""
    blocks = -(-plan.head_dim // LANES)
    return head_at(plan, plan.inputs - 1, 0, 0) + head * blocks * words(plan.tokens) * LANES


class _Store:
    """Collects floats and bits and gives the place of each."""

    def __init__(self, config: Config, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.floats: list[np.ndarray] = []
        self.bits: list[np.ndarray] = []
        self._lengths = {"floats": 0, "bits": 0}
        lanes = -(-config.tokens // LANES) * LANES
        self.zeros = self.add(np.zeros(max(lanes, config.dim)))
        self.ones = self.add(np.ones(max(lanes, config.dim)))

    def add(self, values: np.ndarray) -> int:
        return self._append("floats", np.asarray(values, np.float32).reshape(-1))

    def keep(self, name: str) -> int:
        return self.add(self.arrays[name])

    def keep_tokens(self, name: str, lanes: int) -> int:
        """(N,), filled up to whole tiles."""
        values = np.zeros(lanes, np.float32)
        values[: len(self.arrays[name])] = self.arrays[name]
        return self.add(values)

    def keep_bits(self, name: str, inputs: int) -> int:
        """File layout (O, bytes) -> blocks of sixteen rows, (blocks, words, 16)."""
        rows = np.ascontiguousarray(self.arrays[name]).view("<u4")[:, : words(inputs)]
        padded = np.zeros((-(-len(rows) // LANES) * LANES, words(inputs)), np.uint32)
        padded[: len(rows)] = rows
        blocks = padded.reshape(-1, LANES, words(inputs)).swapaxes(1, 2)
        return self._append("bits", blocks.reshape(-1))

    def _append(self, kind: str, values: np.ndarray) -> int:
        place = self._lengths[kind]
        getattr(self, kind).append(values)
        self._lengths[kind] += len(values)
        return place


def _fill_block(table: np.ndarray, name: str, config: Config, store: _Store) -> None:
    """Rows of a block: projections of attention, proj, up, down, attention's own, the block's."""
    C, hidden = config.dim, config.dim * config.mlp_ratio
    units = [(f"attn.{t}", C, C) for t in config.attention_inputs]
    units += [("attn.proj", C, C), ("mlp.up", C, hidden), ("mlp.down", hidden, C)]
    for row, (unit, inputs, outputs) in zip(table, units, strict=False):
        row[columns.INPUTS], row[columns.OUTPUTS] = inputs, outputs
        row[columns.BITS] = store.keep_bits(f"{name}.{unit}.bits", inputs)
        _fill(row, f"{name}.{unit}", PROJECTION, config, store)
    for row, t in zip(table, config.attention_inputs, strict=False):
        row[columns.HEAD_MOVE] = store.keep(f"{name}.attn.{t}_move")
    own = table[-1]
    _fill_attention(own, f"{name}.attn", config, store)
    for path, column in BLOCK.items():
        own[column] = store.keep(f"{name}.{path}")
    for path, (alpha, beta) in SCALES.items():
        own[alpha], own[beta] = store.ones, store.zeros
        if config.layer_scale:
            own[alpha] = store.keep(f"{name}.{path}.alpha")
            own[beta] = store.keep(f"{name}.{path}.beta")


def _fill_attention(row: np.ndarray, name: str, config: Config, store: _Store) -> None:
    row[columns.SHORTCUT], row[columns.NEIGHBOUR] = store.ones, store.zeros
    own = {path: column for path, column in ATTENTION.items() if f"{name}.{path}" in store.arrays}
    _fill(row, name, own, config, store)
    alpha = np.asarray(store.arrays[f"{name}.alpha"], np.float32).reshape(-1)
    row[columns.STEP] = store.add(np.broadcast_to(boolean.step_of(alpha), config.heads))
    weights = store.arrays.get(f"{name}.band_weight", np.ones(config.heads))
    row[columns.BAND_WEIGHT] = store.add(weights)


def _fill(row, name: str, places: Mapping[str, int], config: Config, store: _Store) -> None:
    for path, column in places.items():
        row[column] = store.keep(f"{name}.{path}")
    lanes = -(-config.tokens // LANES) * LANES
    for path, column in TOKEN_SHIFTS.items():
        row[column] = store.zeros
        if config.rprelu == "token":
            row[column] = store.keep_tokens(f"{name}.{path}", lanes)
