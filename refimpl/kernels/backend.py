"""The attributes of `refimpl.ops`, with fused twins in the places where they pay.

    from refimpl.kernels import backend

    logits, cache = model.forward(params, images, backend=backend)
    dimages, grads = model.backward(dlogits, cache)

What is not imported from `twins` here is the operation itself: NumPy or BLAS is as fast as a twin
would be, or too little time is spent in it.
"""

from refimpl.kernels.twins import (
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
from refimpl.ops import (
    boolean,
    convolution,
    cross_entropy,
    fit,
    haar,
    interpolate,
    layer_scale,
    linear,
    matmul,
    merge_patches,
    patch_embed,
    pixel_cross_entropy,
    position_bias,
    soft_cross_entropy,
    weight_binarizer,
    windows,
)

__all__ = [
    "band_sum",
    "bands",
    "binary_linear",
    "boolean",
    "boolean_attention",
    "convolution",
    "cross_entropy",
    "differential",
    "fit",
    "gelu",
    "haar",
    "interpolate",
    "layer_norm",
    "layer_scale",
    "linear",
    "matmul",
    "merge_patches",
    "neighbours",
    "patch_embed",
    "pixel_cross_entropy",
    "position_bias",
    "projection",
    "rprelu",
    "sign",
    "soft_cross_entropy",
    "softmax",
    "weight_binarizer",
    "windows",
]
