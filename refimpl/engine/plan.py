"""What is fixed before the first image: weights in the kernels' layout, places, buffers.

All floats lie in one array and all bits in another; `table` says where. A row of it is one unit of
a block: its projections, then what attention and the block add. See `columns`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from refimpl.conventions import NonFiniteError
from refimpl.engine import columns
from refimpl.kernels import attention, dense, popcount, stencils
from refimpl.kernels.popcount import WORD
from refimpl.kernels.vector import LANES
from refimpl.models import packing
from refimpl.models.nodes import Node
from refimpl.models.stage import Stage as ModelStage
from refimpl.models.structure import Block, Level, Merge, Projection, Structure
from refimpl.ops import boolean, position_bias
from refimpl.ops import windows as ops_windows

# What leaves a LayerNorm and enters a sign has met four factors at most: the norm's weight times
# sqrt(C), a slope, lam_s or lam_n, a slope. Where no parameter is larger than this, and there are
# fewer than 2 ** 20 channels, it is finite if what entered the norm was.
QUIET = 2.0**20


class Stage(NamedTuple):
    """Sizes of a stage [SPEC 6.7]; a network without windows is one. A row of `Plan.stages`."""

    begin: int  # its first block
    end: int  # behind its last block
    channels: int  # C
    hidden: int
    heads: int
    tokens: int
    tiles: int  # of sixteen tokens
    height: int  # of the grid
    width: int
    margin: int  # of a field
    pitch: int  # of a field
    masks: int  # place in Plan.masks
    counts: int  # place in Plan.counts
    windows: int  # without windows one, all tokens
    keys: int  # tokens of a window
    slots: int  # tiles of a window
    level: int  # place in Work.levels, where there is a pyramid


class Plan(NamedTuple):
    """Read by every thread, written by none. Places are flat indices."""

    path: popcount.Path
    stages: np.ndarray  # (stages, fields of Stage) int64
    table: np.ndarray  # (blocks * rows + merges + levels, columns) int64, see columns
    floats: np.ndarray  # float32
    bits: np.ndarray  # uint32, weights as `bits.pack` lays them out
    masks: np.ndarray  # of each stage (9, lanes) int32, see stencils
    counts: np.ndarray  # of each stage (lanes,) float32, number of neighbours
    windows: np.ndarray  # int32, orders and kinds of windows, see _Windows
    corners: np.ndarray  # of stage 0 (lanes,) int32, see dense.corners
    embed: np.ndarray  # patch embedding, see dense.blocked
    head: np.ndarray  # see dense.blocked
    bias: int  # of the patch embedding
    cls_token: int
    position: int  # (C, lanes)
    embed_norm_weight: int
    embed_norm_bias: int
    norm_weight: int
    norm_bias: int
    head_bias: int
    blocks: int  # of all stages
    inputs: int  # projections that feed attention; the last is the value's
    rows: int  # of the table, a block
    first: int  # token of the grid, 0 or 1
    patch: int
    pixels: int  # of a patch, all channels
    head_dim: int
    classes: int
    extras: bool | None  # windows or a decoder; None, a type of its own, where there are none
    windowed: bool
    decode: bool  # logits of every pixel
    pyramid: bool  # decode the levels of all stages
    factor: int  # sides of an image by those of the grid that is decoded
    haar: bool
    split: bool  # False: both bands are the tokens themselves
    periodic: bool
    high_cls: bool
    differential: bool
    differences: bool  # context="differences"
    loud: bool  # whether numbers may grow so large between two norms that they overflow
    eps: np.float32


class Work(NamedTuple):
    """What one image needs room for, in its largest stage; one a thread."""

    x: np.ndarray  # (tiles, C, 16), the residual stream
    shortcut: np.ndarray  # (tiles, C, 16), sum of m_t of queries and keys
    normalised: np.ndarray  # (C, pitch), a field: LayerNorm of x; then (tiles, C, 16), the context
    value: np.ndarray  # (C, pitch), a field: m_v; then what a convolution reads
    low: np.ndarray  # (C, 16)
    high: np.ndarray  # (C, 16)
    out: np.ndarray  # (C, 16)
    linear: np.ndarray  # (hidden, 16)
    # (hidden, 16); patch merging's (4C, 16); a convolution's (9D, 16); a window's values
    # (C, 16 * slots)
    hidden: np.ndarray
    norm: np.ndarray  # (2, 16), scale and shift of what is in `linear` or `hidden`
    pixels: np.ndarray  # (dense.TOGETHER, pixels, 16)
    weights: np.ndarray  # (keys + 1, 16)
    words: np.ndarray  # a packed tile of activations
    heads: np.ndarray  # packed queries and keys, values, boolean: see `head_at`, `values_at`
    ints: np.ndarray  # whole numbers: scores of each band
    ones: np.ndarray  # (16,)
    levels: np.ndarray  # of each stage a field (D, pitch)
    answers: np.ndarray  # (classes, pitch), a field: the head's of the tokens that are decoded
    room: np.ndarray  # see levels.enlarge


@register_jitable
def words(length: int) -> int:
    """Lanes of 32 bits that hold so many."""
    return -(-length // WORD)


@register_jitable
def stage_at(plan: Plan, s: int) -> Stage:
    """The sizes of stage s."""
    row = plan.stages[s]
    return Stage(
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7],
        row[8], row[9], row[10], row[11], row[12], row[13], row[14], row[15], row[16],
    )  # fmt: skip


@register_jitable
def masks_of(plan: Plan, stage: Stage) -> np.ndarray:
    """Those of the stage, see `stencils`."""
    return plan.masks[stage.masks : stage.masks + (stencils.GRID + 1) * stage.tiles * LANES]


@register_jitable
def level_row(plan: Plan, s: int) -> int:
    """The row of the table of level s of the pyramid."""
    return plan.blocks * plan.rows + len(plan.stages) - 1 + s


@register_jitable
def decoded_row(plan: Plan) -> int:
    """The row of the table of the stage that the head reads."""
    return level_row(plan, 0) if plan.pyramid else plan.blocks * plan.rows - 1


@register_jitable
def level_of(plan: Plan, stage: Stage, work: Work) -> np.ndarray:
    """The field of the stage in the pyramid, flat."""
    size = stage_at(plan, 0).channels * stage.pitch
    return work.levels[stage.level : stage.level + size]


def build(network: Structure, arrays: Mapping[str, np.ndarray]) -> Plan:
    """arrays: by the names of `packing.stored`, float32 or float16 and packed bits."""
    stages, masks, counts = _stages(network)
    store = _Store(stages, network, arrays)
    blocks, block = network.blocks, network.blocks[0]
    windows, first, begin = _Windows(), stages[0], block.context.stage.num_prefix_tokens
    embed = arrays[network.embed.params[0]]
    patch = embed.shape[-1]
    height = network.shape(network.embed.inputs[0])[2]
    bands = block.bands.attributes if block.bands else {"mode": "none", "cls": "low"}
    head = arrays[network.head.params[0]]
    decoded = stages[0 if network.levels else -1]
    windowed = block.context.stage.window > 0
    return Plan(
        path=popcount.path(),
        stages=np.array(stages, np.int64),
        table=_table(network, stages, windows, store),
        bias=store.keep(network.embed.params[1]),
        norm_weight=store.keep(network.norm.params[0]),
        norm_bias=store.keep(network.norm.params[1]),
        head_bias=store.keep(network.head.params[1]),
        **_embedding(first, network, store),
        floats=np.concatenate(store.floats),
        bits=np.concatenate(store.bits),
        masks=np.concatenate(masks),
        counts=np.concatenate(counts),
        windows=np.concatenate(windows.arrays),
        corners=dense.corners((first.height, first.width), begin, first.tiles * LANES, patch),
        embed=dense.blocked(embed.reshape(len(embed), -1)),
        head=dense.blocked(head),
        blocks=len(blocks),
        inputs=len(block.projections),
        rows=len(block.units) + 1,
        first=begin,
        patch=patch,
        pixels=embed[0].size,
        head_dim=network.shape(block.context.name)[-1],
        classes=len(head),
        extras=windowed or network.decodes or None,
        windowed=windowed,
        decode=network.decodes,
        pyramid=bool(network.levels),
        factor=height // decoded.height,
        haar=block.bands is not None,
        split=bands["mode"] != "none",
        periodic=bands["mode"] == "periodic",
        high_cls=bands["cls"] == "both",
        differential=block.differential is not None,
        differences=block.context.attributes["context"] == "differences",
        loud=not all(np.all(np.abs(np.float32(a)) <= QUIET) for a in arrays.values()),
        eps=np.float32(block.norm1.attributes["eps"]),
    )


def _stages(network: Structure) -> tuple[list[Stage], list[np.ndarray], list[np.ndarray]]:
    """Sizes of each stage, and its masks and counts, flat."""
    found: list[Stage] = []
    masks, counts, begin, place, level = [], [], 0, 0, 0
    for blocks in network.stages:
        stage = blocks[0].context.stage
        tiles, margin = -(-stage.num_tokens // LANES), stencils.margin(stage.grid[1])
        lanes = tiles * LANES
        found.append(
            Stage(
                begin=begin,
                end=begin + len(blocks),
                channels=stage.dim,
                hidden=blocks[0].up.shape[0],
                heads=stage.heads,
                tokens=stage.num_tokens,
                tiles=tiles,
                height=stage.grid[0],
                width=stage.grid[1],
                margin=margin,
                pitch=lanes + 2 * margin,
                masks=place * (stencils.GRID + 1),
                counts=place,
                windows=stage.num_windows,
                keys=stage.num_keys,
                slots=-(-stage.num_keys // LANES),
                level=level,
            )
        )
        masks.append(stencils.masks(stage.grid, stage.num_prefix_tokens, lanes).reshape(-1))
        counts.append(_counts(blocks[0].mean, stage, lanes))
        begin, place = begin + len(blocks), place + lanes
        level += found[0].channels * found[-1].pitch
    return found, masks, counts


def _counts(mean: Node | None, stage: ModelStage, lanes: int) -> np.ndarray:
    """What the sum of a token's neighbours is divided by; infinity where their mean is 0."""
    if mean is not None and mean.op == "neighbours":
        first, border = stage.num_prefix_tokens, mean.attributes["border"]
        return stencils.counts(stage.grid, first, lanes, border)
    return np.full(lanes, np.inf, np.float32)


def _embedding(stage: Stage, network: Structure, store: _Store) -> dict[str, int]:
    """Places of what makes tokens of patches: a norm, or class token and position embedding."""
    places = dict.fromkeys(
        ("cls_token", "position", "embed_norm_weight", "embed_norm_bias"), store.zeros
    )
    if network.embed_norm:
        weight, bias = map(store.keep, network.embed_norm.params)
        return {**places, "embed_norm_weight": weight, "embed_norm_bias": bias}
    position = np.zeros((stage.channels, stage.tiles * LANES), np.float32)
    position[:, : stage.tokens] = store.arrays[network.position.params[0]][0].T
    if network.class_token:
        places["cls_token"] = store.keep(network.class_token.params[0])
    return {**places, "position": store.add(position)}


def work(plan: Plan) -> Work:
    """Buffers for one image; what is never written stays 0."""
    stages = [stage_at(plan, s) for s in range(len(plan.stages))]
    # a block of sixteen at least; what is merged has the channels of 2 x 2 neighbours
    merged = [4 * stage.channels for stage in stages[:-1]]
    widest = max(LANES, *merged, *(max(stage.hidden, stage.channels) for stage in stages))
    D, decoded = stages[0].channels, stages[0 if plan.pyramid else -1]
    embedded = dense.TOGETHER * -(-D // LANES) * LANES  # sums of the patch embedding
    around = (stencils.GRID + 1) * D if plan.pyramid else 0
    levels = sum(D * stage.pitch for stage in stages) if plan.pyramid else 0
    answers = plan.classes * decoded.pitch if plan.decode else 0
    room = decoded.height * decoded.width * plan.factor if plan.decode else 0
    window = max(stage.channels * stage.slots for stage in stages) if plan.windowed else 0
    tile = max(stage.channels for stage in stages) * LANES
    stream = max(stage.tiles * stage.channels for stage in stages) * LANES
    field = max(stage.channels * stage.pitch for stage in stages)
    keys = max(stage.keys for stage in stages)
    slots = max(stage.slots for stage in stages)

    def floats(size: int) -> np.ndarray:
        return aligned(size, np.float32)

    def heads(stage: Stage) -> int:
        if plan.windowed:
            return grid_head_at(plan, stage, plan.inputs - 1, 0, 0)
        return values_at(plan, stage, stage.heads) + words(stage.keys) * LANES

    return Work(
        x=floats(stream),
        shortcut=floats(stream),
        normalised=floats(field),
        value=floats(field),
        low=floats(tile),
        high=floats(tile),
        out=floats(tile),
        linear=floats(widest * LANES),
        hidden=floats(max(widest, window, around, embedded) * LANES),
        pixels=floats(dense.TOGETHER * plan.pixels * LANES),
        weights=floats((keys + 1) * LANES),
        words=aligned(words(widest) * LANES, np.uint32),
        heads=aligned(max(map(heads, stages)), np.uint32),
        ints=aligned(2 * slots * LANES * LANES, np.int32),
        ones=aligned(LANES, np.int32),
        norm=floats(2 * LANES),
        levels=floats(levels),
        answers=floats(answers),
        room=floats(room),
    )


def aligned(size: int, dtype: type) -> np.ndarray:
    """Zeros that begin where a line of the cache does: a vector across two of them costs twice."""
    room = np.zeros(size + LANES, dtype)  # of four-byte values, sixteen to a line
    first = -room.ctypes.data % (LANES * room.itemsize) // room.itemsize
    return room[first : first + size]


# In Work.heads lie the packed queries and keys, then the values, then the boolean of a head: of all
# tokens, or of the window that is looked at. With windows all queries and keys follow, in the order
# of the grid.


@register_jitable
def head_at(plan: Plan, stage: Stage, t: int, head: int, tile: int) -> int:
    """Where the packed queries or keys t of a head and tile begin."""
    return ((t * stage.heads + head) * stage.slots + tile) * words(plan.head_dim) * LANES


@register_jitable
def values_at(plan: Plan, stage: Stage, head: int) -> int:
    """Where the packed values of a head begin; of one head more than there is: the boolean."""
    blocks = -(-plan.head_dim // LANES)
    values = head_at(plan, stage, plan.inputs - 1, 0, 0)
    return values + head * blocks * words(stage.keys) * LANES


@register_jitable
def grid_head_at(plan: Plan, stage: Stage, t: int, head: int, tile: int) -> int:
    """As `head_at`, of the tiles of the grid, of which windows are cut."""
    begin = values_at(plan, stage, stage.heads) + words(stage.keys) * LANES
    tiles = (t * stage.heads + head) * stage.tiles + tile
    return begin + tiles * words(plan.head_dim) * LANES


class _Windows:
    """Collects what differs between windows, and gives the place of each array.

    An order is (windows, 16 * slots), the token at each place of a window, -1 where there is none.
    Kinds are (windows,): windows of one kind mask the same pairs.
    """

    def __init__(self) -> None:
        self.arrays = [np.zeros(1, np.int32)]
        self._length = 1
        self._known: dict[ModelStage, tuple[int, int, np.ndarray]] = {}

    def of(self, stage: ModelStage) -> tuple[int, int, np.ndarray]:
        """Places of its order and kinds, and bool (kinds, M M, M M), the pairs that are seen."""
        if stage not in self._known:
            options = (stage.grid, stage.window, stage.shift)
            seen, kinds = np.unique(ops_windows.mask(*options), axis=0, return_inverse=True)
            tokens = np.arange(stage.num_tokens, dtype=np.float64)[None, :, None]
            order, _ = ops_windows.forward(tokens, *options)
            padding = ((0, 0), (0, -stage.num_keys % LANES))
            padded = np.pad(order[..., 0], padding, constant_values=-1)
            self._known[stage] = self._add(padded), self._add(kinds), seen
        return self._known[stage]

    def _add(self, values: np.ndarray) -> int:
        place = self._length
        self.arrays.append(values.reshape(-1).astype(np.int32))
        self._length += values.size
        return place


class _Store:
    """Collects floats and bits and gives the place of each."""

    def __init__(
        self, stages: Sequence[Stage], network: Structure, arrays: Mapping[str, np.ndarray]
    ):
        self.network, self.arrays = network, arrays
        self.floats: list[np.ndarray] = []
        self.bits: list[np.ndarray] = []
        self._lengths = {"floats": 0, "bits": 0}
        longest = max(max(stage.tiles * LANES, stage.channels) for stage in stages)
        self.zeros = self.add(np.zeros(longest))
        self.ones = self.add(np.ones(longest))

    def add(self, *columns: np.ndarray) -> int:
        """An array, or several of equal length, one value of each in turn."""
        side_by_side = np.stack([np.reshape(c, -1) for c in columns], axis=-1)
        return self._append("floats", side_by_side.astype(np.float32).reshape(-1))

    def keep(self, name: str) -> int:
        return self.add(self.arrays[name])

    def keep_move(self, name: str) -> int:
        """In front of a sign: 0.0 in the place of -0.0, see `tiles.pack`."""
        return self.add(self.arrays[name] + 0.0)

    def keep_tokens(self, name: str, lanes: int) -> int:
        """(N,), filled up to whole tiles."""
        values = np.zeros(lanes, np.float32)
        values[: len(self.arrays[name])] = self.arrays[name]
        return self.add(values)

    def keep_matrix(self, path: str) -> tuple[int, int]:
        """Places of bits, (O, bytes) in blocks of sixteen rows (blocks, words, 16), and scales."""
        outputs, inputs = self.network.shape(path)
        bits, scale = packing.stored(self.network.network.parameters[path])
        rows = np.ascontiguousarray(self.arrays[bits]).view("<u4")[:, : words(inputs)]
        padded = np.zeros((-(-outputs // LANES) * LANES, words(inputs)), np.uint32)
        padded[:outputs] = rows
        blocks = padded.reshape(-1, LANES, words(inputs)).swapaxes(1, 2)
        return self._append("bits", blocks.reshape(-1)), self.keep(scale)

    def _append(self, kind: str, values: np.ndarray) -> int:
        place = self._lengths[kind]
        getattr(self, kind).append(values)
        self._lengths[kind] += len(values)
        return place


def _table(
    network: Structure, stages: Sequence[Stage], windows: _Windows, store: _Store
) -> np.ndarray:
    """Rows of all blocks: their projections, attention's and the block's own; merges; levels."""
    found = []
    for stage, blocks in zip(stages, network.stages, strict=True):
        for block in blocks:
            rows = [_projection(unit, stage, store) for unit in block.units]
            found += [*rows, _block(block, stage, windows, store)]
    for stage, merge in zip(stages[1:], network.merges, strict=True):
        found.append(_merge(merge, stage, store))
    found += [_level(level, store) for level in network.levels]
    table = np.zeros((len(found), columns.COUNT), np.int64)
    for row, values in zip(table, found, strict=True):
        row[list(values)] = list(values.values())
    return table


Row = dict[int, int]  # column: value


def _projection(unit: Projection, stage: Stage, store: _Store) -> Row:
    bits, scale = store.keep_matrix(unit.product.params[0])
    row = {
        columns.OUTPUTS: unit.shape[0],
        columns.INPUTS: unit.shape[1],
        columns.BITS: bits,
        columns.SCALE: scale,
        columns.MOVE: store.keep_move(unit.shift.params[0]),
        **_coefficients(unit.norm, unit.activation, stage, store),
    }
    if unit.moved:
        row[columns.HEAD_MOVE] = store.keep_move(unit.moved.params[0])
    return row


def _coefficients(norm: Node, activation: Node, stage: Stage, store: _Store) -> Row:
    """LayerNorm and RPReLU, by channel and by token."""
    weight, bias, shift_in, slope, shift_out = (
        store.arrays[name].astype(np.float64) for name in (*norm.params, *activation.params[:3])
    )
    row = {
        columns.COEFFICIENTS: store.add(weight, bias - shift_in, slope, shift_out),
        columns.TOKEN_IN: store.zeros,
        columns.TOKEN_OUT: store.zeros,
    }
    for column, name in zip((columns.TOKEN_IN, columns.TOKEN_OUT), activation.params[3:]):
        row[column] = store.keep_tokens(name, stage.tiles * LANES)
    return row


def _block(block: Block, stage: Stage, windows: _Windows, store: _Store) -> Row:
    """What attention and the block have besides projections."""
    row = _coefficients(block.norm, block.activation, stage, store)
    row |= _norm(block.norm1, store)
    row[columns.NORM2_WEIGHT], row[columns.NORM2_BIAS] = map(store.keep, block.norm2.params)
    for scaled, places in (
        (block.scale1, (columns.ALPHA1, columns.BETA1)),
        (block.scale2, (columns.ALPHA2, columns.BETA2)),
    ):
        alpha, beta = map(store.keep, scaled.params) if scaled else (store.ones, store.zeros)
        row |= dict(zip(places, (alpha, beta), strict=True))
    if block.differential:
        shortcut, neighbour = (store.arrays[name] for name in block.differential.params)
        row[columns.DIFFERENTIAL] = store.add(shortcut, -neighbour)
    alpha = np.asarray(store.arrays[block.context.params[0]], np.float32).reshape(-1)
    row[columns.STEP] = store.add(np.broadcast_to(boolean.step_of(alpha), stage.heads))
    weights = np.ones(stage.heads, np.float32)
    if block.scores.op == "band_sum":
        weights = store.arrays[store.network.path(block.scores.params[0])]
    head_dim = store.network.shape(block.context.name)[-1]
    _require_finite_scores(block, weights, head_dim, store)
    row[columns.BAND_WEIGHT] = store.add(attention.weights_of(weights, head_dim))
    if block.position_bias:
        row |= _windows(block, windows, store)
    return row


def _require_finite_scores(block: Block, weights: np.ndarray, head_dim: int, store: _Store) -> None:
    """NonFiniteError where scores may be beyond float32; no kernel looks at them for that."""
    most = head_dim * np.abs(np.atleast_2d(weights).astype(np.float64)).sum(axis=0)  # (heads,)
    if block.position_bias:
        most += np.abs(store.arrays[block.position_bias.params[0]]).max(axis=0)
    limit = np.finfo(np.float32).max
    if not np.all(most <= limit):
        raise NonFiniteError(
            f"scores of up to {most.max():g} would enter a softmax; expected at most {limit:g}",
            block.scores.where,
        )


def _windows(block: Block, windows: _Windows, store: _Store) -> Row:
    """What is added to the scores, (kinds, heads, slots, keys, 16), query by lane; see `weigh`."""
    order, kinds, seen = windows.of(block.context.stage)
    table = store.arrays[block.position_bias.params[0]]
    keys = seen.shape[-1]
    bias = table[position_bias.offsets(math.isqrt(keys))].transpose(2, 0, 1)  # (heads, M M, M M)
    bias = bias.astype(np.float64) * math.log2(math.e)
    added = np.where(seen[:, None], bias, -np.inf)
    padded = np.pad(added, ((0, 0), (0, 0), (0, -keys % LANES), (0, 0)))
    by_lane = padded.reshape(*padded.shape[:2], -1, LANES, keys).swapaxes(-1, -2)
    place = store.add(by_lane)
    return {columns.POSITION_BIAS: place, columns.ORDER: order, columns.KINDS: kinds}


def _norm(norm: Node, store: _Store) -> Row:
    weight, bias = map(store.keep, norm.params)
    return {columns.NORM1_WEIGHT: weight, columns.NORM1_BIAS: bias}


def _merge(merge: Merge, stage: Stage, store: _Store) -> Row:
    """Of patch merging that leads to `stage`."""
    return _projection(merge.projection, stage, store) | _norm(merge.norm, store)


def _level(level: Level, store: _Store) -> Row:
    """Of the pyramid."""
    lateral, smooth = (store.arrays[node.params[0]] for node in (level.lateral, level.smooth))
    kernel = smooth.transpose(0, 2, 3, 1).reshape(len(smooth), -1)  # as stencils.around
    return {
        **_norm(level.norm, store),
        columns.LATERAL: store.add(dense.blocked(lateral)),
        columns.SMOOTH: store.add(dense.blocked(kernel)),
        columns.LATERAL_BIAS: store.keep(level.lateral.params[1]),
        columns.SMOOTH_BIAS: store.keep(level.smooth.params[1]),
    }
