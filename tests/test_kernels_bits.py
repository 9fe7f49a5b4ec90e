"""Packing and the products of bits: every path against plain integers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, DtypeError, NonFiniteError, ShapeError
from refimpl.kernels import bits, popcount
from refimpl.ops import split_heads
from tests import strategies

LENGTHS = (1, 31, 32, 33, 63, 64, 65, 127, 192, 384)  # K: edges of a word, and usual ones
ROWS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50)  # edges of register blocks and of lanes
# the smallest of everything, for where nothing is compiled
SMALL = ((1, 1, 1), (2, 3, 33), (9, 17, 65))

seeds, lengths, rows = strategies.seeds(), st.sampled_from(LENGTHS), st.sampled_from(ROWS)
# a fixture that only chooses the path may stay as it is from one example to the next
on_each_path = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=popcount.PATHS)
def path(request, monkeypatch):
    """Force a path; the one that suits the host again afterwards."""
    monkeypatch.setenv("REFIMPL_PATH", request.param)
    popcount.path.cache_clear()
    yield request.param
    popcount.path.cache_clear()


def signs(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1, -1)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    return strategies.on_grid(rng, shape, np.dtype(dtype))


def assert_products(rng: np.random.Generator, batch: tuple[int, ...], m: int, n: int, k: int):
    """Both products of random matrices against NumPy's of integers."""
    x, w = draw(rng, (*batch, m, k)), draw(rng, (*batch, n, k))
    packed, weights = bits.pack(x), bits.pack(w)
    product = bits.binary_product(packed, weights)
    assert product.dtype == np.int32
    np.testing.assert_array_equal(product, signs(x) @ signs(w).swapaxes(-1, -2))
    product = bits.boolean_product(bits.pack(x, above=0.5), weights)
    assert product.dtype == np.int32
    np.testing.assert_array_equal(product, (x > 0.5).astype(int) @ signs(w).swapaxes(-1, -2))


@on_each_path
@given(seeds, rows, rows, lengths)
def test_products(path, seed, m, n, k):
    assert popcount.path() is popcount.PATHS[path]
    assert_products(np.random.default_rng(seed), (), m, n, k)


@on_each_path
@given(seeds, strategies.sizes(2, high=4), st.integers(1, 40), st.integers(1, 40), lengths)
def test_products_of_batches_and_heads(path, seed, batch, m, n, k):
    assert_products(np.random.default_rng(seed), batch, m, n, k)


def test_long_rows_overflow_no_counter(path):
    # more than 31 words of ones: a byte that counts them would overflow
    x = np.ones((3, 5000), np.float32)
    np.testing.assert_array_equal(bits.binary_product(bits.pack(x), bits.pack(x)), 5000)
    np.testing.assert_array_equal(bits.binary_product(bits.pack(x), bits.pack(-x)), -5000)
    np.testing.assert_array_equal(bits.boolean_product(bits.pack(x, 0.0), bits.pack(-x)), -5000)


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_small_products(path, shape, batch):
    assert_products(np.random.default_rng(0), batch, *shape)


@given(seeds, rows, lengths, strategies.floats(), st.sampled_from([None, 0.0, 0.5, -0.25, 1.0]))
def test_pack_and_unpack(seed, m, k, dtype, above):
    rng = np.random.default_rng(seed)
    x = strategies.on_grid(rng, (2, m, k), dtype, (0.0, -0.0, 0.5, -0.25, 1.0))
    assert_packed(x, above)


@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 17, 31), (2, 3, 4, 5), (1, 2, 1, 2, 70)])
@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize("above", [None, 0.5])
def test_small_pack_and_unpack(shape, dtype, above):
    assert_packed(draw(np.random.default_rng(1), shape, dtype), above)


def assert_packed(x: np.ndarray, above: float | None) -> None:
    """The layout of `bits`, its padding of 0 bits, and the way back."""
    packed, expected = bits.pack(x, above), x >= 0 if above is None else x > above
    rows, length = x.shape[-2:]
    blocks, words = -(-rows // 16), -(-length // 32)
    assert packed.words.shape == (*x.shape[:-2], blocks, words, 16)
    assert packed.words.dtype == np.uint32
    assert (packed.rows, packed.length) == (rows, length)
    np.testing.assert_array_equal(bits.unpack(packed), expected)
    all_bits = packed.words[..., None] >> np.arange(32, dtype=np.uint32) & 1
    lanes = all_bits.astype(bool).swapaxes(-2, -3)  # (..., blocks, 16, words, 32)
    lanes = lanes.reshape(*x.shape[:-2], blocks * 16, words * 32)
    np.testing.assert_array_equal(lanes[..., :rows, :length], expected)
    assert not lanes[..., rows:, :].any()
    assert not lanes[..., length:].any()


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_both_zeros_are_plus_one_and_the_threshold_itself_is_no_one(dtype):
    points = np.array([[0.0, -0.0, np.nextafter(dtype.type(0), dtype.type(-1)), 0.5]], dtype)
    np.testing.assert_array_equal(bits.unpack(bits.pack(points)), [[True, True, False, True]])
    half = dtype.type(0.5)
    points = np.array([[0.5, np.nextafter(half, dtype.type(1)), np.nextafter(half, -half)]], dtype)
    np.testing.assert_array_equal(bits.unpack(bits.pack(points, 0.5)), [[False, True, False]])
    extremes = np.array([[np.finfo(dtype).max, np.finfo(dtype).min, np.finfo(dtype).tiny]], dtype)
    np.testing.assert_array_equal(bits.unpack(bits.pack(extremes)), [[True, False, True]])


@pytest.mark.parametrize("strided", [
    lambda x: x.transpose(1, 0, 2),
    lambda x: x.transpose(0, 2, 1),
    lambda x: x[:, ::2],
    lambda x: x[:, ::-1, 3:],
    lambda x: x[..., ::-1],
    lambda x: x[..., ::3],
    lambda x: split_heads.forward(x, 3)[0],
    lambda x: split_heads.forward(x, 3, transposed=True)[0],
    lambda x: np.broadcast_to(x[:1], x.shape),
    np.asfortranarray,
])  # fmt: skip
def test_any_strides(strided):
    x = strided(draw(np.random.default_rng(2), (3, 20, 99)))
    np.testing.assert_array_equal(bits.unpack(bits.pack(x)), x >= 0)
    packed, same = bits.pack(x), bits.pack(np.ascontiguousarray(x))
    np.testing.assert_array_equal(packed.words, same.words)


def test_rows_that_lie_an_odd_number_of_bytes_apart():
    """A field of records, whose steps are no whole numbers of values."""
    x = draw(np.random.default_rng(5), (2, 3, 5, 40))
    records = np.zeros(x.shape[:-1], [("mark", np.uint8), ("x", np.float32, x.shape[-1])])
    records["x"] = x
    np.testing.assert_array_equal(bits.unpack(bits.pack(records["x"])), x >= 0)


def test_heads_are_packed_where_they_lie(monkeypatch):
    x = draw(np.random.default_rng(3), (2, 5, 66))
    monkeypatch.setattr(np, "ascontiguousarray", lambda x: pytest.fail("a copy"))
    heads, _ = split_heads.forward(x, 2)
    packed = bits.pack(heads)
    monkeypatch.undo()
    np.testing.assert_array_equal(bits.unpack(packed), heads >= 0)


def test_read_only_input():
    x = draw(np.random.default_rng(4), (3, 40))
    x.flags.writeable = False
    np.testing.assert_array_equal(bits.unpack(bits.pack(x)), x >= 0)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 0, 15), (1, 17, 16), (0, 4, 31), (1, 2, 32),
                                   (1, 17, 36)])  # fmt: skip
@pytest.mark.parametrize("above", [None, 0.5])
def test_nan_and_infinity_are_named(dtype, bad, place, above):
    x = np.ones((2, 18, 37), dtype)
    x[place] = bad
    with pytest.raises(NonFiniteError, match=rf"pack: x\[{', '.join(map(str, place))}\] is"):
        bits.pack(x, above)
    with pytest.raises(NonFiniteError, match="pack: x"):
        bits.pack(x.swapaxes(-1, -2), above)


@pytest.mark.parametrize("dtype", [np.int64, np.float16, bool, np.uint8, np.complex64])
def test_other_types_are_refused(dtype):
    with pytest.raises(DtypeError, match=rf"pack: x is {np.dtype(dtype)}; expected float32"):
        bits.pack(np.ones((2, 3), dtype))


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (3, 0), (0, 2, 3), (2, 0, 3, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match=r"pack: x has shape \("):
        bits.pack(np.ones(shape, np.float32))


@pytest.mark.parametrize("product", [bits.binary_product, bits.boolean_product])
@pytest.mark.parametrize(("a", "w"), [
    ((3, 32), (3, 31)),
    ((3, 32), (3, 64)),
    ((2, 3, 32), (3, 3, 32)),
    ((2, 3, 32), (3, 32)),
    ((2, 1, 3, 32), (2, 3, 3, 32)),
])  # fmt: skip
def test_products_of_different_lengths_or_batches_are_refused(product, a, w):
    packed = [bits.pack(np.ones(shape, np.float32)) for shape in (a, w)]
    with pytest.raises(ShapeError, match=f"{product.__name__}: shapes .* expected equal"):
        product(*packed)


def test_an_unknown_path_is_refused(monkeypatch):
    monkeypatch.setenv("REFIMPL_PATH", "sse")
    popcount.path.cache_clear()
    with pytest.raises(ConfigError, match="REFIMPL_PATH is 'sse'; expected one of avx512, avx2"):
        popcount.path()
    monkeypatch.undo()
    popcount.path.cache_clear()
    assert popcount.path() in popcount.PATHS.values()


@pytest.mark.parametrize(
    ("triple", "features", "expected"),
    [
        ("aarch64-unknown-linux-gnu", {}, "neon"),
        ("arm64-apple-darwin24.1.0", {}, "neon"),
        ("x86_64-unknown-linux-gnu", {"avx2": True, "avx512vpopcntdq": True}, "avx512"),
        ("x86_64-apple-darwin", {"avx2": True}, "avx2"),
        ("x86_64-pc-windows-msvc", {}, "plain"),
        ("riscv64-unknown-linux-gnu", {}, "plain"),
    ],
)
def test_the_path_of_a_processor(triple, features, expected, monkeypatch):
    monkeypatch.delenv("REFIMPL_PATH", raising=False)
    monkeypatch.setattr(popcount.binding, "get_process_triple", lambda: triple)
    monkeypatch.setattr(popcount.binding, "get_host_cpu_features", lambda: features)
    popcount.path.cache_clear()
    assert popcount.path() is popcount.PATHS[expected]
    monkeypatch.undo()
    popcount.path.cache_clear()


def test_small_roofline_runs_on_each_path():
    for path in popcount.PATHS.values():
        assert path.sums in (4, 16)
        first, again = (popcount.run_roofline(path, 3, 5) for _ in range(2))
        assert first == again
