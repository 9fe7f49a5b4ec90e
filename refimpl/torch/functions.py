"""The operations of a list as functions of tensors, one each, by the names of `refimpl.ops`.

PyTorch differentiates all but four: the sign, binary matrices, alone and in a product, and boolean
attention have the surrogate gradients of [SPEC 2], written out below their forward. Arguments,
attributes and shapes are those of `refimpl.ops`. NaN and infinity that enter a threshold come out
as NaN, where NumPy's reference raises: to ask would make a device wait.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from refimpl import ops

Grid = tuple[int, int]


# --- tokens and their shapes ----------------------------------------------------------------------


def patch_embed(image: Any, weight: Any, bias: Any) -> Any:
    """Embed patches (B, channels, H, W) -> (B, gh*gw, C)."""
    return F.conv2d(image, weight, bias, stride=weight.shape[-1]).flatten(2).mT


def class_token(x: Any, token: Any) -> Any:
    """Put a token in front."""
    return torch.cat([token.expand(len(x), -1, -1), x], 1)


def drop_class_token(x: Any) -> Any:
    """Leave the first token out."""
    return x[:, 1:]


def position_embedding(x: Any, position: Any) -> Any:
    """Add a vector a place."""
    return x + position


def pool(x: Any, pool: str) -> Any:
    """Take the first token, or the mean of all: (B, N, C) -> (B, C)."""
    return x[:, 0] if pool == "cls" else x.mean(1)


def split(x: Any, parts: int) -> Any:
    """Cut the channels in equal parts."""
    return x.chunk(parts, -1)


def split_heads(x: Any, heads: int, transposed: bool = False) -> Any:
    """Hand channels to heads: (B, N, C) -> (B, heads, N, d), or transposed (B, heads, d, N)."""
    y = x.unflatten(-1, (heads, -1))
    return y.permute(0, 2, 3, 1) if transposed else y.transpose(1, 2)


def merge_heads(x: Any) -> Any:
    """Put heads side by side: (B, heads, N, d) -> (B, N, C)."""
    return x.transpose(1, 2).flatten(2)


def to_grid(x: Any, grid: Grid) -> Any:
    """See tokens as maps: (B, gh*gw, C) -> (B, C, gh, gw)."""
    return x.mT.unflatten(-1, grid)


def from_grid(x: Any) -> Any:
    """See maps as tokens: (B, C, gh, gw) -> (B, gh*gw, C)."""
    return x.flatten(2).mT


def windows(x: Any, grid: Grid, window: int, shift: int = 0) -> Any:
    """Roll and cut the grid: (B, gh*gw, C) -> (B*nW, M*M, C)."""
    order = _constant("order", x, grid, window, shift)
    return x[:, order].reshape(-1, window * window, x.shape[-1])


def join_windows(x: Any, grid: Grid, window: int, shift: int = 0) -> Any:
    """Put windows back on the grid: (B*nW, M*M, C) -> (B, gh*gw, C)."""
    back = _constant("back", x, grid, window, shift)
    return x.reshape(-1, len(back), x.shape[-1])[:, back]


def merge_patches(x: Any, grid: Grid) -> Any:
    """Put 2 x 2 neighbours side by side, in Swin's order: (B, gh*gw, C) -> (B, gh*gw / 4, 4C)."""
    gh, gw = grid
    blocks = x.reshape(len(x), gh // 2, 2, gw // 2, 2, -1).permute(0, 1, 3, 4, 2, 5)
    return blocks.reshape(len(x), gh * gw // 4, -1)


def fit(x: Any, outputs: int) -> Any:
    """Repeat channels, or take means of neighbouring ones, until there are `outputs`."""
    inputs = x.shape[-1]
    if outputs == inputs:
        return x
    if outputs > inputs:
        return torch.cat([x] * (outputs // inputs), -1)
    return x.unflatten(-1, (outputs, -1)).mean(-1)


def interpolate(x: Any, size: Grid, mode: str = "bicubic") -> Any:
    """Resize (..., H, W) to (..., h, w), each axis by a product with a small matrix."""
    rows, columns = x.shape[-2:]
    if rows != size[0]:
        x = _constant("weights", x, rows, size[0], mode) @ x
    if columns != size[1]:
        x = x @ _constant("weights", x, columns, size[1], mode).T
    return x


def resize_tokens(x: Any, grid: Grid, new_grid: Grid) -> Any:
    """Interpolate a parameter (1, N, C) or (N,) with an entry a token."""
    entries = x.reshape(-1, x.shape[-1] if x.ndim == 3 else 1)  # (N, C)
    first = len(entries) - math.prod(grid)
    maps = interpolate(entries[first:].T.unflatten(-1, grid), new_grid)
    entries = torch.cat([entries[:first], maps.flatten(1).T])
    return entries[None] if x.ndim == 3 else entries[:, 0]


# --- maps that are smooth -------------------------------------------------------------------------


def add(first: Any, *others: Any) -> Any:
    """Add terms from left to right."""
    return functools.reduce(torch.add, others, first)


def divide(x: Any, divisor: float) -> Any:
    """Divide by a number."""
    return x / divisor


def rescale(x: Any, factor: float) -> Any:
    """Multiply by a number."""
    return x * factor


def identity(x: Any) -> Any:
    """Give x under another name, with a gradient of its own."""
    return x.view_as(x)


def stop_gradient(x: Any) -> Any:
    """Give x, for which nothing is learned."""
    return x.detach()


def shift(x: Any, move: Any) -> Any:
    """Move every channel."""
    return x + move


def layer_scale(x: Any, alpha: Any, beta: Any = None) -> Any:
    """Scale every channel, and perhaps move it."""
    return alpha * x if beta is None else alpha * x + beta


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Give x W^T + b."""
    return F.linear(x, weight, bias)


def matmul(a: Any, b: Any) -> Any:
    """Give a b^T over the last axis of both."""
    return a @ b.mT


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Normalise over the last axis."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, eps: float) -> Any:
    """Normalise every channel by running statistics."""
    return (x - mean) / torch.sqrt(variance + eps) * weight + bias


def gelu(x: Any) -> Any:
    """Give x Phi(x), with the exact erf."""
    return F.gelu(x)


def rprelu(
    x: Any, shift_in: Any, slope: Any, shift_out: Any, token_in: Any = None, token_out: Any = None
) -> Any:
    """Bend at shifts of the channel, and of the token [SPEC 3]."""
    u = x - shift_in
    if token_in is not None:
        u = u - token_in[:, None]
    y = torch.where(u > 0, u, slope * u) + shift_out
    return y if token_out is None else y + token_out[:, None]


def softmax(x: Any) -> Any:
    """Give shares of a row."""
    return x.softmax(-1)


def window_softmax(x: Any, grid: Grid, window: int, shift: int) -> Any:
    """Give shares of a row among keys from the same side of the roll, others 0."""
    seen = _constant("mask", x, grid, window, shift)  # (nW, 1, M*M, M*M)
    rows = x.unflatten(0, (-1, len(seen))).masked_fill(~seen, -math.inf)
    return rows.softmax(-1).flatten(0, 1)


def position_bias(x: Any, table: Any) -> Any:
    """Add the table's entry of each pair's offset: x (B', heads, M*M, M*M)."""
    offsets = _constant("offsets", x, math.isqrt(x.shape[-1]))
    return x + table[offsets].permute(2, 0, 1)


def band_sum(low: Any, high: Any, band_weight: Any, head_dim: int) -> Any:
    """Add the scores of both bands, weighted, over sqrt(d)."""
    weights = band_weight[:, :, None, None]  # (2, heads, 1, 1)
    return (weights[0] * low + weights[1] * high) / math.sqrt(head_dim)


def differential(value: Any, mean: Any, shortcut: Any, neighbour: Any) -> Any:
    """Give lam_s value - lam_n mean."""
    return shortcut * value - neighbour * mean


# --- neighbours on the grid -----------------------------------------------------------------------


def bands(x: Any, grid: Grid, mode: str = "edge", cls: str = "both") -> Any:
    """Split into the low and the high Haar band [SPEC 4], both like x."""
    first = x.shape[1] - math.prod(grid)
    token, image = x[:, :first], x[:, first:].unflatten(1, grid)  # (B, gh, gw, C)
    low = high = image
    if mode != "none":
        right = _next(image, 2, mode)
        sums, differences = image + right, image - right
        sums_below, differences_below = _next(sums, 1, mode), _next(differences, 1, mode)
        low = (sums + sums_below) * 0.25
        across = (sums - sums_below) * 0.25
        along = (differences + differences_below) * 0.25
        high = (across + along) + (differences - differences_below) * 0.25
    second = token if cls == "both" else torch.zeros_like(token)
    return torch.cat([token, low.flatten(1, 2)], 1), torch.cat([second, high.flatten(1, 2)], 1)


def _next(x: Any, dim: int, mode: str) -> Any:
    """Take the neighbour at i + 1; past the end the last one, or the first."""
    if mode == "periodic":
        return x.roll(-1, dim)
    length = x.shape[dim] - 1
    return torch.cat([x.narrow(dim, 1, length), x.narrow(dim, length, 1)], dim)


def neighbours(x: Any, grid: Grid, border: str = "existing") -> Any:
    """Take the mean of the eight neighbours, 0 for the class token."""
    (gh, gw), first = grid, x.shape[1] - math.prod(grid)
    padded = F.pad(x[:, first:].unflatten(1, grid), (0, 0, 1, 1, 1, 1))
    total = add(*(padded[:, 1 + i :, 1 + j :][:, :gh, :gw] for i, j in ops.neighbours.OFFSETS))
    mean = total / _constant("neighbours", x, grid, border)
    return torch.cat([torch.zeros_like(x[:, :first]), mean.flatten(1, 2)], 1)


def box(x: Any, grid: Grid, side: int, axis: int) -> Any:
    """Take the mean of `side` neighbours along an axis of the grid, zeros beyond it."""
    reach, length = side // 2, grid[axis]
    edges = (0, 0, 0, 0, reach, reach) if axis == 0 else (0, 0, reach, reach)
    padded = F.pad(x.unflatten(1, grid), edges)
    total = add(*(padded.narrow(1 + axis, k, length) for k in range(side)))
    return (total / side).flatten(1, 2)


def convolution(x: Any, weight: Any, bias: Any, grid: Grid) -> Any:
    """Convolve 3 x 3 tokens, with zeros beyond the grid."""
    return from_grid(F.conv2d(to_grid(x, grid), weight, bias, padding=1))


# --- thresholds -----------------------------------------------------------------------------------


class _Sign(torch.autograd.Function):
    """+1 where z >= 0, else -1 [SPEC 2]."""

    @staticmethod
    def forward(ctx: Any, z: Any, ste: str) -> Any:
        ctx.save_for_backward(z)
        ctx.ste = ste
        return signs(z)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        (z,) = ctx.saved_tensors
        magnitude = z.abs()
        if ctx.ste == "clip":
            return dy * (magnitude <= 1), None
        return dy * (2 - 2 * magnitude).clamp(min=0), None


class _BinaryProduct(torch.autograd.Function):
    """Signs (..., I) times binary weights: s_o * (signs sign(Wc)^T), the scale last [SPEC 2, 5]."""

    @staticmethod
    def forward(ctx: Any, signed: Any, weight: Any) -> Any:
        centred, scale = binarized(weight)
        ctx.save_for_backward(signed, centred, scale)
        return F.linear(signed, signs(centred)) * scale

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        signed, centred, scale = ctx.saved_tensors
        dsigned = dy @ (scale[:, None] * signs(centred))
        dused = dy.flatten(0, -2).T @ signed.flatten(0, -2)
        return dsigned, _through_centring(dused, centred)


class _BooleanAttention(torch.autograd.Function):
    """alpha' times the whole numbers of bits and signs [SPEC 2, 6.1, R1b]."""

    @staticmethod
    def forward(ctx: Any, prob: Any, value: Any, alpha: Any, context: str) -> Any:
        ratio, step = thresholded(prob, alpha)
        ctx.save_for_backward(ratio, value, alpha)
        ctx.context = context
        return context_of(bits(ratio), value, context) * step

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        ratio, value, alpha = ctx.saved_tensors
        bit, step = bits(ratio), alpha.clamp(min=ops.boolean.ALPHA_MIN)
        dweights = dy @ value
        dvalue = dy.mT @ (step * bit)
        if ctx.context == "differences":
            dweights = dweights - (dy * value.mT).sum(-1, keepdim=True)
            dvalue = dvalue - ((step * bit).sum(-1, keepdim=True) * dy).mT
        inside = (ratio >= 0) & (ratio <= 1)
        dprob = dweights * inside
        dstep = dprob * (bit - ratio) + dweights * (ratio > 1)
        dalpha = dstep.sum_to_size(alpha.shape)
        return dprob, dvalue, dalpha * (alpha >= ops.boolean.ALPHA_MIN), None


def signs(z: Any) -> Any:
    """Give +1 where z >= 0, -1 below, NaN where z is no finite number."""
    return _unless_finite((z >= 0).to(z.dtype).mul_(2).sub_(1), z)


def bits(ratio: Any) -> Any:
    """Give 1 where q > 1/2, else 0, NaN where q is no finite number."""
    return _unless_finite((ratio > 0.5).to(ratio.dtype), ratio)


def _unless_finite(y: Any, z: Any) -> Any:
    """y + 0 z: NaN where z is NaN or infinity, for far less than to ask."""
    return y.add_(z, alpha=0)


def _through_centring(dused: Any, centred: Any) -> Any:
    """The identity inside the clip, without the scale, and back through Wc = W - mean W."""
    dcentred = dused * (centred.abs() <= 1)
    return dcentred - dcentred.mean(1, keepdim=True)


def binarized(weight: Any) -> tuple[Any, Any]:
    """Give Wc (O, I) and s_o (O,) of a latent matrix (O, I)."""
    return weight - weight.mean(1, keepdim=True), weight.abs().mean(1)


def thresholded(prob: Any, alpha: Any) -> tuple[Any, Any]:
    """Give q = p / alpha' and alpha'."""
    step = alpha.clamp(min=ops.boolean.ALPHA_MIN)
    return prob / step, step


def context_of(weights: Any, value: Any, context: str) -> Any:
    """Give sum_j w_ij v_j, or sum_j w_ij (v_j - v_i)."""
    total = weights @ value.mT
    if context == "sum":
        return total
    return total - weights.sum(-1, keepdim=True) * value.mT


def sign(z: Any, ste: str = "polynomial") -> Any:
    """Give the sign, with its surrogate gradient."""
    return _Sign.apply(z, ste)


def binary_linear(x: Any, weight: Any, binarize: str = "full", ste: str = "polynomial") -> Any:
    """Multiply signs of x with a binary matrix; with real ones in the other stages."""
    if binarize == "none":
        return linear(x, weight)
    return binary_product(sign(x, ste), weight, binarize)


def binary_product(signed: Any, weight: Any, binarize: str) -> Any:
    """Multiply signs (..., I) with the matrix of a stage."""
    if binarize == "activations":
        return linear(signed, weight)
    return _BinaryProduct.apply(signed, weight)


class _BinaryWeight(torch.autograd.Function):
    """s_o sign(Wc), a matrix for real activations; the identity inside the clip [SPEC 2]."""

    @staticmethod
    def forward(ctx: Any, weight: Any) -> Any:
        centred, scale = binarized(weight)
        ctx.save_for_backward(centred)
        return scale[:, None] * signs(centred)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        (centred,) = ctx.saved_tensors
        return _through_centring(dy, centred)


def weight_binarizer(weight: Any) -> Any:
    """Give the binary matrix, scaled, with its surrogate gradient."""
    return _BinaryWeight.apply(weight)


def boolean_attention(
    prob: Any, value: Any, alpha: Any, binarize: str = "full", context: str = "sum"
) -> Any:
    """Multiply boolean probabilities with signs, in stage "none" real ones, without alpha."""
    if binarize == "none":
        return context_of(prob, value, context)
    return _BooleanAttention.apply(prob, value, alpha, context)


# --- constants ------------------------------------------------------------------------------------


def _constant(what: str, x: Any, *args: Any) -> Any:
    """A small array that follows from attributes, on the device of x; of reals in its dtype."""
    # what is made among the tensors of a tracer, which have no values, is no constant afterwards
    make = _made if type(x) is torch.Tensor else _made.__wrapped__
    return make(what, x.device, x.dtype, *args)


@functools.lru_cache(maxsize=256)
def _made(what: str, device: Any, dtype: Any, *args: Any) -> Any:
    array = np.ascontiguousarray(_ARRAYS[what](*args))
    # made once, and also read by those who train
    with torch.inference_mode(False):
        tensor = torch.from_numpy(array).to(device)
        return tensor.to(dtype) if array.dtype.kind == "f" else tensor


def _counts(grid: Grid, border: str) -> np.ndarray:
    """(gh, gw, 1): how many neighbours the mean is of."""
    return ops.neighbours.forward(np.zeros((1, math.prod(grid), 1)), grid, border)[1].divisor


def _order(grid: Grid, window: int, shift: int) -> np.ndarray:
    """(gh*gw,): the token at each place of an image's windows."""
    tokens = np.arange(math.prod(grid), dtype=np.float64).reshape(1, -1, 1)
    return ops.windows.forward(tokens, grid, window, shift)[0].reshape(-1).astype(np.int64)


def _weights(inputs: int, outputs: int, mode: str) -> np.ndarray:
    """(outputs, inputs): what of each input is in each output."""
    return ops.interpolate.forward(np.zeros((inputs, 1)), (outputs, 1), mode)[1].rows


_ARRAYS = {
    "order": _order,
    "back": lambda *args: np.argsort(_order(*args)),
    "mask": lambda *args: ops.windows.mask(*args)[:, None],
    "offsets": ops.position_bias.offsets,
    "neighbours": _counts,
    "weights": _weights,
}
