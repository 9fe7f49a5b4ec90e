"""Products by looking up: against NumPy's, and the same bits by every path."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.kernels import bits, lookup, popcount
from refimpl.kernels.compile import jit
from refimpl.kernels.lookup import BITS, FOUR, SIGNS
from refimpl.kernels.popcount import PATHS
from tests import strategies, tolerances

F32 = np.dtype(np.float32)
fours, sixteens = st.integers(1, 20), st.sampled_from((16, 32, 48, 80))


@jit
def _multiply(path, factors, d, transposed, indices, onto, tables, out):
    """Out (R, I) = d (R, K) times factors (K, I) that are packed along K; or d^T of d (K, R)."""
    count, columns = out.shape
    length = d.shape[0] if transposed else d.shape[1]
    for r in range(0, count, FOUR):
        if transposed:
            lookup.tabulate(factors, d, r, count, 1, length // FOUR, tables)
        else:
            lookup.tabulate(factors, d, r * length, 1, length, length // FOUR, tables)
        words, at = indices.shape[1], r * columns
        lookup.look_up(
            path, tables, length // FOUR, indices, columns, words, onto, out, at, columns
        )


def multiplied(path, factors, d, transposed, one, start) -> np.ndarray:
    packed = bits.pack(np.where(one, 1, -1).astype(F32).T).words  # sixteen columns by lane
    out = start.copy()
    tables = np.empty(FOUR * d.size, F32)
    _multiply(PATHS[path], factors, d, transposed, packed, bool(start.any()), tables, out)
    return out


@given(strategies.seeds(), fours, fours, sixteens, st.booleans(), st.booleans(), st.booleans())
def test_against_numpy(seed, rows, length, columns, transposed, of_signs, onto):
    rng = np.random.default_rng(seed)
    d = strategies.normal(rng, (FOUR * rows, FOUR * length), F32)
    one = rng.random((FOUR * length, columns)) < 0.5
    start = strategies.normal(rng, (FOUR * rows, columns), F32) * onto
    factors = SIGNS if of_signs else BITS
    stored = np.ascontiguousarray(d.T) if transposed else d
    expected = start + d.astype(np.float64) @ np.where(one, 1, -1 if of_signs else 0)
    # a CPU without the instruction cannot run the path that has it
    paths = ("avx512", "plain") if lookup.pays(popcount.path()) else ("plain",)
    found = [multiplied(path, factors, stored, transposed, one, start) for path in paths]
    scale = np.abs(d).sum(axis=1, keepdims=True) + np.abs(start)
    assert (np.abs(found[0] - expected) <= tolerances.relative(F32, 4 * length) * scale).all()
    np.testing.assert_array_equal(found[0], found[-1])


@pytest.mark.parametrize("path", PATHS)
def test_only_one_path_has_the_instruction(path):
    assert lookup.pays(PATHS[path]) == (path == "avx512")
