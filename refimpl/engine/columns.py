"""Columns of `Plan.table`: what a unit of a block has, each the place of an array in `floats`.

INPUTS and OUTPUTS are numbers of channels, BITS is a place in `bits`. Patch merging is a unit too,
and a level of a pyramid; their LayerNorm is NORM1. COEFFICIENTS: see `tiles.channel`.
"""

INPUTS, OUTPUTS, BITS = range(3)
SCALE, MOVE, HEAD_MOVE, COEFFICIENTS, TOKEN_IN, TOKEN_OUT = range(3, 9)
STEP, BAND_WEIGHT, DIFFERENTIAL = range(9, 12)  # attention; STEP is alpha' by head
POSITION_BIAS, ORDER, KINDS = range(12, 15)  # of windows, the last two in `windows`; see plan
NORM1_WEIGHT, NORM1_BIAS, ALPHA1, BETA1 = range(15, 19)  # of a block; alpha and beta of LayerScale
NORM2_WEIGHT, NORM2_BIAS, ALPHA2, BETA2 = range(19, 23)
LATERAL, LATERAL_BIAS, SMOOTH, SMOOTH_BIAS = range(23, 27)  # of a level; see dense.blocked
COUNT = 27
