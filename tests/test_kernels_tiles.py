"""The engine's loops over a tile against float64 or whole numbers, compiled or as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import ops
from refimpl.kernels import attention, bits, dense, popcount, tiles
from refimpl.kernels.vector import LANES
from tests import strategies

F32 = np.float32
UNIT = 2.0**-24
EPS = F32(1e-5)
widths = st.sampled_from((1, 5, 15, 16, 17, 33, 64, 100))
seeds = strategies.seeds()


def tile(rng: np.random.Generator, channels: int) -> np.ndarray:
    return strategies.normal(rng, (channels, LANES), np.dtype(F32))


def packed(x: np.ndarray) -> np.ndarray:
    """Signs of rows (rows, K) as blocks of sixteen, flat."""
    return bits.pack(x).words.reshape(-1)


# --- LayerNorm ------------------------------------------------------------------------------------


def hard_rows(kind: str, rng: np.random.Generator, channels: int) -> np.ndarray:
    """(channels, 16) float32 of which a careless variance keeps no digit."""
    x = rng.standard_normal((channels, LANES))
    if kind == "large mean":
        x = 3000 + 0.01 * x
    elif kind == "first sixteen far off":  # the level is as wrong as it can be
        x[:16] += 500
    elif kind == "one far off":
        x[channels // 2] += 3000
    elif kind == "equal":
        x[:] = rng.standard_normal(LANES) * 1000
    return x.astype(F32)


def bound(x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of a LayerNorm in float32: C u of the terms of the mean, and of the variance's share."""
    exact = x.astype(np.float64)
    std = np.sqrt(exact.var(axis=0) + EPS)
    terms = (np.abs(exact) + np.abs(exact).mean(axis=0)) / std * np.abs(weight)[:, None]
    return len(x) * UNIT * (terms + np.abs(y)) + 1e-7


@given(
    seeds,
    st.sampled_from(("large mean", "first sixteen far off", "one far off", "equal", "plain")),
    st.sampled_from((16, 48, 192, 768)),
)
def test_layer_norm_of_hard_rows(seed, kind, channels):
    rng = np.random.default_rng(seed)
    x, (weight, bias) = hard_rows(kind, rng, channels), rng.standard_normal((2, channels))
    floats = np.concatenate([weight, bias]).astype(F32)
    out = np.zeros((channels, 3 * LANES), F32)
    fine = tiles.normalise(
        x.reshape(-1), 0, channels, floats, 0, channels, EPS, out.reshape(-1), LANES, 3 * LANES
    )
    assert fine
    weight, bias = floats.astype(np.float64).reshape(2, -1)
    y, _ = ops.layer_norm.forward(x.T.astype(np.float64), weight, bias, float(EPS))
    assert not out[:, :LANES].any() and not out[:, 2 * LANES :].any()
    assert (np.abs(out[:, LANES : 2 * LANES] - y.T) <= bound(x, weight, y.T)).all()


def test_a_plain_single_pass_would_not_do():
    """The rows above are hard: mean of squares less square of the mean fails on them."""
    x = hard_rows("large mean", np.random.default_rng(0), 192)
    careless = (x * x).mean(axis=0) - x.mean(axis=0) ** 2
    assert (np.abs(careless / x.astype(np.float64).var(axis=0) - 1) > 1).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 15, 16, 39])
def test_a_norm_tells_of_nan_and_infinity(bad, channel):
    x, floats = tile(np.random.default_rng(0), 40), np.ones(80, F32)
    x[channel, 11] = bad
    out = np.empty_like(x)
    with np.errstate(invalid="ignore"):
        fine = tiles.normalise(x.reshape(-1), 0, 40, floats, 0, 40, EPS, out.reshape(-1), 0, LANES)
    assert not fine


# --- signs and projections ------------------------------------------------------------------------


@given(seeds, widths)
def test_pack(seed, channels):
    rng = np.random.default_rng(seed)
    x = strategies.on_grid(rng, (channels, LANES), np.dtype(F32), (0.0, -0.0, 0.5, -0.5))
    move = rng.choice(np.array([0.0, 0.5, -0.5], F32), channels)
    words = np.full((-(-channels // 32), LANES), 7, np.uint32)
    field = np.zeros((channels, 2 * LANES), F32)
    field[:, LANES:] = x
    tiles.pack(field.reshape(-1), LANES, 2 * LANES, channels, move, 0, words.reshape(-1), 0)
    np.testing.assert_array_equal(words.reshape(-1), packed((x + move[:, None]).T))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None])
def test_finite(bad):
    x, move = tile(np.random.default_rng(0), 21), np.zeros(21, F32)
    x[20, 3] = 3e38 if bad is None else bad
    assert tiles.finite(x.reshape(-1), 0, LANES, 21, move, 0) == (bad is None)
    move[20] = 3e38
    with np.errstate(over="ignore"):
        assert not tiles.finite(x.reshape(-1), 0, LANES, 21, move, 0)


SIZES = (16, 16), (7, 33), (33, 7), (64, 128), (33, 132), (130, 65), (40, 20)


@given(seeds, st.sampled_from(SIZES))
def test_a_projection(seed, sizes):
    """[SPEC 5] from packed signs to RPReLU's output, in both kernels that end it."""
    (inputs, outputs), rng = sizes, np.random.default_rng(seed)
    if max(sizes) % min(sizes):
        outputs = inputs
    x, signs = tile(rng, inputs), strategies.normal(rng, (outputs, inputs), np.dtype(F32))
    scale = (0.1 + rng.random(outputs)).astype(F32)
    coefficients = strategies.normal(rng, (outputs, tiles.COEFFICIENTS), np.dtype(F32))
    shifts = strategies.normal(rng, (2, LANES), np.dtype(F32))
    move = strategies.normal(rng, (outputs,), np.dtype(F32)) + F32(0)  # no -0.0
    floats = np.concatenate([scale, coefficients.reshape(-1), shifts.reshape(-1), move])
    linear, norm = np.zeros(outputs * LANES, F32), np.zeros(2 * LANES, F32)
    tiles.multiply(
        popcount.path(), packed(x.T), inputs, packed(signs), 0, outputs, floats, 0, EPS,
        np.empty(LANES * LANES, np.int32), linear, norm,
    )  # fmt: skip

    whole = np.where(signs >= 0, 1.0, -1.0) @ np.where(x >= 0, 1.0, -1.0)
    product = scale[:, None] * whole
    weight, offset, slope, shift_out = coefficients.astype(np.float64).T[..., None]
    y = (product - product.mean(axis=0)) / np.sqrt(product.var(axis=0) + EPS) * weight + offset
    if outputs >= inputs:
        y = y + np.concatenate([x] * (outputs // inputs))
    else:
        y = y + x.reshape(outputs, -1, LANES).mean(axis=1)
    y = y - shifts[0]
    expected = np.where(y > 0, y, slope * y) + shift_out + shifts[1]

    at, token_in = outputs, outputs * (1 + tiles.COEFFICIENTS)
    tokens = token_in, token_in + LANES
    rest = x.reshape(-1), 0, LANES, inputs, floats, at, *tokens
    tolerance = {"rtol": 0, "atol": 2e-5 * np.abs(expected).max()}
    if outputs <= inputs:
        out = np.empty(outputs * LANES, F32)
        tiles.finish(linear, norm, outputs, *rest, out, 0, LANES)
        np.testing.assert_allclose(out.reshape(-1, LANES), expected, **tolerance)
        alpha, beta = tokens[1] + LANES, 0  # whatever stands there
        for kept in (False, True):
            y, stream = np.zeros_like(out), np.full(3 + outputs * LANES, F32(2))
            finish = linear, norm, outputs, x.reshape(-1), inputs, floats, at, *tokens
            tiles.finish_onto(*finish, kept, y, stream, 3, alpha, beta)
            np.testing.assert_array_equal(y, out if kept else 0)
            scaled = out.reshape(-1, LANES) * np.float64(move[:, None]) + scale[:, None]
            scaled = 2 + scaled.astype(F32)
            np.testing.assert_allclose(stream[3:].reshape(-1, LANES), scaled, rtol=1e-6, atol=1e-6)
    if outputs >= inputs:
        product = linear.copy()
        for kept in (False, True):
            words, means = np.empty(-(-outputs // 32) * LANES, np.uint32), np.empty_like(linear)
            args = *rest, tokens[1] + LANES, words, kept, means
            tiles.finish_signs(linear, norm, outputs, *args)
            if not kept:
                np.testing.assert_array_equal(linear, product)
                early = words, means
        found = linear.reshape(-1, LANES)
        np.testing.assert_allclose(found, expected, **tolerance)
        np.testing.assert_array_equal(words, packed((found + move[:, None]).T))
        np.testing.assert_array_equal(words, early[0])
        if outputs == 4 * inputs:
            fours = [found[i::4] for i in range(4)]  # of four channels, from left to right
            mean = (((fours[0] + fours[1]) + fours[2]) + fours[3]) * F32(0.25)
            for made in (early[1], means):
                np.testing.assert_array_equal(made.reshape(-1, LANES)[:inputs], mean)
    if outputs == inputs:
        assert_heads(product, norm, x, floats, at, tokens, found, move)


def assert_heads(product, norm, x, floats, at, tokens, expected, move) -> None:
    """Heads give what the projection does, each with words of its own, and add it up."""
    outputs, total = len(expected), np.ones(expected.size + 5, F32)
    for heads in (1, 2, 4):
        head_dim = outputs // heads
        if head_dim * heads != outputs:
            continue
        step = -(-head_dim // 32) * LANES + 3
        for first in (True, False):
            linear, words = product.copy(), np.zeros(7 + heads * step, np.uint32)
            tiles.finish_heads(
                linear, norm, heads, head_dim, x.reshape(-1), 0, LANES, floats, at, *tokens,
                tokens[1] + LANES, words, 7, step, first, total, 5, first,
            )  # fmt: skip
            kept = expected.reshape(-1) if first else product
            np.testing.assert_array_equal(linear, kept)
            z = (expected + move[:, None]).reshape(heads, head_dim, LANES)
            for head in range(heads):
                found = words[7 + head * step : 4 + (head + 1) * step]
                np.testing.assert_array_equal(found, packed(z[head].T))
            times = 1 if first else 2
            np.testing.assert_array_equal(total[5:].reshape(-1, LANES), times * expected)


# --- attention ------------------------------------------------------------------------------------


@given(
    seeds, st.sampled_from((1, 2)), st.sampled_from((1, 5, 33, 50)),
    st.sampled_from((7, 32, 64)), st.sampled_from((0.3, 3.0, 200.0)), st.booleans(),
)  # fmt: skip
def test_softmax_as_a_comparison(seed, bands, tokens, head_dim, size, masked):
    """Weights over their sum are the softmax's probabilities, also of scores far apart."""
    rng = np.random.default_rng(seed)
    band_weight = (size * rng.standard_normal(bands)).astype(F32)
    ones = rng.integers(0, head_dim + 1, (bands, tokens, LANES), np.int32)
    bias, seen = np.zeros((tokens, LANES)), np.ones((tokens, LANES), bool)
    floats, bias_at = attention.weights_of(band_weight, head_dim).astype(F32), 0
    if masked:
        bias, seen = rng.standard_normal((tokens, LANES)), rng.random((tokens, LANES)) < 0.7
        seen[0] = True
        added = np.where(seen, bias * np.log2(np.e), -np.inf).astype(F32)
        floats, bias_at = np.concatenate([floats, added.reshape(-1)]), len(floats)
    weights = np.empty((tokens + 1, LANES), F32)
    attention.weigh(
        ones.reshape(-1), tokens * LANES * (bands - 1), tokens, head_dim, floats, 0, 1, bias_at,
        weights.reshape(-1),
    )  # fmt: skip
    scores = (band_weight.astype(np.float64)[:, None, None] * (head_dim - 2 * ones)).sum(axis=0)
    scores = np.where(seen, scores / np.sqrt(head_dim) + bias, -np.inf)
    expected = np.exp(scores - scores.max(axis=0))
    expected /= expected.sum(axis=0)
    found = weights[:-1].astype(np.float64) / weights[-1]
    reach = np.abs(band_weight).sum() * np.sqrt(head_dim) + 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=(8 * reach + tokens) * UNIT)
    assert not found[~seen].any()

    step, words = F32(1.3 / tokens), np.empty(-(-tokens // 32) * LANES, np.uint32)
    counts = np.empty(LANES, np.int32)
    attention.binarize(weights.reshape(-1), tokens, step, words, 0, counts)
    bit = weights[:-1] > weights[-1] * (step * F32(0.5))
    np.testing.assert_array_equal(words, packed(np.where(bit.T, F32(1), F32(-1))))
    np.testing.assert_array_equal(counts, bit.sum(axis=0))


# --- dense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("size", "grid"), [(1, (3, 7)), (4, (2, 3)), (3, (6, 5))])
def test_patches(first, size, grid):
    channels, (height, width) = 2, grid
    image = np.arange(channels * height * width * size**2, dtype=F32)
    image = 1 + image.reshape(channels, height * size, width * size)
    blocks = image.reshape(channels, height, size, width, size).transpose(1, 3, 0, 2, 4)
    expected = np.zeros((3 * LANES, channels * size**2), F32)
    expected[first : first + height * width] = blocks.reshape(height * width, -1)
    out = np.full((3, channels * size**2, LANES), F32(np.nan))
    corners = dense.corners(grid, first, 3 * LANES, size)
    for t in range(3):
        dense.patches(image, corners, t * LANES, size, out.reshape(-1), t * out[0].size)
    np.testing.assert_array_equal(out.swapaxes(1, 2).reshape(3 * LANES, -1), expected)


@given(seeds, st.sampled_from((1, 2)), st.sampled_from((1, 16, 40)), st.sampled_from((3, 192, 200)))
def test_embed_is_exact(seed, together, outputs, inputs):
    rng = np.random.default_rng(seed)
    shapes = (together, inputs, LANES), (outputs, inputs), (outputs,)
    pixels, weight, bias = (strategies.on_grid(rng, s, np.dtype(F32)) for s in shapes)
    room = np.empty(together * -(-outputs // LANES) * LANES**2, F32)
    out = np.zeros(5 + together * outputs * LANES, F32)
    dense.embed(
        pixels.reshape(-1), inputs, together, dense.blocked(weight).reshape(-1), outputs, bias, 0,
        room, out, 5,
    )  # fmt: skip
    expected = weight.astype(np.float64) @ pixels + bias[:, None]
    np.testing.assert_array_equal(out[5:].reshape(expected.shape), expected)


@given(seeds, st.sampled_from((1, 15, 16, 17, 40)), st.sampled_from((1, 6, 31)))
def test_classify_is_exact(seed, classes, inputs):
    rng = np.random.default_rng(seed)
    weight, bias = (
        strategies.on_grid(rng, s, np.dtype(F32)) for s in ((classes, inputs), (classes,))
    )
    x, logits = strategies.on_grid(rng, (inputs, LANES), np.dtype(F32)), np.empty(classes, F32)
    sums = np.empty(LANES, F32)
    dense.classify(dense.blocked(weight).reshape(-1), inputs, x.reshape(-1), bias, 0, sums, logits)
    np.testing.assert_array_equal(logits, weight.astype(np.float64) @ x[:, 0] + bias)
