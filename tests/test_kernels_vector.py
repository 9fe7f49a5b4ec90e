"""Sixteen lanes: each primitive against NumPy, compiled or, with NUMBA_DISABLE_JIT=1, as it is."""

from __future__ import annotations

from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import given
from llvmlite import binding
from numba.core.errors import TypingError

from refimpl.kernels import vector
from refimpl.kernels.vector import LANES, load, store
from tests import strategies

INT32 = np.iinfo(np.int32)


@numba.njit
def _floats(x, y, out, masks):
    a, b = load(x, 0), load(y, 0)
    store(out, 0, a + b)
    store(out, 16, a - b)
    store(out, 32, a * b)
    store(out, 48, a / b)
    store(out, 64, vector.select(a > b, a, b))
    store(out, 80, vector.square_root(a * a))
    store(out, 96, vector.of_bits(vector.bits_of(a)))
    store(out, 112, vector.splat(x[3]))
    masks[0] = vector.ones_of(a > b)
    masks[1] = vector.ones_of(a >= b)
    masks[2] = vector.ones_of(a < b)
    masks[3] = vector.ones_of((a > b) | (b > a))
    masks[4] = vector.ones_of((a >= b) & (b >= a))


@given(strategies.seeds())
def test_floats(seed):
    rng = np.random.default_rng(seed)
    # equal values in some lanes, both zeros in others
    x = strategies.normal(rng, (LANES,), np.dtype(np.float32))
    y = np.where(rng.random(LANES) < 0.3, x, strategies.normal(rng, (LANES,), np.float32))
    y = np.where(y == 0, np.float32(-2.5), y)
    out, masks = np.empty((8, LANES), np.float32), np.empty(5, np.uint32)
    _floats(x, y, out, masks)
    last = np.full(LANES, x[3])
    expected = [x + y, x - y, x * y, x / y, np.maximum(x, y), np.sqrt(x * x), x, last]
    for ours, theirs in zip(out, expected, strict=True):
        np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))
    for mask, bits in zip(masks, (x > y, x >= y, x < y, x != y, x == y), strict=True):
        np.testing.assert_array_equal(mask >> np.arange(LANES) & 1, bits)


@numba.njit
def _fma(x, y, z, out):
    store(out, 0, vector.fma(load(x, 0), load(y, 0), load(z, 0)))


@numba.njit
def _neighbours(x, y, out, of_lanes):
    store(out, 0, vector.sums_of_2(x, 3))
    store(out, 16, vector.sums_of_4(x, 3))
    vector.store_2_times(out, 32, load(x, 0))
    vector.store_4_times(out, 64, load(x, 0))
    divisor = load(y, 0)
    store(out, 128, vector.quotient(load(x, 0), divisor, vector.splat(np.float32(1)) / divisor))
    of_lanes[0] = vector.max_of_lanes(load(x, 5))
    of_lanes[1] = vector.sum_of_lanes(load(x, 5))


@given(strategies.seeds())
def test_neighbours_and_all_lanes(seed):
    rng = np.random.default_rng(seed)
    x = strategies.normal(rng, (80,), np.dtype(np.float32))
    y = np.exp(rng.uniform(-8, 8, LANES)).astype(np.float32)
    out, of_lanes = np.empty(144, np.float32), np.empty(2, np.float32)
    _neighbours(x, y, out, of_lanes)
    twos, fours = x[3 : 3 + 32].reshape(LANES, 2), x[3 : 3 + 64].reshape(LANES, 4)
    expected = [
        twos[:, 0] + twos[:, 1],
        ((fours[:, 0] + fours[:, 1]) + fours[:, 2]) + fours[:, 3],
        x[:LANES].repeat(2),
        x[:LANES].repeat(4),
        x[:LANES] / y,
    ]
    np.testing.assert_array_equal(out, np.concatenate(expected))
    assert of_lanes[0] == x[5 : 5 + LANES].max()
    np.testing.assert_allclose(of_lanes[1], x[5 : 5 + LANES].sum(), atol=1e-5)


def test_a_quotient_is_rounded_correctly():
    """Of many none is another than the division's, also where the divisor is all ones."""
    rng = np.random.default_rng(0)
    x = strategies.normal(rng, (1 << 16,), np.dtype(np.float32))
    for y in (
        np.exp(rng.uniform(-6, 8, len(x))).astype(np.float32),
        (rng.integers(0, 2**8, len(x)) | 0x3F7FFF00).astype(np.uint32).view(np.float32),
    ):
        out = np.empty_like(x)
        _quotients(x, y, out)
        np.testing.assert_array_equal(out, x / y)


@numba.njit
def _quotients(x, y, out):
    for i in range(0, len(x), LANES):
        inverse = vector.splat(np.float32(1)) / load(y, i)
        store(out, i, vector.quotient(load(x, i), load(y, i), inverse))


def products_with_sums(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Three times sixteen float32; here and there x * y + z nearly cancels, or is next to a tie."""
    x, y, z = strategies.normal(rng, (3, LANES), np.dtype(np.float32))
    z[:5] = -(x * y)[:5]
    # 1 + 2 ** -24 is a tie of two float32; what is added to it decides, and double has no room
    x[5:8], y[5:8] = 1 + 2.0**-12, 1 + 2.0**-12
    z[5:8] = 2.0**-30, -(2.0**-30), 2.0**30
    x[8:10], y[8:10], z[8:10] = 2.0**-30, (2.0**-31, -(2.0**-31)), 1 + 2.0**-23
    x[10:12], y[10:12], z[10:12] = 2.0**-12, 2.0**-12, (1, 2.0**-60)
    return x, y, z


@pytest.mark.skipif(not vector.FUSED, reason="this CPU has no fused multiply-add")
@given(strategies.seeds())
def test_fma_rounds_once(seed):
    x, y, z = products_with_sums(np.random.default_rng(seed))
    out = np.empty(LANES, np.float32)
    _fma(x, y, z, out)
    for a, b, c, found in zip(x, y, z, out, strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        off = abs(exact - Fraction(float(found)))
        for other in np.nextafter(found, np.array([-np.inf, np.inf], np.float32)):
            assert off <= abs(exact - Fraction(float(other))), (a, b, c, found)
            if off == abs(exact - Fraction(float(other))):  # a tie: to even
                assert found.view(np.int32) % 2 == 0


@numba.njit
def _ints(x, y, shift, out, masks):
    a, b, few = load(x, 0), load(y, 0), load(shift, 0)
    store(out, 0, a + b)
    store(out, 16, a - b)
    store(out, 32, a * b)
    store(out, 48, a & b)
    store(out, 64, a | b)
    store(out, 80, a ^ b)
    store(out, 96, a << few)
    store(out, 112, a >> few)
    store(out, 128, vector.popcount(a))
    store(out, 144, vector.select(a < b, a, b))
    store(out, 160, vector.splat(x[3]))
    store(out, 176, vector.shift_in_sign(a, vector.of_bits(b)))
    masks[0] = vector.ones_of(a > b)
    masks[1] = vector.ones_of(a >= b)
    masks[2] = vector.ones_of(a < b)
    masks[3] = np.uint32(vector.any_of(a > b))
    masks[4] = np.uint32(vector.any_of(a > a))


@given(strategies.seeds())
def test_ints(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(INT32.min, INT32.max, (2, LANES), np.int32, endpoint=True)
    y = np.where(rng.random(LANES) < 0.3, x, y)
    shift = rng.integers(0, 32, LANES, np.int32)
    out, masks = np.empty((12, LANES), np.int32), np.empty(5, np.uint32)
    _ints(x, y, shift, out, masks)
    ones = np.array([bin(word).count("1") for word in x.view(np.uint32)])
    expected = [x + y, x - y, x * y, x & y, x | y, x ^ y, x << shift, x >> shift]
    expected += [ones, np.minimum(x, y), np.full(LANES, x[3]), x << 1 | (y < 0)]
    for ours, theirs in zip(out, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for mask, bits in zip(masks, (x > y, x >= y, x < y), strict=False):
        np.testing.assert_array_equal(mask >> np.arange(LANES) & 1, bits)
    assert masks[3] == (x > y).any()
    assert masks[4] == 0


@numba.njit
def _conversions(x, whole, words, out, out_ints, out_words):
    store(out, 0, vector.to_floats(load(whole, 0)))
    store(out_ints, 0, vector.bits_of(vector.of_bits(load(whole, 0))))
    store(out_ints, 16, vector.bits_of(load(x, 0)))
    store(out_words, 0, load(words, 0))
    store(out_words, 16, vector.broadcast(words, 2))


def test_conversions():
    rng = np.random.default_rng(0)
    x = (100 * rng.standard_normal(LANES)).astype(np.float32)
    x[:4] = 0.0, -0.0, 1.5, -1.5
    whole = rng.integers(-(2**24), 2**24, LANES, np.int32)
    words = rng.integers(0, 2**32, LANES, np.uint32)
    out, out_ints = np.empty(LANES, np.float32), np.empty((2, LANES), np.int32)
    out_words = np.empty((2, LANES), np.uint32)
    _conversions(x, whole, words, out, out_ints, out_words)
    np.testing.assert_array_equal(out, whole)
    np.testing.assert_array_equal(out_ints[0], whole)
    np.testing.assert_array_equal(out_ints[1], x.view(np.int32))
    np.testing.assert_array_equal(out_words, [words, np.full(LANES, words[2])])


@numba.njit
def _copy(x, x_at, out, out_at):
    store(out, out_at, load(x, x_at))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32])
@pytest.mark.parametrize("at", [0, 1, 13])  # no place is better than another
def test_memory_by_flat_index(dtype, at):
    x, out = np.arange(60).reshape(3, 20).astype(dtype), np.zeros(40, dtype)
    _copy(x, at, out, 7)
    np.testing.assert_array_equal(out[7:23], np.arange(at, at + 16))
    assert not out[:7].any() and not out[23:].any()


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
@pytest.mark.parametrize("x", [np.zeros(16), np.zeros(16, np.int64), np.zeros((4, 8), "f")[:, ::2]])
def test_arrays_without_such_lanes_are_refused(x):
    with pytest.raises(TypingError):
        _copy(x, 0, np.zeros(16, np.float32), 0)


HASWELL = "+avx,+avx2,+fma,-avx512f,-avx512bw"


@pytest.mark.parametrize(
    ("host", "avx", "cpu", "features", "expected"),
    [
        ("avx2 avx512f avx512bw", 1, None, None, "avx2 avx512f avx512bw"),
        ("avx2 avx512f avx512bw", 0, None, None, ""),
        ("avx2 avx512f avx512bw", 1, None, "-avx512bw", "avx2 avx512f"),
        ("avx2 avx512f avx512bw", 1, None, "-avx512f", "avx2"),
        ("avx2 avx512f avx512bw", 1, None, "+sse3, -avx", ""),
        ("avx2 avx512f avx512bw", 1, "haswell", HASWELL, "avx2"),
        ("avx2 avx512f avx512bw", 1, "generic", "", ""),
        ("avx2", 1, "skylake-avx512", "+avx2,+avx512f,+avx512bw", "avx2 avx512f avx512bw"),
        ("avx2", 1, None, None, "avx2"),
        ("", 1, None, None, ""),
    ],
)
def test_what_machine_code_may_use(monkeypatch, host, avx, cpu, features, expected):
    known = ("avx", "avx2", "avx512f", "avx512bw")
    found = binding.get_host_cpu_features()
    own = type(found)({name: name in ("avx", *host.split()) for name in known})
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: own)
    for name, value in (("ENABLE_AVX", avx), ("CPU_NAME", cpu), ("CPU_FEATURES", features)):
        monkeypatch.setattr(numba.config, name, value)
    able = [name for name in ("avx2", "avx512f", "avx512bw") if vector.able(name)]
    assert able == expected.split()
