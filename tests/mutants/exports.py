"""Wrong versions of what the networks become elsewhere: PyTorch and ONNX."""

from __future__ import annotations

import numpy as np

from tests.mutants import mutant

# PyTorch

TORCH = "test_torch.test_every_value_of_every_field"


@mutant("torch.functions._through_centring", TORCH, name="didb-pool-cls")
def torch_forgets_the_centring_of_weights(original):
    """The gradient of a binary matrix is not taken back through Wc = W - mean W."""
    return lambda dused, centred: dused * (centred.abs() <= 1)


@mutant("torch.functions._next", TORCH, name="didb-pool-cls")
def torch_wraps_the_grid(original):
    """Past the end of the grid comes its beginning, also in mode edge."""
    return lambda x, dim, mode: original(x, dim, "periodic")


@mutant("torch.functions.context_of", TORCH, name="react-context-differences")
def torch_sums_without_differences(original):
    """The token's own value is not subtracted."""
    return lambda weights, value, context: original(weights, value, "sum")


@mutant("torch.functions.split_heads", TORCH, name="deit-pool-cls")
def torch_deals_channels_to_heads_in_turn(original):
    """Channel c belongs to head c % heads."""

    def split_heads(x, heads, transposed=False):
        y = x.unflatten(-1, (-1, heads)).mT
        return y.permute(0, 2, 3, 1) if transposed else y.transpose(1, 2)

    return split_heads


# ONNX

ONNX = "test_onnx.test_a_small_network_passes"


@mutant("exporting.onnx._whole", ONNX, windows=False)
def onnx_reads_bytes_without_their_zero_point(original):
    """0 and 2 are multiplied instead of -1 and +1."""

    def _whole(g, y, a, b):
        zero = g.number(0, np.uint8)
        return g("MatMulInteger", a, b, zero, zero, to=y, kind="int")

    return _whole


@mutant("exporting.onnx._next", ONNX, windows=False)
def onnx_wraps_the_grid(original):
    """Past the end of the grid comes its beginning, also in mode edge."""
    return lambda g, x, axis, length, mode: original(g, x, axis, length, "periodic")


@mutant("exporting.onnx._order", ONNX, windows=True)
def onnx_does_not_shift_windows(original):
    """Every block has the windows of the first."""
    return lambda grid, window, shift: original(grid, window, 0)


@mutant("exporting.onnx._sign", ONNX, windows=False)
def onnx_takes_the_other_sign(original):
    """The bit of a projection's input is 1 below 0."""
    return lambda g, y, z, ste="polynomial": g("Less", z, g.number(0), to=y, kind="bit")
