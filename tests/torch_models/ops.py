"""Every operation of the spec as a function of torch tensors that autograd can differentiate.

Names and argument orders are those of `refimpl.ops`. Only the three binarizers have a backward of
their own: it is declared by the spec, not derived. Everything else is left to autograd.
Letters: B batch, N tokens, C channels, O and I rows and columns of a matrix, d channels of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

Details = tuple[Tensor, Tensor, Tensor]  # cH, cV, cD
Grid = tuple[int, int]  # rows, columns of patches

# Binarizers


class _Sign(Function):
    """[SPEC 2] +1 where z >= 0 (so for 0.0 and -0.0), else -1; the gradient is the surrogate's."""

    @staticmethod
    def forward(ctx, z: Tensor, ste: str) -> Tensor:
        ctx.save_for_backward(z)
        ctx.ste = ste
        return (z >= 0).to(z.dtype) * 2 - 1

    @staticmethod
    def backward(ctx, dy: Tensor):
        (z,) = ctx.saved_tensors
        if ctx.ste == "polynomial":
            return dy * F.relu(2 - 2 * z.abs()), None
        return dy * (z.abs() <= 1), None


class _ScaledSign(Function):
    """[SPEC 2] scale * sign(centred); backward: the identity where |centred| <= 1, no scale."""

    @staticmethod
    def forward(ctx, centred: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(centred)
        return torch.where(centred >= 0, scale, -scale)

    @staticmethod
    def backward(ctx, dy: Tensor):
        (centred,) = ctx.saved_tensors
        return dy * (centred.abs() <= 1), None


class _Boolean(Function):
    """[SPEC 2] alpha' * clip(round(x / alpha'), 0, 1), alpha' = max(alpha, 1e-5)."""

    SMALLEST = 1e-5

    @staticmethod
    def forward(ctx, x: Tensor, alpha: Tensor) -> Tensor:
        step = alpha.clamp(min=_Boolean.SMALLEST)
        quotient = x / step
        ctx.save_for_backward(quotient, alpha)
        return step * quotient.round().clamp(0, 1)

    @staticmethod
    def backward(ctx, dy: Tensor):
        quotient, alpha = ctx.saved_tensors
        middle = (quotient >= 0) & (quotient <= 1)
        slope = torch.where(middle, quotient.round() - quotient, (quotient > 1).to(dy.dtype))
        dalpha = (dy * slope).sum_to_size(alpha.shape) * (alpha >= _Boolean.SMALLEST)
        return dy * middle, dalpha


def sign(z: Tensor, ste: str = "polynomial") -> Tensor:
    """[SPEC 2] The binary tensor of z; `ste` is "polynomial" or "clip"."""
    if ste not in ("polynomial", "clip"):
        raise ValueError(f"ste: found {ste!r}, expected 'polynomial' or 'clip'")
    return _Sign.apply(z, ste)


def binarize_weight(weight: Tensor) -> Tensor:
    """[SPEC 2] W (O, I) -> W_b (O, I); the scale of a row is a constant for the gradient."""
    scale = weight.detach().abs().mean(dim=1, keepdim=True)  # (O, 1)
    return _ScaledSign.apply(weight - weight.mean(dim=1, keepdim=True), scale)


def boolean(x: Tensor, alpha: Tensor) -> Tensor:
    """[SPEC 2] x (B, heads, N, N), alpha () or (heads, 1, 1)."""
    return _Boolean.apply(x, alpha)


def binary_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    binarize: str = "full",
    ste: str = "polynomial",
) -> Tensor:
    """[SPEC 2] x before the sign (…, I), W (O, I) -> (…, O), in one of the three stages."""
    if binarize == "full":
        return F.linear(sign(x, ste), binarize_weight(weight), bias)
    if binarize == "activations":
        return F.linear(sign(x, ste), weight, bias)
    if binarize == "weights":
        return F.linear(x, binarize_weight(weight), bias)
    if binarize == "none":
        return F.linear(x, weight, bias)
    raise ValueError(f"binarize: found {binarize!r}; expected a stage of [SPEC 2]")


# Attention


def boolean_attention(
    prob: Tensor, value: Tensor, alpha: Tensor, binarize: str = "full", context: str = "sum"
) -> Tensor:
    """[SPEC 6.1] prob (B, heads, N, N), value (B, heads, d, N) -> context (B, heads, N, d)."""
    # 0 * alpha keeps alpha in the graph: its gradient is 0, not missing.
    attention = prob + 0 * alpha if binarize in ("none", "weights") else boolean(prob, alpha)
    if context == "differences":  # [R1b] pair by pair, as it is written
        differences = value.mT[..., None, :, :] - value.mT[..., None, :]  # v_j - v_i
        return torch.einsum("bhnm,bhnmd->bhnd", attention, differences)
    return torch.einsum("bhnm,bhdm->bhnd", attention, value)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (…, M, K), b (…, N, K) -> a b^T (…, M, N)."""
    return torch.einsum("...mk,...nk->...mn", a, b)


def band_sum(low: Tensor, high: Tensor, band_weight: Tensor, head_dim: int) -> Tensor:
    """[SPEC 6.2, R5] low, high (B, heads, N, N), band_weight (2, heads) -> scores, same shape."""
    weighted = torch.einsum("sbhnm,sh->bhnm", torch.stack((low, high)), band_weight)
    return weighted / math.sqrt(head_dim)


def differential(
    value: Tensor, neighbour_mean: Tensor, shortcut: Tensor, neighbour: Tensor
) -> Tensor:
    """[SPEC 6.2, R1] lam_s * value - lam_n * neighbour_mean: (B, N, C), lam_* (C,)."""
    return shortcut * value - neighbour * neighbour_mean


def rprelu(
    x: Tensor,
    shift_in: Tensor,
    slope: Tensor,
    shift_out: Tensor,
    token_shift_in: Tensor | None = None,
    token_shift_out: Tensor | None = None,
) -> Tensor:
    """[SPEC 3, R6] x (B, N, C), channel parameters (C,), token parameters (N,)."""
    u = x - shift_in
    if token_shift_in is not None:
        u = u - token_shift_in[:, None]
    y = F.prelu(u.mT, slope).mT + shift_out  # prelu wants the channels second
    return y if token_shift_out is None else y + token_shift_out[:, None]


# Haar transforms, on the last two axes: a convolution with four 2 x 2 kernels

#              x00 x01  x10 x11
_KERNELS = ((( 1., 1.), ( 1., 1.)),  # cA
            (( 1., 1.), (-1., -1.)),  # cH, the difference of rows
            (( 1., -1.), ( 1., -1.)),  # cV, the difference of columns
            (( 1., -1.), (-1., 1.)))  # cD  # fmt: skip
_FACTOR = {"ortho": 1 / 2, "average": 1 / 4}
_PADDING = {"edge": "replicate", "periodic": "circular"}


def _kernels(x: Tensor, norm: str) -> Tensor:
    """(4, 1, 2, 2): the kernel of each band."""
    return torch.tensor(_KERNELS, dtype=x.dtype)[:, None] * _FACTOR[norm]


def _analyse(image: Tensor, shape: torch.Size, norm: str, stride: int) -> tuple[Tensor, Details]:
    """image (M, 1, rows, columns) -> four bands with the leading axes of `shape`."""
    bands_ = F.conv2d(image, _kernels(image, norm), stride=stride)
    approximation, *details = (band.reshape(*shape[:-2], *band.shape[1:])
                               for band in bands_.unbind(dim=1))  # fmt: skip
    return approximation, tuple(details)


def swt2(x: Tensor, mode: str = "edge", norm: str = "average") -> tuple[Tensor, Details]:
    """[SPEC 4, R3] Undecimated: every band has the shape of x."""
    image = F.pad(x.reshape(-1, 1, *x.shape[-2:]), (0, 1, 0, 1), mode=_PADDING[mode])
    return _analyse(image, x.shape, norm, stride=1)


def iswt2(coeffs: tuple[Tensor, Details], norm: str = "average") -> Tensor:
    """[SPEC 4] The plain sum of the four bands, for ortho half of it."""
    approximation, details = coeffs
    return torch.stack((approximation, *details)).sum(dim=0) * {"average": 1, "ortho": 1 / 2}[norm]


def dwt2(x: Tensor) -> tuple[Tensor, Details]:
    """[SPEC 4] Decimated, ortho: every band has half the rows and half the columns of x."""
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"dwt2: found {tuple(x.shape)}, expected even sizes in the last two axes")
    return _analyse(x.reshape(-1, 1, *x.shape[-2:]), x.shape, "ortho", stride=2)


def idwt2(coeffs: tuple[Tensor, Details]) -> Tensor:
    """[SPEC 4] The inverse of dwt2, a transposed convolution."""
    approximation, details = coeffs
    bands_ = torch.stack((approximation, *details), dim=-3)  # (…, 4, rows, columns)
    image = F.conv_transpose2d(bands_.flatten(end_dim=-4) if bands_.ndim > 3 else bands_[None],
                               _kernels(approximation, "ortho"), stride=2)  # fmt: skip
    return image.reshape(*approximation.shape[:-2], *image.shape[-2:])


# The grid of patches


def _split(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Tokens (B, N, C) -> class token (B, 0 or 1, C) and patches as an image (B, C, gh, gw)."""
    first = x.shape[1] - grid[0] * grid[1]
    if first not in (0, 1):
        raise ValueError(f"grid: found {x.shape[1]} tokens for {grid}, expected gh * gw or 1 more")
    return x[:, :first], x[:, first:].mT.unflatten(2, grid)


def _join(class_token: Tensor, image: Tensor) -> Tensor:
    return torch.cat((class_token, image.flatten(2).mT), dim=1)


def bands(x: Tensor, grid: Grid, mode: str = "edge", cls: str = "both") -> tuple[Tensor, Tensor]:
    """[SPEC 4, R3, R4] Tokens (B, N, C) -> low and high band, each (B, N, C)."""
    class_token, image = _split(x, grid)
    high_token = {"both": class_token, "low": torch.zeros_like(class_token)}[cls]
    if mode == "none":
        return x, _join(high_token, image)
    approximation, (rows, columns, diagonal) = swt2(image, mode)
    return _join(class_token, approximation), _join(high_token, rows + columns + diagonal)


def neighbours(x: Tensor, grid: Grid, border: str = "existing") -> Tensor:
    """[SPEC 6.2, R2] The mean of the 8 neighbours on the grid (B, N, C); 0 for the class token."""
    class_token, image = _split(x, grid)
    ring = torch.ones(1, 1, 3, 3, dtype=x.dtype)
    ring[..., 1, 1] = 0
    total = F.conv2d(image.flatten(0, 1)[:, None], ring, padding=1).reshape(image.shape)
    existing = F.conv2d(torch.ones(1, 1, *grid, dtype=x.dtype), ring, padding=1)
    count = {
        "existing": existing.clamp(min=1),
        "eight": torch.full_like(existing, 8),
        "none": torch.full_like(existing, math.inf),
    }[border]
    return _join(torch.zeros_like(class_token), total / count)


def interpolate(x: Tensor, size: Grid, mode: str = "bicubic") -> Tensor:
    """[SPEC 6.3] x (…, H, W) -> (…, h, w); torch takes images (B, channels, H, W) only."""
    images = x.reshape(1, -1, *x.shape[-2:])
    resized = F.interpolate(images, size, mode=mode, align_corners=False, antialias=False)
    return resized.reshape(*x.shape[:-2], *size)


# The real operations: those of torch, under the names of the project


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, I), weight (O, I), bias (O,) -> (…, O)."""
    return F.linear(x, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """[SPEC 6.3] Over the last axis, biased variance."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def softmax(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Over the last axis, and there over what the mask leaves."""
    return F.softmax(x if mask is None else x.masked_fill(~mask, -torch.inf), dim=-1)


def windows(x: Tensor, grid: Grid, window: int, shift: int = 0) -> Tensor:
    """[SPEC 6.7] (B, N, C) -> (B nW, M M, C): rolled, then cut."""
    image = x.mT.unflatten(2, grid).roll((-shift, -shift), dims=(2, 3))  # (B, C, gh, gw)
    cut = F.unfold(image, window, stride=window)  # (B, C M M, W)
    return cut.unflatten(1, (-1, window * window)).permute(0, 3, 2, 1).flatten(0, 1)


def position_bias(x: Tensor, table: Tensor) -> Tensor:
    """[SPEC 6.7] Scores (B nW, heads, M M, M M) plus R for the offset of query and key."""
    window = math.isqrt(x.shape[-1])
    places = [(r, c) for r in range(window) for c in range(window)]
    rows = [
        [(ri - rj + window - 1) * (2 * window - 1) + (ci - cj + window - 1) for rj, cj in places]
        for ri, ci in places
    ]
    return x + table[torch.tensor(rows)].permute(2, 0, 1)


def merge_patches(x: Tensor, grid: Grid) -> Tensor:
    """[SPEC 6.7] (B, N, C) -> (B, N / 4, 4C)."""
    image = x.unflatten(1, grid)
    order = ((0, 0), (1, 0), (0, 1), (1, 1))  # row, column
    return torch.cat([image[:, r::2, c::2] for r, c in order], dim=-1).flatten(1, 2)


def gelu(x: Tensor) -> Tensor:
    """[SPEC 6.3] The exact one, with erf."""
    return F.gelu(x)


def patch_embed(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[SPEC 6.3] image (B, channels, H, W), weight (C, channels, p, p) -> (B, gh * gw, C)."""
    return F.conv2d(image, weight, bias, stride=weight.shape[2:]).flatten(2).mT


def convolution(x: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """[SPEC 10] x (B, gh * gw, I), weight (O, I, 3, 3) -> (B, gh * gw, O)."""
    return F.conv2d(x.mT.unflatten(2, grid), weight, bias, padding=1).flatten(2).mT


def layer_scale(x: Tensor, alpha: Tensor, beta: Tensor | None = None) -> Tensor:
    """[SPEC 6.1, 6.8] alpha * x + beta, both (C,)."""
    return alpha * x if beta is None else torch.addcmul(beta, alpha, x)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> Tensor:
    """[SPEC 6.8] x (..., C) by running statistics, which autograd must not see."""
    rows = x.reshape(-1, x.shape[-1])
    mean, variance = mean.detach(), variance.detach()
    return F.batch_norm(rows, mean, variance, weight, bias, eps=eps).reshape(x.shape)


def box(x: Tensor, grid: Grid, side: int, axis: int) -> Tensor:
    """[SPEC 6.8] x (B, gh * gw, C): mean pooling with padding."""
    kernel, padding = ((side, 1), (side // 2, 0)) if axis == 0 else ((1, side), (0, side // 2))
    image = x.mT.unflatten(2, grid)
    return F.avg_pool2d(image, kernel, stride=1, padding=padding).flatten(2).mT


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """[SPEC 1, 7] logits (B, K), target (B,) int -> mean over the batch."""
    return F.cross_entropy(logits, target, label_smoothing=smoothing)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """[SPEC 7] -sum p_teacher log p_student, logits and p_teacher (B, K), mean over the batch."""
    return F.cross_entropy(logits, probabilities)


def pixel_cross_entropy(
    logits: Tensor, target: Tensor, smoothing: float = 0.0, ignored: int = 255
) -> Tensor:
    """[SPEC 10] logits (B, K, H, W), target (B, H, W) int; torch gives NaN without any label."""
    return F.cross_entropy(logits, target.long(), label_smoothing=smoothing, ignore_index=ignored)


# What lies between the operations with numbers: tokens, heads, grids


def add(first: Tensor, *others: Tensor) -> Tensor:
    """[SPEC 6.1] The sum of values of one shape."""
    return torch.stack([first, *others]).sum(dim=0)


def shift(x: Tensor, move: Tensor) -> Tensor:
    """[SPEC 5] x (B, N, C) plus move (C,)."""
    return torch.add(x, move)


def divide(x: Tensor, divisor: float) -> Tensor:
    """[SPEC 6.1] Division by a number."""
    return torch.div(x, divisor)


def rescale(x: Tensor, factor: float) -> Tensor:
    """[SPEC 6.3] x times a number of its own type."""
    return x * torch.tensor(factor, dtype=x.dtype)


def identity(x: Tensor) -> Tensor:
    """[SPEC 5] x."""
    return x.clone()


def stop_gradient(x: Tensor) -> Tensor:
    """[R5] x, as a constant; with a path of factor 0, for autograd wants one."""
    return x.detach() + 0 * x


def class_token(x: Tensor, token: Tensor) -> Tensor:
    """[SPEC 6.3] x (B, gh * gw, C), token (1, 1, C) -> (B, 1 + gh * gw, C)."""
    return torch.cat([token.expand(len(x), -1, -1), x], dim=1)


def drop_class_token(x: Tensor) -> Tensor:
    """[SPEC 10] (B, 1 + gh * gw, C) -> (B, gh * gw, C)."""
    return x.narrow(1, 1, x.shape[1] - 1)


def position_embedding(x: Tensor, position: Tensor) -> Tensor:
    """[SPEC 6.3] x (B, N, C) plus position (1, N, C)."""
    return x + position.expand_as(x)


def pool(x: Tensor, pool: str) -> Tensor:
    """[SPEC 6.3] (B, N, C) -> (B, C)."""
    return x[:, 0] if pool == "cls" else x.mean(dim=1)


def split(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """[SPEC 6.4] (…, parts * C) -> as many of (…, C)."""
    return x.chunk(parts, dim=-1)


def split_heads(x: Tensor, heads: int, transposed: bool = False) -> Tensor:
    """[SPEC 1] (B, N, C) -> (B, heads, N, d), or transposed (B, heads, d, N)."""
    y = torch.stack(x.chunk(heads, dim=-1), dim=1)
    return y.mT if transposed else y


def merge_heads(x: Tensor) -> Tensor:
    """[SPEC 1] (B, heads, N, d) -> (B, N, C)."""
    return torch.cat(x.unbind(dim=1), dim=-1)


def to_grid(x: Tensor, grid: Grid) -> Tensor:
    """[SPEC 10] (B, gh * gw, C) -> (B, C, gh, gw)."""
    return x.unflatten(1, grid).movedim(3, 1)


def from_grid(x: Tensor) -> Tensor:
    """[SPEC 10] (B, C, gh, gw) -> (B, gh * gw, C)."""
    return x.movedim(1, 3).flatten(1, 2)


def join_windows(x: Tensor, grid: Grid, window: int, shift: int = 0) -> Tensor:
    """[SPEC 6.7] (B nW, M M, C) -> (B, gh * gw, C)."""
    count = grid[0] * grid[1] // window**2
    cut = x.unflatten(0, (-1, count)).permute(0, 3, 2, 1).flatten(1, 2)  # (B, C M M, nW)
    image = F.fold(cut, grid, window, stride=window)  # (B, C, gh, gw)
    return image.roll((shift, shift), dims=(2, 3)).flatten(2).mT


def window_softmax(x: Tensor, grid: Grid, window: int, shift: int) -> Tensor:
    """[SPEC 6.7] Scores (B nW, heads, M M, M M); the nine regions of Swin's own code."""
    region = torch.zeros(grid, dtype=x.dtype)
    spans = slice(0, -window), slice(-window, -shift), slice(-shift, None)
    for number, (rows, columns) in enumerate((r, c) for r in spans for c in spans):
        region[rows, columns] = number
    cut = windows(region.view(1, -1, 1), grid, window)[..., 0]  # (nW, M M)
    apart = (cut[:, :, None] != cut[:, None]).repeat(len(x) // len(cut), 1, 1)
    return F.softmax(x.masked_fill(apart[:, None], -math.inf), dim=-1)


def resize_tokens(x: Tensor, grid: Grid, new_grid: Grid) -> Tensor:
    """[SPEC 6.3] (1, N, C) or (N,) of a grid -> of another; the class token's entry is kept."""
    entries = x if x.ndim == 3 else x.view(1, -1, 1)
    first, patches = entries.split((entries.shape[1] - grid[0] * grid[1], grid[0] * grid[1]), dim=1)
    image = F.interpolate(to_grid(patches, grid), new_grid, mode="bicubic", align_corners=False)
    y = torch.cat([first, from_grid(image)], dim=1)
    return y if x.ndim == 3 else y.flatten()
