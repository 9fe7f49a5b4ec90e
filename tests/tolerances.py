"""The ladder of tolerances, for whatever is compared with an oracle.

Everything is relative to the largest entry of the golden tensor. A tolerance relative to each entry
would reject the rounding of a sum that happens to cancel; an absolute one would accept anything
where gradients are small.
"""

from __future__ import annotations

import numpy as np

# Haar: reconstruction and adjoint. A few roundings of values of order 1, no long sums.
HAAR = {np.dtype(np.float64): 1e-14, np.dtype(np.float32): 6e-7}

# float64 against torch's float64, one op, relative to the tensor's largest entry.
FLOAT64 = 1e-10

# float32 against torch's float32, one op: this many ulp times sqrt(reduction length).
FEW_ULP = 4

# Analytic gradients of smooth ops against central differences, float64.
FINITE_DIFFERENCE = 1e-6

# Whole networks in float64: logits, and the gradient of every parameter.
NETWORK_LOGITS = 1e-9
NETWORK_GRADIENTS = 1e-8

# A gradient that is 0 in exact arithmetic (the loss does not depend on the parameter) comes out as
# rounding noise. It is judged against this share of the network's largest gradient.
STRUCTURAL_ZERO = 1e-6


def relative(dtype: np.dtype, length: int) -> float:
    """What one op may differ by from torch, relative to the largest entry of a tensor.

    `length` is the number of terms in the op's longest sum; rounding errors of a sum of n terms
    grow like sqrt(n). The float64 step does not depend on it: it leaves room for 4e5 ulp, far more
    than any sum of a test needs and far less than any wrong equation gives.
    """
    if dtype == np.float64:
        return FLOAT64
    return FEW_ULP * float(np.finfo(dtype).eps) * float(np.sqrt(length))


def disagreement(actual: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    """Largest difference relative to the largest entry of `expected`, or to `floor` if greater."""
    scale = max(float(np.max(np.abs(expected), initial=0.0)), floor)
    difference = float(np.max(np.abs(actual - expected), initial=0.0))
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0.0 else float("inf")
