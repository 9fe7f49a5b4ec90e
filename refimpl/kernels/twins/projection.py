"""Twin of a whole unit: the binary projection P of [SPEC 5], `models.binary.projection`.

It is the one twin that is no operation of `refimpl.ops`: the interpreter runs it in the place of a
unit of nodes where no one listens. It takes what they take, in their order.

    P = RPReLU(LayerNorm(sign(x + move) W_b^T) + fit(x))

Forward and backward walk once over the rows, so what is between x and P never leaves the
first-level cache. In stage "full" the cache of a run holds x, its packed signs and two numbers a
row, and backward counts the bits again; values are those of the operations one by one, bit for bit.
Stage "activations" keeps the real product of signs and weights. Gradients are summed row by row.
"""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import numpy as np

from refimpl import ops
from refimpl.conventions import NonFiniteError
from refimpl.kernels import bits, rows
from refimpl.kernels.compile import jit
from refimpl.kernels.rows import pairwise_sum
from refimpl.kernels.vector import LANES, broadcast, load, load_as_floats, select, splat, store


class Cache(NamedTuple):
    x: np.ndarray  # (B, N, I)
    move: np.ndarray
    given: list[np.ndarray]  # of the norm and RPReLU, see `_contiguous`
    per_token: bool
    linear: _Linear
    stats: np.ndarray  # (B * N, 2) mean and standard deviation of each row of the linear map
    ste: str


class _Full(NamedTuple):
    """Stage "full": signs times signs."""

    packed: bits.Packed  # signs of x + move
    weights: bits.Packed  # signs of Wc
    scale: np.ndarray  # (O,)
    centred: np.ndarray  # (O, I) Wc

    def product(self) -> np.ndarray:
        """Before the scale, int32 (R, O)."""
        return np.ascontiguousarray(bits.binary_product(self.packed, self.weights))

    def used(self) -> np.ndarray:
        """W_b (O, I)."""
        used = np.empty_like(self.centred)
        _scaled_signs(self.centred, self.scale, used)
        return used

    def weight_gradient(self, dused: np.ndarray) -> np.ndarray:
        """From that of W_b (O, I), which is overwritten."""
        _weight_backward(self.centred, dused)
        return dused


class _Activations(NamedTuple):
    """Stage "activations": signs times real weights."""

    weight: np.ndarray  # (O, I)
    result: np.ndarray  # (R, O)
    scale: np.ndarray  # (O,) of 1

    def product(self) -> np.ndarray:
        return self.result

    def used(self) -> np.ndarray:
        return self.weight

    def weight_gradient(self, dused: np.ndarray) -> np.ndarray:
        return dused


_Linear = _Full | _Activations


def forward(
    x: np.ndarray,
    move: np.ndarray,
    weight: np.ndarray,
    gain: np.ndarray,
    bias: np.ndarray,
    shift_in: np.ndarray,
    slope: np.ndarray,
    shift_out: np.ndarray,
    token_shift_in: np.ndarray | None = None,
    token_shift_out: np.ndarray | None = None,
    *,
    binarize: str,
    ste: str,
    eps: float,
) -> tuple[np.ndarray, Cache] | None:
    """x (B, N, I) -> P (B, N, O); None where the operations must do it, one by one.

    They must for float64, and where the channels are no vectors of sixteen; a warning says so once.
    gain and bias are LayerNorm's; shapes are those of [SPEC 6.4].
    """
    channel = gain, bias, shift_in, slope, shift_out
    token = token_shift_in, token_shift_out
    if x.dtype != np.float32:
        _say_once(f"of {x.dtype}; expected float32")
    elif len(weight) % LANES or x.shape[-1] % LANES:
        _say_once(f"where {LANES} does not divide the channels")
    if not _fits(x, move, weight, channel, token):
        return None
    if binarize not in ("full", "activations") or ste not in ops.sign.STES:
        return None
    batch, tokens, _ = x.shape
    x = np.ascontiguousarray(x)
    linear = _multiply(move, weight, rows.matrix(x), binarize)
    if linear is None:
        return None
    y = np.empty((batch, tokens, len(weight)), x.dtype)
    stats = np.empty((batch * tokens, 2), x.dtype)
    given = _contiguous(channel, token, tokens)
    _forward(
        rows.matrix(x), linear.product(), linear.scale, x.dtype.type(eps), *given, stats,
        rows.matrix(y),
    )  # fmt: skip
    per_token = token_shift_in is not None
    return y, Cache(x, move, given, per_token, linear, stats, ste)


@functools.cache
def _say_once(of_what: str) -> None:
    warnings.warn(
        f"kernels: there is no fused projection {of_what}; NumPy computes it, which takes longer",
        stacklevel=2,
    )


def _fits(x: np.ndarray, move: np.ndarray, weight: np.ndarray, channel, token) -> bool:
    if x.ndim != 3 or weight.ndim != 2:
        return False
    outputs, inputs = len(weight), x.shape[2]
    few, many = sorted((outputs, inputs))
    if x.dtype != np.float32 or few == 0 or few % LANES or many % few:
        return False
    return rows.fits(
        x,
        (weight, (outputs, inputs)),
        (move, (inputs,)),
        *((array, (outputs,)) for array in channel),
        *((array, x.shape[1:2]) for array in token if array is not None),
    )


def _multiply(move, weight: np.ndarray, x: np.ndarray, binarize: str) -> _Linear | None:
    """The linear map of rows x (R, I); None where something is NaN or infinite."""
    z = x + move
    try:
        if binarize == "full":
            centred, scale = np.empty_like(weight), np.empty_like(weight[:, 0])
            _binarize(np.ascontiguousarray(weight), centred, scale)
            return _Full(bits.pack(z), bits.pack(centred), scale, centred)
        signs, _ = ops.sign.forward(z)
    except NonFiniteError:
        return None
    return _Activations(weight, signs @ weight.T, np.ones(len(weight), weight.dtype))


@jit
def _binarize(weight, centred, scale):
    """As `ops.weight_binarizer.binarize`, without the signs."""
    outputs, inputs = weight.shape
    count, sizes = np.float32(inputs), np.empty(inputs, np.float32)
    for o in range(outputs):
        for i in range(inputs):
            sizes[i] = abs(weight[o, i])
        scale[o] = pairwise_sum(sizes, 0, inputs) / count
        mean = pairwise_sum(weight.reshape(-1), o * inputs, inputs) / count
        for i in range(inputs):
            centred[o, i] = weight[o, i] - mean


@jit
def _scaled_signs(centred, scale, used):
    for o in range(centred.shape[0]):
        for i in range(centred.shape[1]):
            used[o, i] = scale[o] if centred[o, i] >= 0 else -scale[o]


@jit
def _weight_backward(centred, dweight):
    """As `ops.weight_binarizer.backward`, in place."""
    outputs, inputs = centred.shape
    for o in range(outputs):
        for i in range(inputs):
            dweight[o, i] = dweight[o, i] if abs(centred[o, i]) <= 1 else np.float32(0)
        mean = pairwise_sum(dweight.reshape(-1), o * inputs, inputs) / np.float32(inputs)
        for i in range(inputs):
            dweight[o, i] -= mean


def _contiguous(channel, token, tokens: int) -> list[np.ndarray]:
    """Weight and bias of the norm, and RPReLU's five arrays; a shift of 0 changes nothing."""
    zero = np.zeros(tokens, channel[0].dtype)
    given = [*channel, *(zero if array is None else array for array in token)]
    return [np.ascontiguousarray(array) for array in given]


@jit
def _forward(
    x, product, scale, eps, weight, bias, shift_in, slope, shift_out, before, after, stats, y
):
    (length, inputs), outputs, tokens = x.shape, y.shape[1], len(before)
    normalised, squares = np.empty(outputs, np.float32), np.empty(outputs, np.float32)
    fitted, zero, count = np.empty(inputs, np.float32), splat(np.float32(0)), np.float32(outputs)
    channels = min(inputs, outputs)
    for r in range(length):
        at, n = r * outputs, r % tokens
        for o in range(0, outputs, LANES):
            store(normalised, o, load_as_floats(product, at + o) * load(scale, o))
        mean = pairwise_sum(normalised, 0, outputs) / count
        for o in range(0, outputs, LANES):
            centred = load(normalised, o) - splat(mean)
            store(normalised, o, centred)
            store(squares, o, centred * centred)
        std = np.sqrt(pairwise_sum(squares, 0, outputs) / count + eps)
        stats[r, 0], stats[r, 1] = mean, std
        shortcut, shortcut_at = _shortcut(x, r, fitted, outputs)
        for first in range(0, outputs, channels):
            for c in range(0, channels, LANES):
                o = first + c
                v = load(normalised, o) / splat(std) * load(weight, o) + load(bias, o)
                v = v + load(shortcut, shortcut_at + c) - load(shift_in, o) - broadcast(before, n)
                v = select(v > zero, v, load(slope, o) * v) + load(shift_out, o)
                store(y, at + o, v + broadcast(after, n))


@jit
def _shortcut(x, r, fitted, outputs):
    """Row r of fit(x), before it is repeated: an array, and where it begins there."""
    inputs = x.shape[1]
    if outputs >= inputs:
        return x.reshape(-1), r * inputs
    share = inputs // outputs
    fields = x.reshape(len(x), outputs, share)
    for o in range(outputs):
        fitted[o] = fields[r, o, 0]
    for i in range(1, share):
        for o in range(outputs):
            fitted[o] += fields[r, o, i]
    for o in range(outputs):
        fitted[o] /= np.float32(share)
    return fitted, 0


def backward(dy: np.ndarray, cache: Cache) -> tuple[np.ndarray | None, ...]:
    """dy (B, N, O) -> the gradients of forward's arrays, in their order."""
    x, move, given, per_token, linear, stats, ste = cache
    grads = [np.zeros_like(array) for array in given]
    dx, signs = np.empty(x.shape, x.dtype), np.empty((len(stats), x.shape[2]), x.dtype)
    dlinear = np.empty((len(stats), dy.shape[2]), x.dtype)
    inputs = rows.matrix(x), linear.product(), linear.scale, stats
    _backward(rows.matrix(dy), *inputs, *given, dlinear, rows.matrix(dx), *grads)
    dmove = np.zeros_like(move)
    dsigns = dlinear @ linear.used()
    _signs_backward(rows.matrix(x), move, dsigns, ste == "clip", signs, rows.matrix(dx), dmove)
    dweight = linear.weight_gradient(np.ascontiguousarray(dlinear.T @ signs))
    token = grads[5:] if per_token else (None, None)
    return dx, dmove, dweight, *grads[:5], *token


@jit
def _backward(
    dy, x, product, scale, stats, weight, bias, shift_in, slope, shift_out, before, after,
    dlinear, dx, dweight, dbias, dshift_in, dslope, dshift_out, dbefore, dafter,
):  # fmt: skip
    """Gradients of the linear map and, in dx, of the shortcut."""
    (length, inputs), outputs, tokens = x.shape, dy.shape[1], len(before)
    normalised, dnormalised = np.empty(outputs, np.float32), np.empty(outputs, np.float32)
    fitted, sums = np.empty(inputs, np.float32), np.empty(4 * LANES, np.float32)
    zero, count, channels = splat(np.float32(0)), np.float32(outputs), min(inputs, outputs)
    for r in range(length):
        at, n, mean, std = r * outputs, r % tokens, splat(stats[r, 0]), splat(stats[r, 1])
        shortcut, shortcut_at = _shortcut(x, r, fitted, outputs)
        all_dy, all_du, all_dnormalised, along = zero, zero, zero, zero
        for first in range(0, outputs, channels):
            for c in range(0, channels, LANES):
                # what forward had in its registers
                o = first + c
                norm = (load_as_floats(product, at + o) * load(scale, o) - mean) / std
                u = norm * load(weight, o) + load(bias, o)
                u = u + load(shortcut, shortcut_at + c) - load(shift_in, o) - broadcast(before, n)
                # RPReLU
                d = load(dy, at + o)
                du = select(u > zero, d, load(slope, o) * d)
                store(dslope, o, load(dslope, o) + select(u > zero, zero, u) * d)
                store(dshift_out, o, load(dshift_out, o) + d)
                store(dbias, o, load(dbias, o) + du)
                all_dy, all_du = all_dy + d, all_du + du
                # the shortcut, and the norm
                if first == 0:
                    store(fitted, c, du)
                else:
                    store(fitted, c, load(fitted, c) + du)
                store(dweight, o, load(dweight, o) + du * norm)
                dnorm = du * load(weight, o)
                all_dnormalised, along = all_dnormalised + dnorm, along + dnorm * norm
                store(normalised, o, norm)
                store(dnormalised, o, dnorm)
        store(sums, 0, all_dy)
        store(sums, LANES, all_du)
        store(sums, 2 * LANES, all_dnormalised)
        store(sums, 3 * LANES, along)
        dafter[n] += pairwise_sum(sums, 0, LANES)
        dbefore[n] -= pairwise_sum(sums, LANES, LANES)
        level = splat(pairwise_sum(sums, 2 * LANES, LANES) / count)
        share = splat(pairwise_sum(sums, 3 * LANES, LANES) / count)
        for o in range(0, outputs, LANES):
            d = load(dnormalised, o) - level - load(normalised, o) * share
            store(dlinear, at + o, d / std)
        _shortcut_backward(fitted, channels, r, dx)
    for o in range(outputs):
        dshift_in[o] = -dbias[o]


@jit
def _shortcut_backward(dfitted, channels, r, dx):
    """Row r of the gradient of fit's input; the repeats are added up already."""
    inputs = dx.shape[1]
    if channels == inputs:
        for c in range(0, inputs, LANES):
            store(dx, r * inputs + c, load(dfitted, c))
        return
    share = inputs // channels
    dfields = dx.reshape(len(dx), channels, share)
    for c in range(channels):
        dfitted[c] /= np.float32(share)
    for i in range(share):
        for c in range(channels):
            dfields[r, c, i] = dfitted[c]


@jit
def _signs_backward(x, move, dsigns, clip, signs, dx, dmove):
    """Adds the gradient of z = x + move to dx, and sums it up in dmove."""
    length, inputs = x.shape
    zero, one = splat(np.float32(0)), splat(np.float32(1))
    two = one + one
    for r in range(length):
        for i in range(0, inputs, LANES):
            at = r * inputs + i
            z = load(x, at) + load(move, i)
            positive = z >= zero
            store(signs, at, select(positive, one, zero - one))
            size = select(positive, z, zero - z)
            slope = two - two * size
            slope = select(slope > zero, slope, zero)
            if clip:
                slope = select(size > one, zero, one)
            dz = load(dsigns, at) * slope
            store(dmove, i, load(dmove, i) + dz)
            store(dx, at, load(dx, at) + dz)
