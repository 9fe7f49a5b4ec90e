"""What a decoder does with whole fields [SPEC 10] against the ops, compiled or as it is.

Values are fractions of 64, so most sums are exact in float32 and results are equal.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import ops
from refimpl.kernels import dense, levels, stencils
from refimpl.kernels.vector import LANES
from tests import strategies

BEFORE = 2 * LANES  # where the larger grid begins in each channel of its field
FILL = np.float32(np.nan)  # around what is on the grid: whoever reads it fails


def field_of(tokens: np.ndarray, grid: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """(gh*gw, channels) -> a field (channels, pitch), its pitch and margin."""
    margin = stencils.margin(grid[1])
    pitch = -(-len(tokens) // LANES) * LANES + 2 * margin
    field = np.full((tokens.shape[1], pitch), FILL)
    field[:, margin : margin + len(tokens)] = tokens.T
    return field, pitch, margin


def enlarged(x: np.ndarray, factor: int, onto: np.ndarray | None) -> np.ndarray:
    """x (channels, h, w) by the kernel -> (channels, h * factor, w * factor), added where given."""
    channels, *grid = x.shape
    field, pitch, margin = field_of(x.reshape(channels, -1).T, grid)
    size = grid[0] * grid[1] * factor**2
    out = np.full((channels, BEFORE + size + LANES), FILL)
    inside = slice(BEFORE, BEFORE + size)
    if onto is not None:
        out[:, inside] = onto.reshape(channels, -1)
    room = np.empty(grid[0] * grid[1] * factor, np.float32)
    levels.enlarge(
        field.reshape(-1), pitch, margin, tuple(grid), channels, factor, room,
        out.reshape(-1), out.shape[1], BEFORE, onto is None,
    )  # fmt: skip
    assert np.isnan(out[:, :BEFORE]).all() and np.isnan(out[:, inside.stop :]).all()
    return out[:, inside].reshape(channels, grid[0] * factor, grid[1] * factor)


@given(strategies.seeds(), strategies.sizes(3), st.sampled_from((1, 2, 4, 8)), st.booleans())
def test_enlarge_between_grids_is_exact(seed, shape, factor, added):
    rng = np.random.default_rng(seed)
    x = strategies.on_grid(rng, shape, np.float32)
    size = (shape[1] * factor, shape[2] * factor)
    onto = strategies.on_grid(rng, (shape[0], *size), np.float32)
    expected = ops.interpolate.forward(x.astype(np.float64), size, "bilinear")[0]
    found = enlarged(x, factor, onto if added else None)
    np.testing.assert_array_equal(found, expected + onto * added)


@given(strategies.seeds(), strategies.sizes(3), st.integers(1, 17))
def test_enlarge_to_an_image(seed, shape, factor):
    x = strategies.normal(np.random.default_rng(seed), shape, np.float32)
    size = (shape[1] * factor, shape[2] * factor)
    expected = ops.interpolate.forward(x.astype(np.float64), size, "bilinear")[0]
    found, corners = enlarged(x, factor, None), (slice(None), [0, -1], [0, -1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(found[corners], x[corners])  # they stand for all beyond them


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 1)])
def test_enlarge_of_thin_grids(grid):
    x = np.arange(1.0, 1 + 2 * grid[0] * grid[1], dtype=np.float32).reshape(2, *grid)
    size = (grid[0] * 4, grid[1] * 4)
    expected = ops.interpolate.forward(x, size, "bilinear")[0]
    np.testing.assert_array_equal(enlarged(x, 4, None), expected)


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, grid) -> np.ndarray:
    """x (gh*gw, I) by the kernels -> (gh*gw, O)."""
    (tokens, inputs), outputs = x.shape, len(bias)
    field, pitch, margin = field_of(x, grid)
    lanes = -(-tokens // LANES) * LANES
    masks = stencils.masks(grid, 0, lanes).reshape(-1)
    blocked = dense.blocked(weight.transpose(0, 2, 3, 1).reshape(outputs, -1)).reshape(-1)
    seen, sums = np.empty(9 * inputs * LANES, np.float32), np.empty(LANES * LANES, np.float32)
    out = np.full((outputs, pitch), FILL)
    for token in range(0, lanes, LANES):
        stencils.around(
            field.reshape(-1), pitch, margin, inputs, masks, lanes, token, grid[1], seen
        )
        dense.linear(
            seen, 9 * inputs, blocked, 0, outputs, bias, 0, sums,
            out.reshape(-1), pitch, margin + token,
        )  # fmt: skip
    return out[:, margin : margin + tokens].T


@given(
    strategies.seeds(), st.sampled_from(((1, 1), (1, 4), (5, 1), (2, 3), (4, 9), (6, 17))),
    st.integers(1, 9), st.sampled_from((1, 2, 15, 16, 17, 33)),
)  # fmt: skip
def test_the_convolution_is_exact(seed, grid, inputs, outputs):
    rng = np.random.default_rng(seed)
    shapes = ((grid[0] * grid[1], inputs), (outputs, inputs, 3, 3), (outputs,))
    x, weight, bias = (strategies.on_grid(rng, shape, np.float32) for shape in shapes)
    double = (array.astype(np.float64) for array in (x[None], weight, bias))
    expected, _ = ops.convolution.forward(*double, grid=grid)
    np.testing.assert_array_equal(convolved(x, weight, bias, grid), expected[0])


@given(strategies.seeds(), st.integers(1, 5))
def test_gelu_in_place(seed, vectors):
    rng = np.random.default_rng(seed)
    x = (3 * strategies.normal(rng, (vectors * LANES,), np.float32)).astype(np.float32)
    x[:3] = 40, -40, 0
    expected, _ = ops.gelu.forward(x.astype(np.float64))
    levels.gelu(x)
    np.testing.assert_allclose(x, expected, rtol=2e-7, atol=1.2e-7)
