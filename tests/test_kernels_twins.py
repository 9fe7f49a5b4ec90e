"""The fused twins against their originals: values to the bit, gradients to the ladder, errors.

gelu's erf in float32 is not its original's: it is held against the original in float64.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from refimpl import ops
from refimpl.conventions import RefimplError
from refimpl.kernels import backend, rows
from refimpl.ops.neighbours import BORDERS
from tests import check, networks, oracles, strategies, tolerances

TWINS = sorted(name for name in ops.__all__ if getattr(backend, name) is not getattr(ops, name))
THRESHOLDS = (0.0, -0.0, 1.0, -1.0)  # of a sign and of both surrogates
F32, F64 = strategies.FLOATS

seeds, floats = strategies.seeds(), strategies.floats()
# around a vector and around the eight and the 128 terms at which NumPy's sums change their order
channels = st.sampled_from((1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127, 128, 129, 144, 200, 300))
grids, first = st.sampled_from(networks.GRIDS), st.integers(0, 1)


def agree(name: str, arrays: check.Arrays, seed: int, length: int = 1, **options: Any) -> None:
    """Twin and original on the same arrays and the same gradients of the output.

    `length` is that of the longest sum in a gradient. The values are equal, since a network's
    signs depend on them.
    """
    twin, op = getattr(backend, name), getattr(ops, name)
    ours, theirs = (
        check.run(m, arrays, np.random.default_rng(seed), **options) for m in (twin, op)
    )
    for value, expected in zip(ours.values, theirs.values, strict=True):
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)
    for index, (gradient, expected) in enumerate(zip(ours.gradients, theirs.gradients)):
        if expected is None:
            assert gradient is None
            continue
        worst = tolerances.disagreement(gradient, expected)
        oracles.note(f"twins, gradients, {expected.dtype}", worst, f"{name} gradient {index}")
        assert worst <= tolerances.relative(expected.dtype, length), (name, index, worst)


def draw_layer_norm(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype):
    x, weight, bias = (strategies.normal(rng, s, dtype) for s in (shape, shape[-1:], shape[-1:]))
    return (x + dtype.type(0.5), weight, bias)


@given(seeds, strategies.sizes(2, high=6), channels, floats, st.integers(0, 2))
def test_layer_norm(seed, leading, count, dtype, axes):
    shape = (*leading[:axes], count)
    arrays = draw_layer_norm(np.random.default_rng(seed), shape, dtype)
    agree("layer_norm", arrays, seed, int(np.prod(shape)), eps=1e-5)


def draw_rprelu(rng: np.random.Generator, shape: tuple[int, int, int], dtype, per_token: bool):
    _, tokens, count = shape
    shapes = [shape, *[(count,)] * 3, *[(tokens,)] * 2]
    arrays = [strategies.on_grid(rng, s, dtype) for s in shapes]  # u = 0 among them
    return tuple(arrays if per_token else [*arrays[:4], None, None])


@given(seeds, strategies.sizes(2, high=6), channels, floats, st.booleans())
def test_rprelu(seed, leading, count, dtype, per_token):
    shape = (*leading, count)
    arrays = draw_rprelu(np.random.default_rng(seed), shape, dtype, per_token)
    agree("rprelu", arrays, seed, int(np.prod(shape)))


def draw_binary_linear(rng: np.random.Generator, shape, outputs: int, dtype, with_bias: bool):
    x = strategies.on_grid(rng, shape, dtype, THRESHOLDS)
    bias = strategies.normal(rng, (outputs,), dtype) if with_bias else None
    return x, strategies.weight(rng, (outputs, shape[-1]), dtype), bias


@given(
    seeds,
    strategies.sizes(2, high=6),
    channels,
    st.integers(1, 40),
    floats,
    st.booleans(),
    st.sampled_from(networks.SWITCHES["binarize"]),
    st.sampled_from(networks.SWITCHES["ste"]),
)
def test_binary_linear(seed, leading, inputs, outputs, dtype, with_bias, binarize, ste):
    shape = (*leading, inputs)
    arrays = draw_binary_linear(np.random.default_rng(seed), shape, outputs, dtype, with_bias)
    length = int(np.prod(leading)) * max(inputs, outputs)
    agree("binary_linear", arrays, seed, length, binarize=binarize, ste=ste)


def draw_boolean_attention(rng: np.random.Generator, sizes, dtype, per_head: bool, binary: bool):
    batch, heads, tokens, d = sizes
    alpha = np.full((heads, 1, 1) if per_head else (), 0.25)
    alpha[...] *= rng.choice([1.0, 2.0, 1e-5], alpha.shape)
    # halves of a step: q = 0, 1/2, 1 and what lies between and above
    prob = rng.integers(0, 8, (batch, heads, tokens, tokens)) / 16
    value = (strategies.binary if binary else strategies.normal)(
        rng, (batch, heads, d, tokens), dtype
    )
    return prob.astype(dtype), value, alpha.astype(dtype)


@given(
    seeds,
    strategies.sizes(4, high=9),
    floats,
    st.booleans(),
    st.booleans(),
    st.sampled_from(networks.SWITCHES["binarize"]),
)
def test_boolean_attention(seed, sizes, dtype, per_head, binary, binarize):
    rng = np.random.default_rng(seed)
    arrays = draw_boolean_attention(rng, sizes, dtype, per_head, binary)
    agree("boolean_attention", arrays, seed, int(np.prod(sizes)) * 9, binarize=binarize)


def draw_band_sum(rng: np.random.Generator, sizes, dtype):
    batch, heads, tokens = sizes
    shapes = [(batch, heads, tokens, tokens)] * 2 + [(2, heads)]
    return tuple(strategies.normal(rng, shape, dtype) for shape in shapes)


@given(seeds, strategies.sizes(3, high=14), floats, st.integers(1, 9))
def test_band_sum(seed, sizes, dtype, head_dim):
    arrays = draw_band_sum(np.random.default_rng(seed), sizes, dtype)
    agree("band_sum", arrays, seed, sizes[0] * sizes[2] ** 2, head_dim=head_dim)


@given(seeds, strategies.sizes(2, high=6), channels, floats)
def test_softmax(seed, leading, count, dtype):
    x = 3 * strategies.normal(np.random.default_rng(seed), (*leading, count), dtype)
    agree("softmax", (x,), seed, count)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_small_softmax_of_large_inputs(dtype):
    x = np.array([[1000, 1000, -1000], [-3e4, -3e4, -3e4]], dtype)
    agree("softmax", (x,), 0, 3)


@given(
    seeds,
    strategies.sizes(4, high=6),
    floats,
    st.permutations(range(4)),
    st.sampled_from(networks.SWITCHES["ste"]),
)
def test_sign(seed, shape, dtype, order, ste):
    z = strategies.on_grid(np.random.default_rng(seed), shape, dtype, THRESHOLDS)
    agree("sign", (z.transpose(order),), seed, ste=ste)


def draw_tokens(rng: np.random.Generator, grid, first: int, count: int, dtype):
    return (strategies.normal(rng, (2, first + grid[0] * grid[1], count), dtype),)


def near_the_truth(x: np.ndarray, seed: int) -> None:
    """gelu in float32 against its original in float64, for the same gradient of the output."""
    ours = check.run(backend.gelu, (x,), np.random.default_rng(seed))
    exact, cache = ops.gelu.forward(x.astype(F64))
    (dx,) = ops.gelu.backward(ours.upstream[0].astype(F64), cache)
    dy_max = float(np.abs(ours.upstream[0]).max())
    # the floors: near a zero of y or of its derivative the terms of a sum cancel
    compared = {"y": (ours.values[0], exact, 1.0), "dx": (ours.gradients[0], dx, dy_max)}
    for name, (found, expected, floor) in compared.items():
        worst = tolerances.disagreement(found, expected, floor)
        oracles.note("twins, gelu against float64", worst, name)
        assert worst <= tolerances.relative(F32, 1), (name, worst)


def draw_gelu(rng: np.random.Generator, shape: tuple[int, ...], dtype):
    return (3 * strategies.normal(rng, shape, dtype),)


@given(seeds, strategies.sizes(2, high=6), channels, floats)
def test_gelu(seed, leading, count, dtype):
    arrays = draw_gelu(np.random.default_rng(seed), (*leading, count), dtype)
    if dtype == F32:
        near_the_truth(*arrays, seed)
    else:
        agree("gelu", arrays, seed)


def test_small_gelu_over_all_magnitudes():
    a = np.geomspace(1e-38, 3e38, 1000).astype(F32)
    a = np.concatenate([[0], a, np.linspace(0, 13, 1000, dtype=F32)]).astype(F32)
    x = np.concatenate([a, -a])
    y, cache = backend.gelu.forward(x)
    (slope,) = backend.gelu.backward(np.ones_like(x), cache)
    exact, cache = ops.gelu.forward(x.astype(F64))
    (dx,) = ops.gelu.backward(np.ones_like(exact), cache)
    assert (np.abs(y - exact) <= 1.2e-7 * np.maximum(1, np.abs(exact))).all()
    assert np.abs(slope - dx).max() <= 1.2e-7
    assert (y[x >= 12] == x[x >= 12]).all() and (y[x <= -12] == 0).all()
    for value in (np.nan, np.inf):
        x[-1] = value
        np.testing.assert_array_equal(backend.gelu.forward(x)[0], ops.gelu.forward(x)[0])


def test_small_gelu_keeps_its_digits_where_it_is_small():
    x = -np.linspace(0.01, 8, 1001, dtype=F32)  # 1 + erf has none left below -5.5
    phi = backend.gelu.forward(x)[0] / x.astype(F64)
    np.testing.assert_allclose(phi, special.ndtr(x.astype(F64)), rtol=5e-6)


@given(seeds, grids, first, channels, floats, st.sampled_from(BORDERS))
def test_neighbours(seed, grid, first, count, dtype, border):
    arrays = draw_tokens(np.random.default_rng(seed), grid, first, count, dtype)
    agree("neighbours", arrays, seed, 8, grid=grid, border=border)


@given(
    seeds,
    grids,
    first,
    channels,
    floats,
    st.sampled_from(networks.SWITCHES["haar_mode"]),
    st.sampled_from(networks.SWITCHES["haar_cls"]),
)
def test_bands(seed, grid, first, count, dtype, mode, cls):
    arrays = draw_tokens(np.random.default_rng(seed), grid, first, count, dtype)
    agree("bands", arrays, seed, 4, grid=grid, mode=mode, cls=cls)


def draw_differential(rng: np.random.Generator, shape: tuple[int, int, int], dtype):
    shapes = shape, shape, shape[-1:], shape[-1:]
    return tuple(strategies.normal(rng, s, dtype) for s in shapes)


@given(seeds, strategies.sizes(2, high=6), channels, floats)
def test_differential(seed, leading, count, dtype):
    arrays = draw_differential(np.random.default_rng(seed), (*leading, count), dtype)
    agree("differential", arrays, seed, int(np.prod(leading)))


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_small_each_twin(dtype):
    """Few enough values for where nothing is compiled; rows of 9 and of 130 channels."""
    rng = np.random.default_rng(0)
    for count in (9, 130):
        agree("layer_norm", draw_layer_norm(rng, (2, count), dtype), 1, 2 * count, eps=1e-6)
        for per_token in (False, True):
            agree("rprelu", draw_rprelu(rng, (2, 3, count), dtype, per_token), 1, 6 * count)
        for ste in ops.sign.STES:
            arrays = draw_binary_linear(rng, (2, 3, count), 5, dtype, True)
            agree("binary_linear", arrays, 1, 6 * count, ste=ste)
            agree("sign", arrays[:1], 1, ste=ste)
        agree("softmax", draw_tokens(rng, (1, 2), 0, count, dtype), 1, count)
        agree("differential", draw_differential(rng, (2, 3, count), dtype), 1, 6)
        if dtype == F32:
            near_the_truth(*draw_gelu(rng, (2, count), dtype), 1)
        for mode, cls in (("edge", "both"), ("periodic", "low")):
            arrays = draw_tokens(rng, (2, 3), 1, count, dtype)
            agree("bands", arrays, 1, 4, grid=(2, 3), mode=mode, cls=cls)
            agree("neighbours", arrays, 1, 8, grid=(2, 3))
    agree("band_sum", draw_band_sum(rng, (2, 3, 4), dtype), 1, 32, head_dim=5)
    for per_head in (False, True):
        arrays = draw_boolean_attention(rng, (2, 3, 5, 4), dtype, per_head, True)
        agree("boolean_attention", arrays, 1, 200)


@pytest.mark.parametrize("name", TWINS)
def test_other_memory_layouts(name):
    """Inputs in Fortran's order, as views and with gaps; a gradient of the output likewise."""
    rng, dtype = np.random.default_rng(2), F32
    arrays, options = {
        "band_sum": (draw_band_sum(rng, (2, 3, 4), dtype), {"head_dim": 5}),
        "bands": (draw_tokens(rng, (2, 3), 1, 5, dtype), {"grid": (2, 3)}),
        "binary_linear": (draw_binary_linear(rng, (2, 3, 5), 7, dtype, True), {}),
        "boolean_attention": (draw_boolean_attention(rng, (2, 3, 5, 4), dtype, True, True), {}),
        "differential": (draw_differential(rng, (2, 3, 5), dtype), {}),
        "gelu": (draw_gelu(rng, (2, 3, 5), dtype), {}),
        "layer_norm": (draw_layer_norm(rng, (2, 3, 5), dtype), {"eps": 1e-5}),
        "neighbours": (draw_tokens(rng, (2, 3), 1, 5, dtype), {"grid": (2, 3)}),
        "rprelu": (draw_rprelu(rng, (2, 3, 5), dtype, True), {}),
        "sign": (draw_tokens(rng, (2, 3), 1, 5, dtype), {}),
        "softmax": (draw_tokens(rng, (2, 3), 1, 5, dtype), {}),
    }[name]
    twin, op = getattr(backend, name), getattr(ops, name)
    expected, _ = twin.forward(*arrays, **options)
    _, cache = op.forward(*arrays, **options)
    dy = [strategies.normal(rng, y.shape, dtype) for y in _listed(expected)]
    gradients = op.backward(_like(expected, dy), cache)
    for changed in (np.asfortranarray, _with_gaps):
        y, cache = twin.forward(*map(changed, arrays), **options)
        for ours, theirs in zip(_listed(y), _listed(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        found = twin.backward(_like(expected, [changed(d) for d in dy]), cache)
        for ours, theirs in zip(found, gradients, strict=True):
            assert tolerances.disagreement(ours, theirs) <= tolerances.relative(dtype, 100)


def _with_gaps(x: np.ndarray) -> np.ndarray:
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]) if x.ndim else (), np.nan, x.dtype)
    view = wide[..., ::2] if x.ndim else wide
    view[...] = x
    return view


def _listed(y) -> list[np.ndarray]:
    return list(y) if isinstance(y, tuple) else [y]


def _like(y, arrays: list[np.ndarray]):
    return tuple(arrays) if isinstance(y, tuple) else arrays[0]


X, C, SCORES = np.ones((2, 6, 5)), np.ones(5), np.ones((2, 3, 4, 4))
ALPHA, BAD = np.array(0.5), np.array([[[1.0, 1.0], [1.0, np.nan]]])
INFINITE = np.where(np.isnan(BAD), -np.inf, BAD)
REFUSED: dict[str, list[tuple]] = {
    "layer_norm": [(X, np.ones(4), C, 1e-5), (X, C, C[:, None], 1e-5), (X, C.astype(F32), C, 1e-5)],
    "rprelu": [
        (X[0], C, C, C),
        (X, C, np.ones(6), C),
        (X, C, C, C, np.ones(6)),
        (X, C, C, C, np.ones(6), np.ones(5)),
        (X.astype(np.float16), *[C.astype(np.float16)] * 3),
    ],
    "binary_linear": [
        (X, np.ones((3, 4))),
        (X, np.ones((3, 5)), np.ones(4)),
        (X, np.ones((3, 5), F32)),
        (BAD, np.ones((3, 2))),
        (INFINITE, np.ones((3, 2))),
        (np.ones((2, 2)), BAD[0]),
    ],
    "boolean_attention": [
        (SCORES[..., :1], np.ones((2, 3, 5, 4)), ALPHA),
        (SCORES, np.ones((2, 3, 5, 4)), np.ones((2, 1, 1))),
        (SCORES, np.ones((2, 3, 5, 4), F32), ALPHA),
        (SCORES * np.nan, np.ones((2, 3, 5, 4)), ALPHA),
        (SCORES, np.ones((2, 3, 5, 4)), ALPHA * np.inf),
    ],
    "band_sum": [
        (SCORES[0], SCORES[0], np.ones((2, 3)), 4),
        (SCORES, SCORES[:1], np.ones((2, 3)), 4),
        (SCORES, SCORES, np.ones((2, 2)), 4),
        (SCORES, SCORES, np.ones((2, 3), F32), 4),
    ],
    "softmax": [(BAD,), (INFINITE,), (X.astype(int),)],
    "sign": [(BAD,), (BAD.T,), (INFINITE,), (X.astype(int),), (X, "identity")],
    "gelu": [(X.astype(int),), (X.astype(np.float16),)],
    "neighbours": [(X, (2, 2)), (X[0], (2, 3)), (X, (2, 3), "none"), (X.astype(int), (2, 3))],
    "bands": [
        (X, (2, 2)),
        (X[0], (2, 3)),
        (X, (2, 3), "zero"),
        (X, (2, 3), "edge", "none"),
        (X[:, :1], (0, 3)),
        (X.astype(int), (2, 3)),
    ],
    "differential": [
        (X, X[:1], C, C),
        (X, X, np.ones(4), C),
        (X, X, C, C.astype(F32)),
        (X[0], X[0], C, C),
    ],
}


@pytest.mark.parametrize(
    ("name", "arguments"), [(name, case) for name, cases in REFUSED.items() for case in cases]
)
def test_the_same_errors(name, arguments):
    with pytest.raises(RefimplError) as expected:
        getattr(ops, name).forward(*arguments)
    with pytest.raises(type(expected.value), match=f"^{re.escape(str(expected.value))}$"):
        getattr(backend, name).forward(*arguments)


def test_every_twin_is_refused_something():
    assert sorted(REFUSED) == TWINS


def test_nothing_in_a_batch_is_nothing_afterwards():
    x, none = np.ones((0, 6, 5)), np.ones((0, 6, 5))
    for name, arguments in {"layer_norm": (x, C, C, 1e-5), "rprelu": (x, C, C, C)}.items():
        y, cache = getattr(backend, name).forward(*arguments)
        assert y.shape == none.shape
        gradients = getattr(backend, name).backward(none, cache)
        np.testing.assert_array_equal(gradients[1], 0)


@given(seeds, st.integers(1, 1000))
def test_sums_of_several_rows_in_the_order_of_numpy(seed, count):
    rng = np.random.default_rng(seed)
    x, stride, at = rng.standard_normal((rows.ROWS + 1, count + 3)).astype(F32), count + 3, 2
    values = x.reshape(-1)[at : at + rows.ROWS * stride].reshape(rows.ROWS, stride)[:, :count]
    means, found = values.mean(axis=1), np.empty(rows.room(count), F32)
    for squared, expected in (
        (False, np.ascontiguousarray(values)),
        (True, (values - means[:, None]) ** 2),
    ):
        rows.sums(x, at, stride, means, squared, rows.order(count), found)
        np.testing.assert_array_equal(found[: rows.ROWS], expected.sum(axis=1))


@given(seeds, st.integers(1, 3000), floats)
def test_sums_in_the_order_of_numpy(seed, count, dtype):
    values = np.random.default_rng(seed).standard_normal((3, count)).astype(dtype)
    for row, expected in enumerate(values.sum(axis=1)):
        assert rows.pairwise_sum(values.reshape(-1), row * count, count) == expected


def test_the_backend_has_what_the_operations_have():
    assert set(backend.__all__) == {*ops.__all__, "attention", "projection"}  # whole units
    for name in ops.__all__:
        module: ModuleType = getattr(backend, name)
        assert hasattr(module, "forward") == hasattr(getattr(ops, name), "forward")
        assert hasattr(module, "backward") == hasattr(getattr(ops, name), "backward")


def test_a_row_whose_variance_overflows_is_that_of_the_operation():
    x = np.full((3, 32), 1e20, np.float32)
    x[:, ::2] *= -1
    x[1] = np.linspace(-1, 1, 32)
    arguments = x, np.ones(32, np.float32), np.zeros(32, np.float32), 1e-6
    with np.errstate(over="ignore"):
        expected = ops.layer_norm.forward(*arguments)[0]
        found = backend.layer_norm.forward(*arguments)[0]
    assert not expected[0].any() and expected[1].any()
    np.testing.assert_array_equal(found, expected)
