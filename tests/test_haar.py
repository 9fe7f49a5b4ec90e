"""haar [SPEC 4]: PyWavelets, reconstruction, adjoints, PyTorch, literal bands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.conventions import ConfigError, DtypeError, ShapeError
from refimpl.ops import haar
from tests import oracles, strategies, tolerances

MODES = st.sampled_from(["edge", "periodic"])
NORMS = st.sampled_from(["average", "ortho"])
SIDES = st.integers(1, 9)


def unpack(coeffs):
    cA, details = coeffs
    return [cA, *details]


def pack(bands):
    return bands[0], tuple(bands[1:])


def flat(v):
    """An array or four bands as one vector."""
    return np.concatenate([b.ravel() for b in unpack(v)]) if isinstance(v, tuple) else v.ravel()


def assert_close(actual, expected, dtype):
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype and a.shape == e.shape
        worst = tolerances.disagreement(a, e, floor=1.0)
        oracles.note(f"haar, {dtype}", worst)
        assert worst <= tolerances.HAAR[dtype]


def draw(seed, shape, dtype):
    return strategies.normal(np.random.default_rng(seed), shape, dtype)


def draw_bands(seed, shape, dtype):
    return pack(list(draw(seed, (4, *shape), dtype)))


def assert_adjoint(transform, adjoint, x, y, dtype):
    """<Tx, y> = <x, T'y>, where x and y are each an array or four bands."""
    image, back = flat(transform(x)), flat(adjoint(y))
    x, y = flat(x), flat(y)
    scale = max(np.linalg.norm(image) * np.linalg.norm(y), 1.0)
    assert abs(image @ y - x @ back) <= tolerances.HAAR[dtype] * scale


@given(strategies.seeds(), strategies.sizes(4), strategies.floats())
def test_dwt2_is_pywavelets(seed, shape, dtype):
    pywt = oracles.require("pywt")
    x = draw(seed, (*shape[:2], 2 * shape[2], 2 * shape[3]), dtype)
    ours, theirs = haar.dwt2(x), pywt.dwt2(x, "haar", axes=(-2, -1))
    assert_close(unpack(ours), unpack(theirs), dtype)
    coeffs = draw_bands(seed, shape, dtype)
    assert_close([haar.idwt2(coeffs)], [pywt.idwt2(coeffs, "haar", axes=(-2, -1))], dtype)


@given(strategies.seeds(), strategies.sizes(4), strategies.floats(), NORMS)
def test_periodic_swt2_is_pywavelets_without_any_shift(seed, shape, dtype, norm):
    pywt = oracles.require("pywt")
    x = draw(seed, (*shape[:2], 2 * shape[2], 2 * shape[3]), dtype)
    ((cA, details),) = pywt.swt2(x, "haar", level=1, axes=(-2, -1), norm=norm == "average")
    assert_close(unpack(haar.swt2(x, "periodic", norm)), [cA, *details], dtype)
    rebuilt = pywt.iswt2([(cA, details)], "haar", norm=norm == "average", axes=(-2, -1))
    assert_close([haar.iswt2((cA, details), norm)], [rebuilt], dtype)


@given(strategies.seeds(), SIDES, SIDES, strategies.floats(), MODES, NORMS)
def test_iswt2_rebuilds_every_size(seed, height, width, dtype, mode, norm):
    x = draw(seed, (3, height, width), dtype)
    assert_close([haar.iswt2(haar.swt2(x, mode, norm), norm)], [x], dtype)


@given(strategies.seeds(), SIDES, SIDES, strategies.floats())
def test_idwt2_rebuilds_every_even_size(seed, height, width, dtype):
    x = draw(seed, (3, 2 * height, 2 * width), dtype)
    assert_close([haar.idwt2(haar.dwt2(x))], [x], dtype)


@given(strategies.seeds(), SIDES, SIDES, strategies.floats(), MODES, NORMS)
def test_swt2_and_iswt2_have_their_adjoints(seed, height, width, dtype, mode, norm):
    shape = (2, height, width)
    x, bands = draw(seed, shape, dtype), draw_bands(seed + 1, shape, dtype)
    assert_adjoint(
        lambda v: haar.swt2(v, mode, norm),
        lambda d: haar.swt2_backward(d, mode, norm),
        x, bands, dtype,
    )  # fmt: skip
    assert_adjoint(
        lambda c: haar.iswt2(c, norm), lambda d: haar.iswt2_backward(d, norm), bands, x, dtype
    )


@given(strategies.seeds(), SIDES, SIDES, strategies.floats())
def test_dwt2_and_idwt2_have_their_adjoints(seed, height, width, dtype):
    x = draw(seed, (2, 2 * height, 2 * width), dtype)
    bands = draw_bands(seed + 1, (2, height, width), dtype)
    assert_adjoint(haar.dwt2, haar.dwt2_backward, x, bands, dtype)
    assert_adjoint(haar.idwt2, haar.idwt2_backward, bands, x, dtype)


@given(strategies.seeds(), SIDES, SIDES, strategies.floats(), MODES, NORMS)
def test_undecimated_against_torch(seed, height, width, dtype, mode, norm):
    mirror = oracles.require("torch", "tests.torch_models.ops")
    torch = oracles.require("torch")
    shape = (2, 3, height, width)
    for name, forward_options, backward_options, transposed in (
        ("swt2", {"mode": mode, "norm": norm}, {"mode": mode, "norm": norm}, False),
        ("iswt2", {"norm": norm}, {"norm": norm}, True),
    ):
        arrays = list(draw(seed, (4, *shape), dtype)) if transposed else [draw(seed, shape, dtype)]
        leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
        theirs = getattr(mirror, name)(pack(leaves) if transposed else leaves[0], **forward_options)
        ours = getattr(haar, name)(pack(arrays) if transposed else arrays[0], **forward_options)
        theirs = [theirs] if transposed else unpack(theirs)
        ours = [ours] if transposed else unpack(ours)
        assert_close(ours, [t.detach().numpy() for t in theirs], dtype)
        upstream = list(draw(seed + 1, (len(ours), *shape), dtype))
        expected = torch.autograd.grad(theirs, leaves, [torch.tensor(d) for d in upstream])
        dy = upstream[0] if transposed else pack(upstream)
        found = getattr(haar, f"{name}_backward")(dy, **backward_options)
        found = unpack(found) if transposed else [found]
        assert_close(found, [e.numpy() for e in expected], dtype)


@given(strategies.seeds(), SIDES, SIDES, strategies.floats())
def test_decimated_against_torch(seed, height, width, dtype):
    mirror = oracles.require("torch", "tests.torch_models.ops")
    torch = oracles.require("torch")
    x = draw(seed, (2, 2 * height, 2 * width), dtype)
    coeffs = draw(seed, (4, 2, height, width), dtype)
    leaf = torch.tensor(x, requires_grad=True)
    theirs = unpack(mirror.dwt2(leaf))
    assert_close(unpack(haar.dwt2(x)), [t.detach().numpy() for t in theirs], dtype)
    (expected,) = torch.autograd.grad(theirs, leaf, [torch.tensor(d) for d in coeffs])
    assert_close([haar.dwt2_backward(pack(list(coeffs)))], [expected.numpy()], dtype)
    leaves = [torch.tensor(c, requires_grad=True) for c in coeffs]
    rebuilt = mirror.idwt2(pack(leaves))
    assert_close([haar.idwt2(pack(list(coeffs)))], [rebuilt.detach().numpy()], dtype)
    expected = torch.autograd.grad(rebuilt, leaves, torch.tensor(x))
    assert_close(unpack(haar.idwt2_backward(x)), [e.numpy() for e in expected], dtype)


@pytest.mark.parametrize("dtype", strategies.FLOATS)
def test_the_bands_have_their_names(dtype):
    """H is the difference of rows, V of columns: one block with four different pixels."""
    x = np.array([[8.0, 4.0], [2.0, 1.0]], dtype)
    assert [b.item() for b in unpack(haar.dwt2(x))] == [7.5, 4.5, 2.5, 1.5]
    for norm, factor in (("ortho", 0.5), ("average", 0.25)):
        cA, cH, cV, cD = unpack(haar.swt2(x, "edge", norm))
        np.testing.assert_array_equal(cA, np.array([[15, 10], [6, 4]]) * factor)
        np.testing.assert_array_equal(cH, np.array([[9, 6], [0, 0]]) * factor)
        np.testing.assert_array_equal(cV, np.array([[5, 0], [2, 0]]) * factor)
        np.testing.assert_array_equal(cD, np.array([[3, 0], [0, 0]]) * factor)
        _, cH, _, cD = unpack(haar.swt2(x, "periodic", norm))
        np.testing.assert_array_equal(cH, np.array([[9, 9], [-9, -9]]) * factor)
        np.testing.assert_array_equal(cD, np.array([[3, -3], [-3, 3]]) * factor)


def test_inputs_are_left_alone():
    x = draw(0, (2, 4, 6), np.float64)
    x.flags.writeable = False
    for coeffs, back in ((haar.swt2(x), haar.iswt2), (haar.dwt2(x), haar.idwt2)):
        for band in unpack(coeffs):
            band.flags.writeable = False
        back(coeffs)
    haar.swt2_backward(haar.swt2(x))
    haar.iswt2_backward(x)


def test_rejects_bad_input():
    x = np.ones((2, 4, 6))
    for odd in (np.ones((2, 3, 6)), np.ones((2, 4, 5))):
        with pytest.raises(ShapeError, match="even"):
            haar.dwt2(odd)
    for transform in (haar.dwt2, haar.swt2):
        with pytest.raises(DtypeError):
            transform(x.astype(np.int64))
    mixed = (x, (x, x, x.astype(np.float32)))
    for inverse in (haar.idwt2, haar.iswt2):
        with pytest.raises(DtypeError):
            inverse(mixed)
        with pytest.raises(ShapeError, match="cV"):
            inverse((x, (x, x[:1], x)))
    with pytest.raises(ConfigError, match="mode"):
        haar.swt2(x, "reflect")
    with pytest.raises(ConfigError, match="norm"):
        haar.swt2(x, norm="sum")
