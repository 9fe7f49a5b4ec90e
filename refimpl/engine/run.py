"""One image through the network, tile by tile of sixteen tokens [SPEC 5, 6].

A block is two sweeps over the tiles. The first feeds attention: bands, projections, packed queries
and keys; values, which are packed over the tokens, need it whole. The second does all the rest of
a tile, from the scores to the end of the MLP, without leaving the cache.

The functions here only put kernels in order. They are compiled into one; called from Python they
run as they stand, kernel by kernel, and then `keep` shows a listener every value on its way.
"""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import overload, register_jitable

from refimpl.engine import columns
from refimpl.engine.plan import Plan, Work, head_at, values_at
from refimpl.kernels import attention, dense, stencils, tiles
from refimpl.kernels.compile import borrow, jit
from refimpl.kernels.vector import LANES

FINE = -1


def keep(listener: Callable | None, what: str, row: int, head: int, tile: int, values, at: int):
    """Show a listener values that begin at a place of an array; nothing at all in compiled code.

    row: of the table; of what is a block's own, its last.
    """
    if listener is not None:
        listener(what, row, head, tile, values, at)


@overload(keep)
def _keep_nothing(listener, what, row, head, tile, values, at):
    return lambda listener, what, row, head, tile, values, at: None


@register_jitable
def forward(listener: Callable | None, plan: Plan, work: Work, image, logits) -> int:
    """image (channels, H, W) -> logits (classes,), float32; with a decoder (gh*gw * classes,).

    Returns FINE, or the row of the table in which NaN or infinity entered a sign first.
    """
    _embed(listener, plan, work, image)
    status = FINE
    for block in range(plan.depth):
        own = block * plan.rows + plan.rows - 1
        for tile in range(plan.tiles):
            _normalise(plan, work, own, tile)
        for tile in range(plan.tiles):
            broken = _feed_attention(listener, plan, work, block, tile)
            status = broken if status == FINE else status
        value = block * plan.rows + plan.inputs - 1
        if not _pack_values(listener, plan, work, value) and status == FINE:
            status = value
        for tile in range(plan.tiles):
            broken = _finish_block(listener, plan, work, block, tile)
            status = broken if status == FINE else status
    if plan.decode:
        _decode(listener, plan, work, logits)
    else:
        _classify(listener, plan, work, logits)
    return status


@jit
def compiled_forward(plan: Plan, work: Work, image, logits) -> int:
    """`forward` as one compiled call that shows nothing."""
    return forward(None, borrow(plan), borrow(work), image, logits)


@register_jitable
def _embed(listener, plan, work, image):
    """The tokens that enter the first block, in the stream."""
    lanes = plan.tiles * LANES
    for token in range(0, lanes, LANES):
        dense.patches(
            image, plan.first, token, plan.patch, plan.grid[1], work.pixels, token * plan.pixels
        )
    for channel in range(0, plan.channels, LANES):
        dense.embed(
            work.pixels, plan.pixels, plan.embed, channel, plan.channels, plan.floats, plan.bias,
            lanes, work.linear, work.x,
        )  # fmt: skip
    for tile in range(plan.tiles):
        x_at = tile * plan.channels * LANES
        keep(listener, "patch_embed.out", 0, 0, tile, work.x, x_at)
        dense.position(
            work.x, x_at, plan.channels, plan.floats, plan.cls_token, plan.position, lanes,
            plan.masks, tile * LANES,
        )  # fmt: skip
        keep(listener, "tokens", 0, 0, tile, work.x, x_at)


@register_jitable
def _normalise(plan, work, own, tile):
    """LayerNorm1 of a tile, into the field."""
    tiles.normalise(
        work.x, tile * plan.channels * LANES, plan.channels,
        plan.floats, plan.table[own, columns.NORM1_WEIGHT], plan.table[own, columns.NORM1_BIAS],
        plan.eps,
        work.normalised, plan.margin + tile * LANES, plan.pitch,
    )  # fmt: skip


@register_jitable
def _feed_attention(listener, plan, work, block, tile):
    """Projections of a tile -> its packed queries and keys, their sum, and its values."""
    stride, here = plan.channels * LANES, plan.margin + tile * LANES
    own = block * plan.rows + plan.rows - 1
    tiles.cut(work.normalised, plan.pitch, here, plan.channels, work.hidden)
    keep(listener, "norm1.out", own, 0, tile, work.hidden, 0)
    if plan.haar:
        _split(plan, work, tile)
        keep(listener, "attn.low", own, 0, tile, work.low, 0)
        keep(listener, "attn.high", own, 0, tile, work.high, 0)
    status = FINE
    for t in range(plan.inputs):
        row = block * plan.rows + t
        source = work.hidden
        if plan.haar and t < plan.inputs - 1:
            source = work.low if t < 2 else work.high
        fine = _project(listener, plan, work, row, tile, source, 0, work.out, 0)
        if t == plan.inputs - 1:
            tiles.place(work.out, plan.channels, work.value, plan.pitch, here)
        else:
            tiles.add(work.out, plan.channels, work.shortcut, tile * stride, t == 0)
            for head in range(plan.heads):
                at = head * plan.head_dim
                fine &= tiles.pack(
                    work.out, at * LANES, plan.head_dim,
                    plan.floats, plan.table[row, columns.HEAD_MOVE] + at,
                    work.heads, head_at(plan, t, head, tile),
                )  # fmt: skip
                keep(
                    listener, "head_bit", row, head, tile, work.heads, head_at(plan, t, head, tile)
                )
        if not fine and status == FINE:
            status = row
    return status


@register_jitable
def _split(plan, work, tile):
    if not plan.split:
        here = plan.margin + tile * LANES
        tiles.cut(work.normalised, plan.pitch, here, plan.channels, work.low)
        tiles.cut(work.normalised, plan.pitch, here, plan.channels, work.high)
        if tile == 0 and plan.first == 1 and not plan.high_cls:
            for c in range(plan.channels):
                work.high[c * LANES] = 0
    elif plan.periodic:
        stencils.periodic_bands(
            work.normalised, plan.pitch, plan.margin, plan.channels, plan.first, plan.grid,
            plan.tokens, tile * LANES, plan.high_cls, work.low, work.high,
        )  # fmt: skip
    else:
        stencils.bands(
            work.normalised, plan.pitch, plan.margin, plan.channels, plan.masks,
            plan.tiles * LANES, tile * LANES, plan.grid[1], plan.high_cls, work.low, work.high,
        )  # fmt: skip


@register_jitable
def _project(listener, plan, work, row, tile, x, x_at, out, out_at):
    """P(x; I -> O) of a tile; False where NaN or infinity entered the sign."""
    table, floats = plan.table, plan.floats
    inputs, outputs = table[row, columns.INPUTS], table[row, columns.OUTPUTS]
    fine = tiles.pack(x, x_at, inputs, floats, table[row, columns.MOVE], work.words, 0)
    keep(listener, "bit", row, 0, tile, work.words, 0)
    tiles.multiply(
        plan.path, work.words, inputs, plan.bits, table[row, columns.BITS], outputs,
        floats, table[row, columns.SCALE], work.ints, work.linear, work.sums,
    )  # fmt: skip
    keep(listener, "linear", row, 0, tile, work.linear, 0)
    norm = (table[row, columns.NORM_WEIGHT], table[row, columns.NORM_BIAS])
    shifts, token_shifts = _rprelu(plan, row, tile)
    tiles.finish(
        work.linear, work.sums, outputs, x, x_at, inputs, floats, norm, shifts, token_shifts,
        plan.eps, out, out_at, listener is not None,
    )  # fmt: skip
    keep(listener, "norm", row, 0, tile, work.linear, 0)
    keep(listener, "out", row, 0, tile, out, out_at)
    return fine


@register_jitable
def _rprelu(plan, row, tile):
    """Places of the channel shifts, and of the token shifts of a tile."""
    table, token = plan.table, tile * LANES
    return (
        (table[row, columns.SHIFT_IN], table[row, columns.SLOPE], table[row, columns.SHIFT_OUT]),
        (table[row, columns.TOKEN_IN] + token, table[row, columns.TOKEN_OUT] + token),
    )


@register_jitable
def _pack_values(listener, plan, work, row):
    fine = attention.pack_values(
        work.value, plan.pitch, plan.margin, plan.tokens, plan.channels, plan.head_dim,
        plan.floats, plan.table[row, columns.HEAD_MOVE], work.heads, values_at(plan, 0),
    )  # fmt: skip
    for head in range(plan.heads):
        keep(listener, "head_bit", row, head, 0, work.heads, values_at(plan, head))
    return fine


@register_jitable
def _finish_block(listener, plan, work, block, tile):
    """From the scores of a tile's queries to the end of the block."""
    own = block * plan.rows + plan.rows - 1
    proj, up, down = own - 3, own - 2, own - 1
    table, floats = plan.table, plan.floats
    x_at = tile * plan.channels * LANES
    _attend(listener, plan, work, own, tile)
    status = FINE
    if not _project(listener, plan, work, proj, tile, work.low, 0, work.out, 0):
        status = proj
    tiles.add_scaled(
        work.x,
        x_at,
        work.out,
        plan.channels,
        floats,
        table[own, columns.ALPHA1],
        table[own, columns.BETA1],
    )
    keep(listener, "mid", own, 0, tile, work.x, x_at)
    tiles.normalise(
        work.x, x_at, plan.channels,
        floats, table[own, columns.NORM2_WEIGHT], table[own, columns.NORM2_BIAS], plan.eps,
        work.low, 0, LANES,
    )  # fmt: skip
    keep(listener, "norm2.out", own, 0, tile, work.low, 0)
    fine = _project(listener, plan, work, up, tile, work.low, 0, work.hidden, 0)
    status = up if status == FINE and not fine else status
    fine = _project(listener, plan, work, down, tile, work.hidden, 0, work.out, 0)
    status = down if status == FINE and not fine else status
    tiles.add_scaled(
        work.x,
        x_at,
        work.out,
        plan.channels,
        floats,
        table[own, columns.ALPHA2],
        table[own, columns.BETA2],
    )
    keep(listener, "out", own, 0, tile, work.x, x_at)
    return status


@register_jitable
def _attend(listener, plan, work, own, tile):
    """RPReLU_o of what attention gathers for a tile, in `low`."""
    floats, here = plan.floats, plan.margin + tile * LANES
    for head in range(plan.heads):
        _attend_head(listener, plan, work, own, tile, head)
    keep(listener, "attn.context", own, 0, tile, work.low, 0)
    tiles.normalise(
        work.low, 0, plan.channels,
        floats, plan.table[own, columns.NORM_WEIGHT], plan.table[own, columns.NORM_BIAS], plan.eps,
        work.linear, 0, LANES,
    )  # fmt: skip
    keep(listener, "attn.norm.out", own, 0, tile, work.linear, 0)
    if plan.differential:
        stencils.neighbour_mean(
            work.value, plan.pitch, plan.margin, plan.channels, plan.masks, plan.counts,
            plan.tiles * LANES, tile * LANES, plan.grid[1], work.high,
        )  # fmt: skip
        keep(listener, "attn.neighbour_mean", own, 0, tile, work.high, 0)
        stencils.differential(
            work.value, plan.pitch, here, plan.channels, work.high,
            floats, plan.table[own, columns.SHORTCUT], plan.table[own, columns.NEIGHBOUR], work.out,
        )  # fmt: skip
    else:
        tiles.cut(work.value, plan.pitch, here, plan.channels, work.out)
    shifts, token_shifts = _rprelu(plan, own, tile)
    tiles.combine(
        work.linear, work.shortcut, tile * plan.channels * LANES, work.out, plan.channels,
        floats, shifts, token_shifts, work.low,
    )  # fmt: skip
    keep(listener, "attn.out", own, 0, tile, work.low, 0)


@register_jitable
def _attend_head(listener, plan, work, own, tile, head):
    """The context of a head, into its channels of `low`."""
    rows = plan.tiles * LANES
    for band in range(2 if plan.haar else 1):
        queries, keys = head_at(plan, 2 * band, head, tile), head_at(plan, 2 * band + 1, head, 0)
        attention.products(
            plan.path, work.heads, queries, keys, plan.head_dim, plan.tiles,
            work.ints, band * rows * LANES,
        )  # fmt: skip
    keep(listener, "attn.scores", own, head, tile, work.ints, 0)
    attention.weigh(
        work.ints, rows * LANES if plan.haar else 0, plan.tokens, plan.head_dim,
        plan.floats, plan.table[own, columns.BAND_WEIGHT] + head, plan.heads, work.weights,
    )  # fmt: skip
    keep(listener, "attn.weights", own, head, tile, work.weights, 0)
    step, boolean_at = (
        plan.floats[plan.table[own, columns.STEP] + head],
        values_at(plan, plan.heads),
    )
    attention.binarize(work.weights, plan.tokens, step, work.heads, boolean_at, work.ones)
    keep(listener, "attn.prob.bit", own, head, tile, work.heads, boolean_at)
    attention.attend(
        plan.path, work.heads, boolean_at, values_at(plan, head), plan.tokens, plan.head_dim,
        work.ones, step, work.ints, work.low, head * plan.head_dim * LANES,
    )  # fmt: skip


@register_jitable
def _classify(listener, plan, work, logits):
    """LayerNorm, pooling and the head; the pooled token is lane 0 of `low`."""
    mean_pool = plan.first == 0
    if mean_pool:
        work.low[:] = 0
    for tile in range(plan.tiles if mean_pool or listener is not None else 1):
        tiles.normalise(
            work.x, tile * plan.channels * LANES, plan.channels,
            plan.floats, plan.norm_weight, plan.norm_bias, plan.eps, work.out, 0, LANES,
        )  # fmt: skip
        keep(listener, "norm.out", 0, 0, tile, work.out, 0)
        if mean_pool:
            tiles.pool(work.out, plan.channels, plan.tokens, tile * LANES, work.low)
        elif tile == 0:
            work.low[:] = work.out
    dense.classify(
        plan.head, plan.channels, work.low, plan.floats, plan.head_bias, work.linear, logits
    )


@register_jitable
def _decode(listener, plan, work, logits):
    """LayerNorm and the linear decoder's head for every token of the grid."""
    for tile in range(plan.tiles):
        tiles.normalise(
            work.x, tile * plan.channels * LANES, plan.channels,
            plan.floats, plan.norm_weight, plan.norm_bias, plan.eps, work.out, 0, LANES,
        )  # fmt: skip
        keep(listener, "norm.out", 0, 0, tile, work.out, 0)
        dense.decode(
            plan.head, plan.channels, work.out, plan.floats, plan.head_bias, work.linear, logits,
            plan.classes, tile * LANES - plan.first, plan.grid[0] * plan.grid[1],
        )  # fmt: skip
