"""The attributes of `refimpl.ops`, with fused twins in the places where they pay.

    from refimpl.kernels import backend

    logits, cache = model.forward(params, images, backend=backend)
    dimages, grads = model.backward(dlogits, cache)

What is not imported from `twins` here is the operation itself: NumPy or BLAS is as fast as a twin
would be, or too little time is spent in it.
"""

from refimpl import ops
from refimpl.kernels.twins import (  # noqa: F401 - read by name
    attention,
    band_sum,
    bands,
    binary_linear,
    boolean_attention,
    differential,
    gelu,
    layer_norm,
    neighbours,
    projection,
    rprelu,
    sign,
    softmax,
)

__all__ = [*ops.__all__, "attention", "projection"]
globals().update({name: getattr(ops, name) for name in ops.__all__ if name not in globals()})
