"""One image through the network, tile by tile of sixteen tokens [SPEC 5, 6].

A block is three sweeps. The first feeds attention, tile by tile: bands, projections, packed queries
and keys; values, which are packed over the tokens, need it whole. The second is attention, over all
tokens or window by window: a window is cut out of the tiles of the grid, and its context is put
back. The third does all the rest of a tile, to the end of the MLP, without leaving the cache.

The functions here only put kernels in order. They are compiled into one; called from Python they
run as they stand, kernel by kernel, and then `keep` shows a listener every value on its way.
"""

from __future__ import annotations

from collections.abc import Callable

from numba.extending import register_jitable

from refimpl.engine import columns, pyramid
from refimpl.engine.clock import (
    BANDS,
    CONTEXT,
    EMBEDDING,
    FINISH,
    HEAD,
    NEIGHBOURS,
    NORM,
    PACK,
    PRODUCT,
    SCORES,
    SOFTMAX,
    VALUES,
    WINDOWS,
    lap,
)
from refimpl.engine.parts import FINE, extra, keep, shows
from refimpl.engine.plan import (
    Plan,
    Work,
    decoded_row,
    grid_head_at,
    head_at,
    level_of,
    masks_of,
    stage_at,
    values_at,
    words,
)
from refimpl.kernels import attention, cache, dense, levels, stencils, tiles, windows
from refimpl.kernels.compile import borrow, entry
from refimpl.kernels.vector import LANES


@register_jitable
def forward(listener: Callable | None, plan: Plan, work: Work, image, logits) -> int:
    """image (channels, H, W) -> logits (classes,), float32; with a decoder (classes * H * W,).

    Returns FINE, or the row of the table in which NaN or infinity entered a sign first.
    """
    plan, work = borrow(plan), borrow(work)
    stage, status = stage_at(plan, 0), FINE
    _embed(listener, plan, stage, work, image)
    for s in range(len(plan.stages)):
        stage = stage_at(plan, s)
        if s > 0:
            status = _first(status, _merge(listener, plan, stage, work, s - 1))
        for block in range(stage.begin, stage.end):
            status = _first(status, _block(listener, plan, stage, work, block))
        if plan.pyramid:
            pyramid.lateral(listener, plan, stage, work, s)
    if plan.pyramid:
        stage = stage_at(plan, 0)
        pyramid.combine(listener, plan, work)
    if plan.decode:
        _decode(listener, plan, stage, work, logits)
    else:
        _classify(listener, plan, stage, work, logits)
    lap(listener, HEAD)
    return status


@register_jitable
def _first(status, later):
    """The first of two that is not FINE."""
    return later if status == FINE else status


# As one call, without a listener or with a clock in its place; by Plan.extras.
COMPILED = {extras or None: entry(forward, name) for extras, name in cache.FORWARD.items()}


@register_jitable
def _embed(listener, plan, stage, work, image):
    """The tokens that enter the first block, in the stream."""
    lanes = stage.tiles * LANES
    for begin in range(0, stage.tiles, dense.TOGETHER):
        count = min(dense.TOGETHER, stage.tiles - begin)
        for tile in range(count):
            dense.patches(
                image, plan.corners, (begin + tile) * LANES, plan.patch,
                work.pixels, tile * plan.pixels * LANES,
            )  # fmt: skip
        dense.embed(
            work.pixels, plan.pixels, count, plan.embed, stage.channels, plan.floats, plan.bias,
            work.hidden, work.x, begin * stage.channels * LANES,
        )  # fmt: skip
    for tile in range(stage.tiles):
        x_at = tile * stage.channels * LANES
        keep(listener, "patch_embed.out", 0, 0, tile, work.x, x_at)
        if plan.windowed:
            tiles.normalise(
                work.x, x_at, stage.channels,
                plan.floats, plan.embed_norm_weight, plan.embed_norm_bias, plan.eps,
                work.x, x_at, LANES,
            )  # fmt: skip
        else:
            dense.position(
                work.x, x_at, stage.channels, plan.floats, plan.cls_token, plan.position, lanes,
                masks_of(plan, stage), tile * LANES,
            )  # fmt: skip
        keep(listener, "tokens", 0, 0, tile, work.x, x_at)
    lap(listener, EMBEDDING)


@extra
def _merge(listener, plan, stage, work, merge):
    """Patch merging, from the stream of the stage before to that of this one."""
    row, before = plan.blocks * plan.rows + merge, stage_at(plan, merge)
    inputs, status = plan.table[row, columns.INPUTS], FINE
    for tile in range(stage.tiles):
        # No token's neighbours lie before twice its own place, where the stream, as it is written
        # with twice the channels, has not come yet.
        windows.merge_patches(
            work.x, before.channels, tile * LANES, stage.tokens, stage.width, work.hidden
        )
        keep(listener, "patches", row, 0, tile, work.hidden, 0)
        lap(listener, WINDOWS)
        fine = tiles.normalise(
            work.hidden, 0, inputs,
            plan.floats, plan.table[row, columns.NORM1_WEIGHT], plan.table[row, columns.NORM1_BIAS],
            plan.eps, work.hidden, 0, LANES,
        )  # fmt: skip
        keep(listener, "norm.out", row, 0, tile, work.hidden, 0)
        lap(listener, NORM)
        x_at = tile * stage.channels * LANES
        fine &= _project(
            listener, plan, work, row, tile, work.hidden, 0, LANES, work.x, x_at, LANES
        )
        keep(listener, "out", row, 0, tile, work.x, x_at)
        status = _first(status, FINE if fine else row)
    return status


@register_jitable
def _block(listener, plan, stage, work, block):
    own = block * plan.rows + plan.rows - 1
    status, read = FINE, _tiles_read(listener, plan, stage, block)
    for tile in range(stage.tiles):
        fine = tiles.normalise(
            work.x, tile * stage.channels * LANES, stage.channels,
            plan.floats, plan.table[own, columns.NORM1_WEIGHT], plan.table[own, columns.NORM1_BIAS],
            plan.eps, work.normalised, stage.margin + tile * LANES, stage.pitch,
        )  # fmt: skip
        status = _first(status, FINE if fine else block * plan.rows)
    keep(listener, "norm1.out", own, 0, 0, work.normalised, 0)
    lap(listener, NORM)
    for tile in range(stage.tiles):
        fine = _feed_attention(listener, plan, stage, work, block, tile, tile < read)
        status = _first(status, fine)
    value = block * plan.rows + plan.inputs - 1
    keep(listener, "value.out", value, 0, 0, work.value, 0)
    for window in range(stage.windows):
        _attend(listener, plan, stage, work, own, value, window, min(read, stage.slots))
    for tile in range(read):
        status = _first(status, _finish_block(listener, plan, stage, work, block, tile))
    return status


@register_jitable
def _tiles_read(listener, plan, stage, block):
    """Tiles that a block must answer for: behind the last one the class token alone is read."""
    alone = plan.first == 1 and not plan.decode and block == plan.blocks - 1
    return 1 if alone and not shows(listener) else stage.tiles


@register_jitable
def _feed_attention(listener, plan, stage, work, block, tile, asks):
    """Projections of a tile -> its packed queries and keys, their sum, and its values.

    asks: whether anybody reads what its queries find.
    """
    here = stage.margin + tile * LANES
    own, status = block * plan.rows + plan.rows - 1, FINE
    if plan.haar:
        _split(plan, stage, work, tile)
        keep(listener, "low", own, 0, tile, work.low, 0)
        keep(listener, "high", own, 0, tile, work.high, 0)
        lap(listener, BANDS)
    for t in range(plan.inputs - 1):
        row, source, at, step = block * plan.rows + t, work.normalised, here, stage.pitch
        if plan.haar:
            source, at, step = work.low if t < 2 else work.high, 0, LANES
        if asks or t % 2 == 1:
            fine = _project_heads(listener, plan, stage, work, row, t, tile, source, at, step)
            status = _first(status, FINE if fine else row)
    row = block * plan.rows + plan.inputs - 1
    fine = _project(
        listener, plan, work, row, tile, work.normalised, here, stage.pitch,
        work.value, here, stage.pitch,
    )  # fmt: skip
    move = plan.table[row, columns.HEAD_MOVE]
    fine &= _finite(plan.loud, work.value, here, stage.pitch, stage.channels, plan.floats, move)
    return _first(status, FINE if fine else row)


@register_jitable
def _project_heads(listener, plan, stage, work, row, t, tile, x, x_at, x_step):
    """Packed queries or keys t of a tile; what they are the signs of is in `linear`."""
    table = plan.table
    fine = _pack(listener, plan, work, row, tile, x, x_at, x_step)
    _multiply(listener, plan, work, row, tile, work.linear)
    place, step = head_at(plan, stage, t, 0, tile), head_at(plan, stage, 0, 1, 0)
    if plan.windowed:
        place = grid_head_at(plan, stage, t, 0, tile)
        step = grid_head_at(plan, stage, t, 1, tile) - place
    move = table[row, columns.HEAD_MOVE]
    tiles.finish_heads(
        work.linear, work.norm, stage.heads, plan.head_dim, x, x_at, x_step,
        plan.floats, table[row, columns.COEFFICIENTS],
        table[row, columns.TOKEN_IN] + tile * LANES, table[row, columns.TOKEN_OUT] + tile * LANES,
        move, work.heads, place, step, shows(listener) or plan.loud,
        work.shortcut, tile * stage.channels * LANES, t == 0,
    )  # fmt: skip
    if not plan.windowed:
        for head in range(stage.heads):
            keep(listener, "head_bit", row, head, tile, work.heads, place + head * step)
    keep(listener, "out", row, 0, tile, work.linear, 0)
    lap(listener, FINISH)
    return fine & _finite(plan.loud, work.linear, 0, LANES, stage.channels, plan.floats, move)


@register_jitable
def _split(plan, stage, work, tile):
    if not plan.split:
        here = stage.margin + tile * LANES
        tiles.cut(work.normalised, stage.pitch, here, stage.channels, work.low)
        tiles.cut(work.normalised, stage.pitch, here, stage.channels, work.high)
        if tile == 0 and plan.first == 1 and not plan.high_cls:
            for c in range(stage.channels):
                work.high[c * LANES] = 0
    elif plan.periodic:
        stencils.periodic_bands(
            work.normalised, stage.pitch, stage.margin, stage.channels, plan.first,
            (stage.height, stage.width),
            stage.tokens, tile * LANES, plan.high_cls, work.low, work.high,
        )  # fmt: skip
    else:
        stencils.bands(
            work.normalised, stage.pitch, stage.margin, stage.channels, masks_of(plan, stage),
            stage.tiles * LANES, tile * LANES, stage.width, plan.high_cls, work.low, work.high,
        )  # fmt: skip


@register_jitable
def _project(listener, plan, work, row, tile, x, x_at, x_step, out, out_at, out_step):
    """P(x; I -> O) of a tile; False where NaN or infinity entered the sign."""
    fine = _pack(listener, plan, work, row, tile, x, x_at, x_step)
    _multiply(listener, plan, work, row, tile, work.linear)
    _finish(listener, plan, work, row, tile, x, x_at, x_step, out, out_at, out_step)
    return fine


@register_jitable
def _pack(listener, plan, work, row, tile, x, x_at, x_step):
    """The signs of a projection's input, in `words`."""
    inputs, move = plan.table[row, columns.INPUTS], plan.table[row, columns.MOVE]
    tiles.pack(x, x_at, x_step, inputs, plan.floats, move, work.words, 0)
    keep(listener, "bit", row, 0, tile, work.words, 0)
    lap(listener, PACK)
    return _finite(plan.loud, x, x_at, x_step, inputs, plan.floats, move)


@register_jitable
def _finite(loud, x, x_at, x_step, channels, floats, move):
    """Whether what enters a sign is; a LayerNorm has seen to it where no parameter is large."""
    return not loud or tiles.finite(x, x_at, x_step, channels, floats, move)


@register_jitable
def _multiply(listener, plan, work, row, tile, linear):
    """The product of what is in `words`, less its level, and in `norm` LayerNorm's part in it."""
    table = plan.table
    tiles.multiply(
        plan.path, work.words, table[row, columns.INPUTS], plan.bits, table[row, columns.BITS],
        table[row, columns.OUTPUTS], plan.floats, table[row, columns.SCALE], plan.eps,
        work.ints, linear, work.norm,
    )  # fmt: skip
    keep(listener, "deviation", row, 0, tile, linear, 0)
    keep(listener, "norm", row, 0, tile, work.norm, 0)
    lap(listener, PRODUCT)


@register_jitable
def _finish(listener, plan, work, row, tile, x, x_at, x_step, out, out_at, out_step):
    """LayerNorm, shortcut and RPReLU of what is in `linear`."""
    table = plan.table
    tiles.finish(
        work.linear, work.norm, table[row, columns.OUTPUTS], x, x_at, x_step,
        table[row, columns.INPUTS], plan.floats, table[row, columns.COEFFICIENTS],
        table[row, columns.TOKEN_IN] + tile * LANES, table[row, columns.TOKEN_OUT] + tile * LANES,
        out, out_at, out_step,
    )  # fmt: skip
    lap(listener, FINISH)


@register_jitable
def _attend(listener, plan, stage, work, own, value, window, slots):
    """The context of a window, in the place of the field `normalised`, which nobody reads again.

    slots: so many tiles of queries.
    """
    values, pitch, at, order, bias = work.value, stage.pitch, stage.margin, 0, 0
    if plan.windowed:
        order, bias = _windows(plan, stage, own, window)
        _cut(listener, plan, stage, work, value, window, order)
        values, pitch, at = work.hidden, stage.slots * LANES, 0
        lap(listener, WINDOWS)
    attention.pack_values(
        values, pitch, at, stage.keys, stage.channels, plan.head_dim,
        plan.floats, plan.table[value, columns.HEAD_MOVE], work.heads, values_at(plan, stage, 0),
    )  # fmt: skip
    for head in range(stage.heads):
        keep(listener, "head_bit", value, head, window, work.heads, values_at(plan, stage, head))
    lap(listener, VALUES)
    context, context_at = work.low, 0
    for slot in range(slots):
        if not plan.windowed:
            context, context_at = work.normalised, slot * stage.channels * LANES
        for head in range(stage.heads):
            _attend_head(
                listener, plan, stage, work, own, window, slot, head, bias, context, context_at
            )
        if plan.windowed:
            _put_back(listener, plan, stage, work, order + slot * LANES)


@register_jitable
def _windows(plan, stage, own, window):
    """Places of the order of a window, and of what is added to its scores."""
    kind = plan.windows[plan.table[own, columns.KINDS] + window]
    added = stage.heads * stage.slots * stage.keys * LANES  # of a kind
    return (
        plan.table[own, columns.ORDER] + window * stage.slots * LANES,
        plan.table[own, columns.POSITION_BIAS] + kind * added,
    )


@extra
def _cut(listener, plan, stage, work, value, window, order):
    """Queries, keys and values of a window, these in `hidden`; value: their row of the table."""
    places = stage.slots * LANES
    for t in range(plan.inputs - 1):
        row = value - plan.inputs + 1 + t
        for head in range(stage.heads):
            windows.cut_words(
                work.heads, grid_head_at(plan, stage, t, head, 0), words(plan.head_dim),
                plan.windows, order, places, work.heads, head_at(plan, stage, t, head, 0),
            )  # fmt: skip
            for slot in range(stage.slots):
                place = head_at(plan, stage, t, head, slot)
                keep(listener, "head_bit", row, head, window, work.heads, place)
    windows.cut_field(
        work.value, stage.pitch, stage.margin, stage.channels, plan.windows, order, places,
        work.hidden,
    )  # fmt: skip


@extra
def _put_back(listener, plan, stage, work, order):
    """The context of a tile of a window's queries, from `low`."""
    windows.put_back(work.low, stage.channels, plan.windows, order, work.normalised)
    lap(listener, WINDOWS)


@register_jitable
def _attend_head(listener, plan, stage, work, own, window, slot, head, bias, context, context_at):
    """The context of a tile of a window's queries for a head, into its channels of a tile.

    bias: where what is added to the scores of the window begins, 0 where there is nothing.
    """
    if bias > 0:
        bias += (head * stage.slots + slot) * stage.keys * LANES
    rows = stage.slots * LANES
    for band in range(2 if plan.haar else 1):
        queries = head_at(plan, stage, 2 * band, head, slot)
        keys = head_at(plan, stage, 2 * band + 1, head, 0)
        attention.products(
            plan.path, work.heads, queries, keys, plan.head_dim, stage.slots,
            work.ints, band * rows * LANES,
        )  # fmt: skip
    keep(listener, "scores", own, head, window, work.ints, 0)
    lap(listener, SCORES)
    attention.weigh(
        work.ints, rows * LANES if plan.haar else 0, stage.keys, plan.head_dim,
        plan.floats, plan.table[own, columns.BAND_WEIGHT] + head, stage.heads, bias, work.weights,
    )  # fmt: skip
    keep(listener, "weights", own, head, window, work.weights, 0)
    step, boolean_at = (
        plan.floats[plan.table[own, columns.STEP] + head],
        values_at(plan, stage, stage.heads),
    )
    attention.binarize(work.weights, stage.keys, step, work.heads, boolean_at, work.ones)
    keep(listener, "boolean", own, head, window, work.heads, boolean_at)
    lap(listener, SOFTMAX)
    attention.attend(
        plan.path, work.heads, boolean_at, values_at(plan, stage, head), stage.keys, plan.head_dim,
        work.ones, slot if plan.differences else -1, step,
        work.ints, context, context_at + head * plan.head_dim * LANES,
    )  # fmt: skip
    lap(listener, CONTEXT)


@register_jitable
def _finish_block(listener, plan, stage, work, block, tile):
    """From the scores of a tile's queries to the end of the block."""
    own = block * plan.rows + plan.rows - 1
    proj, up, down = own - 3, own - 2, own - 1
    table, floats = plan.table, plan.floats
    x_at, fourfold = tile * stage.channels * LANES, stage.hidden == 4 * stage.channels
    _gather(listener, plan, stage, work, own, tile)
    fine = _pack(listener, plan, work, proj, tile, work.low, 0, LANES)
    status = FINE if fine else proj
    _multiply(listener, plan, work, proj, tile, work.linear)
    _add(
        listener, plan, stage, work, proj, tile, work.low, stage.channels,
        table[own, columns.ALPHA1], table[own, columns.BETA1],
    )  # fmt: skip
    keep(listener, "mid", own, 0, tile, work.x, x_at)
    fine = tiles.normalise(
        work.x, x_at, stage.channels,
        floats, table[own, columns.NORM2_WEIGHT], table[own, columns.NORM2_BIAS], plan.eps,
        work.low, 0, LANES,
    )  # fmt: skip
    keep(listener, "norm2.out", own, 0, tile, work.low, 0)
    lap(listener, NORM)
    fine &= _pack(listener, plan, work, up, tile, work.low, 0, LANES)
    status = _first(status, FINE if fine else up)
    _multiply(listener, plan, work, up, tile, work.hidden)
    tiles.finish_signs(
        work.hidden, work.norm, stage.hidden, work.low, 0, LANES, stage.channels,
        floats, table[up, columns.COEFFICIENTS],
        table[up, columns.TOKEN_IN] + tile * LANES, table[up, columns.TOKEN_OUT] + tile * LANES,
        table[down, columns.MOVE], work.words, shows(listener) or plan.loud or not fourfold,
        work.high,
    )  # fmt: skip
    keep(listener, "out", up, 0, tile, work.hidden, 0)
    keep(listener, "bit", down, 0, tile, work.words, 0)
    lap(listener, FINISH)
    move = table[down, columns.MOVE]
    fine = _finite(plan.loud, work.hidden, 0, LANES, stage.hidden, floats, move)
    status = _first(status, FINE if fine else down)
    _multiply(listener, plan, work, down, tile, work.linear)
    shortcut, inputs = work.hidden, stage.hidden
    if fourfold:
        shortcut, inputs = work.high, stage.channels
    _add(
        listener, plan, stage, work, down, tile, shortcut, inputs,
        table[own, columns.ALPHA2], table[own, columns.BETA2],
    )  # fmt: skip
    keep(listener, "out", own, 0, tile, work.x, x_at)
    return status


@register_jitable
def _add(listener, plan, stage, work, row, tile, x, inputs, alpha, beta):
    """The rest of a projection of which `linear` is the product, added to the stream's tile."""
    table, kept = plan.table, shows(listener)
    tiles.finish_onto(
        work.linear, work.norm, stage.channels, x, inputs,
        plan.floats, table[row, columns.COEFFICIENTS],
        table[row, columns.TOKEN_IN] + tile * LANES, table[row, columns.TOKEN_OUT] + tile * LANES,
        kept, work.out, work.x, tile * stage.channels * LANES, alpha, beta,
    )  # fmt: skip
    keep(listener, "out", row, 0, tile, work.out, 0)
    lap(listener, FINISH)


@register_jitable
def _gather(listener, plan, stage, work, own, tile):
    """RPReLU_o of what attention gathers for a tile, in `low`."""
    floats, table, here = plan.floats, plan.table, stage.margin + tile * LANES
    x_at = tile * stage.channels * LANES
    keep(listener, "context", own, 0, tile, work.normalised, x_at)
    tiles.centre(work.normalised, x_at, stage.channels, plan.eps, work.linear, work.norm)
    keep(listener, "deviation", own, 0, tile, work.linear, 0)
    keep(listener, "norm", own, 0, tile, work.norm, 0)
    lap(listener, NORM)
    if plan.differential:
        stencils.differential(
            work.value, stage.pitch, stage.margin, stage.channels,
            masks_of(plan, stage), plan.counts[stage.counts : stage.counts + stage.tiles * LANES],
            stage.tiles * LANES, tile * LANES, stage.width,
            floats, table[own, columns.DIFFERENTIAL], work.high, work.out,
        )  # fmt: skip
        keep(listener, "neighbour mean", own, 0, tile, work.high, 0)
        lap(listener, NEIGHBOURS)
    else:
        tiles.cut(work.value, stage.pitch, here, stage.channels, work.out)
    tiles.combine(
        work.linear, work.norm, work.shortcut, x_at, work.out, stage.channels,
        floats, table[own, columns.COEFFICIENTS],
        table[own, columns.TOKEN_IN] + tile * LANES, table[own, columns.TOKEN_OUT] + tile * LANES,
        work.low,
    )  # fmt: skip
    keep(listener, "attended", own, 0, tile, work.low, 0)
    lap(listener, FINISH)


@register_jitable
def _classify(listener, plan, stage, work, logits):
    """LayerNorm, pooling and the head; the pooled token is lane 0 of `low`."""
    mean_pool = plan.first == 0
    if mean_pool:
        tiles.clear(work.low, stage.channels)
    for tile in range(stage.tiles if mean_pool or listener is not None else 1):
        tiles.normalise(
            work.x, tile * stage.channels * LANES, stage.channels,
            plan.floats, plan.norm_weight, plan.norm_bias, plan.eps, work.out, 0, LANES,
        )  # fmt: skip
        keep(listener, "norm.out", decoded_row(plan), 0, tile, work.out, 0)
        if mean_pool:
            tiles.pool(work.out, stage.channels, stage.tokens, tile * LANES, work.low)
        elif tile == 0:
            tiles.cut(work.out, LANES, 0, stage.channels, work.low)
    dense.classify(
        plan.head, stage.channels, work.low, plan.floats, plan.head_bias, work.linear, logits
    )


@extra
def _decode(listener, plan, stage, work, logits):
    """The head for every token of the stage's grid, and its answers enlarged to the image.

    The tokens are the first level of the pyramid, or LayerNorm of the stream.
    """
    level = level_of(plan, stage, work)
    for tile in range(stage.tiles):
        here = stage.margin + tile * LANES
        if plan.pyramid:
            tiles.cut(level, stage.pitch, here, stage.channels, work.out)
        else:
            tiles.normalise(
                work.x, tile * stage.channels * LANES, stage.channels,
                plan.floats, plan.norm_weight, plan.norm_bias, plan.eps, work.out, 0, LANES,
            )  # fmt: skip
            keep(listener, "norm.out", decoded_row(plan), 0, tile, work.out, 0)
        dense.linear(
            work.out, stage.channels, plan.head, 0, plan.classes, plan.floats, plan.head_bias,
            work.linear, work.answers, stage.pitch, here,
        )  # fmt: skip
    keep(listener, "head.out", decoded_row(plan), 0, 0, work.answers, 0)
    levels.enlarge(
        work.answers, stage.pitch, stage.margin + plan.first, (stage.height, stage.width),
        plan.classes, plan.factor, work.room,
        logits, stage.height * stage.width * plan.factor**2, 0, True,
    )  # fmt: skip
