"""The equations. One operation a file: forward, and backward right below it. NumPy only.

Every operation is two pure functions, `forward(inputs) -> (y, cache)` and
`backward(dy, cache) -> gradients`, a tuple in the order of forward's array arguments, None where
an optional one was None. (`haar` holds linear maps, which need no cache.) Shapes and letters:
`refimpl.conventions`; the equations: `refimpl/SPEC.md`.
"""

from refimpl.ops import (
    band_sum,
    bands,
    binary_linear,
    boolean,
    boolean_attention,
    convolution,
    cross_entropy,
    differential,
    fit,
    gelu,
    haar,
    interpolate,
    layer_norm,
    layer_scale,
    linear,
    matmul,
    merge_patches,
    neighbours,
    patch_embed,
    pixel_cross_entropy,
    position_bias,
    rprelu,
    sign,
    soft_cross_entropy,
    softmax,
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
    "rprelu",
    "sign",
    "soft_cross_entropy",
    "softmax",
    "weight_binarizer",
    "windows",
]
