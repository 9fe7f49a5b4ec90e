"""The pyramid over the stages of one image, decoder="fpn" [SPEC 10].

Each stage hands over its level before its tokens are merged: `lateral`. `combine` goes from the
last level down to the tops, then through the convolutions and the sum; all of it in place.
"""

from __future__ import annotations

from numba.extending import register_jitable

from refimpl.engine import columns
from refimpl.engine.parts import extra, keep
from refimpl.engine.plan import level_of, level_row, masks_of, stage_at
from refimpl.kernels import dense, levels, stencils, tiles
from refimpl.kernels.vector import LANES


@extra
def lateral(listener, plan, stage, work, s):
    """LayerNorm and linear of the stream, into level s."""
    row, table, level = level_row(plan, s), plan.table, level_of(plan, stage, work)
    D = stage_at(plan, 0).channels
    for tile in range(stage.tiles):
        tiles.normalise(
            work.x, tile * stage.channels * LANES, stage.channels,
            plan.floats, table[row, columns.NORM1_WEIGHT], table[row, columns.NORM1_BIAS], plan.eps,
            work.out, 0, LANES,
        )  # fmt: skip
        keep(listener, "norm.out", row, 0, tile, work.out, 0)
        dense.linear(
            work.out, stage.channels, plan.floats, table[row, columns.LATERAL], D,
            plan.floats, table[row, columns.LATERAL_BIAS],
            work.linear, level, stage.pitch, stage.margin + tile * LANES,
        )  # fmt: skip
    keep(listener, "lateral.out", row, 0, 0, level, 0)


@extra
def combine(listener, plan, work):
    """The laterals of all levels -> what the head reads, in level 0."""
    count = len(plan.stages)
    for s in range(count - 2, -1, -1):
        _add(plan, work, s + 1, s)
        keep(listener, "top", level_row(plan, s), 0, 0, level_of(plan, stage_at(plan, s), work), 0)
    for s in range(count):
        _smooth(listener, plan, work, s)
    for s in range(1, count):
        _add(plan, work, s, 0)
    total, row = level_of(plan, stage_at(plan, 0), work), level_row(plan, 0)
    keep(listener, "decoder.sum", row, 0, 0, total, 0)
    levels.gelu(total)
    keep(listener, "decoder.gelu.out", row, 0, 0, total, 0)


@register_jitable
def _add(plan, work, later, s):
    """Add a later level to level s, on the grid of that."""
    stage, source = stage_at(plan, s), stage_at(plan, later)
    levels.enlarge(
        level_of(plan, source, work), source.pitch, source.margin, (source.height, source.width),
        stage_at(plan, 0).channels, 2 ** (later - s), work.room,
        level_of(plan, stage, work), stage.pitch, stage.margin, False,
    )  # fmt: skip


@register_jitable
def _smooth(listener, plan, work, s):
    """The convolution of level s, by way of the field of the values, which nobody reads again."""
    row, stage, table = level_row(plan, s), stage_at(plan, s), plan.table
    D, lanes, level = stage_at(plan, 0).channels, stage.tiles * LANES, level_of(plan, stage, work)
    levels.copy(level, work.value)
    for tile in range(stage.tiles):
        stencils.around(
            work.value, stage.pitch, stage.margin, D, masks_of(plan, stage), lanes, tile * LANES,
            stage.width, work.hidden,
        )  # fmt: skip
        dense.linear(
            work.hidden, (stencils.GRID + 1) * D, plan.floats, table[row, columns.SMOOTH], D,
            plan.floats, table[row, columns.SMOOTH_BIAS],
            work.linear, level, stage.pitch, stage.margin + tile * LANES,
        )  # fmt: skip
    keep(listener, "smooth.out", row, 0, 0, level, 0)
