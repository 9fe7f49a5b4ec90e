"""Columns of `Plan.table`: what a unit of a block has, each the place of an array in `floats`.

INPUTS and OUTPUTS are numbers of channels, BITS a place in `bits`, EXPONENTIAL is 0 or 1.
"""

INPUTS, OUTPUTS, BITS = range(3)
SCALE, MOVE, HEAD_MOVE, NORM_WEIGHT, NORM_BIAS = range(3, 8)
SHIFT_IN, SLOPE, SHIFT_OUT, TOKEN_IN, TOKEN_OUT = range(8, 13)  # RPReLU
STEP, TABLE, EXPONENTIAL, SHORTCUT, NEIGHBOUR = range(13, 18)  # attention; STEP is alpha' by head
NORM1_WEIGHT, NORM1_BIAS, ALPHA1, BETA1 = range(18, 22)  # of a block; alpha and beta of LayerScale
NORM2_WEIGHT, NORM2_BIAS, ALPHA2, BETA2 = range(22, 26)
COUNT = 26
