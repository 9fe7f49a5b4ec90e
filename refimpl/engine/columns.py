"""Columns of `Plan.table`: what a unit of a block has, each the place of an array in `floats`.

INPUTS and OUTPUTS are numbers of channels, BITS is a place in `bits`. Patch merging is a unit too,
and a level of a pyramid; their LayerNorm is NORM1.
"""

INPUTS, OUTPUTS, BITS = range(3)
SCALE, MOVE, HEAD_MOVE, NORM_WEIGHT, NORM_BIAS = range(3, 8)
SHIFT_IN, SLOPE, SHIFT_OUT, TOKEN_IN, TOKEN_OUT = range(8, 13)  # RPReLU
STEP, BAND_WEIGHT, SHORTCUT, NEIGHBOUR = range(13, 17)  # attention; STEP is alpha' by head
POSITION_BIAS, ORDER, KINDS = range(17, 20)  # of windows, the last two in `windows`; see plan
NORM1_WEIGHT, NORM1_BIAS, ALPHA1, BETA1 = range(20, 24)  # of a block; alpha and beta of LayerScale
NORM2_WEIGHT, NORM2_BIAS, ALPHA2, BETA2 = range(24, 28)
LATERAL, LATERAL_BIAS, SMOOTH, SMOOTH_BIAS = range(28, 32)  # of a level; see dense.blocked
COUNT = 32
