"""tests/unchanged.py: its comparison notices what it is for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import unchanged

TAPS = {
    "patches": np.array([[1.0, 2.0], [3.0, 4.0]]),
    "bit": np.array([True, False, True]),
    "count": np.array([3, -1], np.int32),
    "grads/patches": np.array([0.5, -8.0]),
}


def result(path, taps=None, **others):
    """A file as a checkout writes it."""
    taps = taps or TAPS
    numbered = {f"{i:05d}": value for i, value in enumerate(taps.values())}
    ends = {"silent": np.array([0.0, 6.0]), "dimages": np.array([0.25, 1.0])}
    gradients = {"silent/head.weight": np.array([2.0, -4.0])}
    np.savez(
        path, names=json.dumps(list(taps)), reads=json.dumps([[] for _ in taps]),
        **numbered, **ends | gradients | others,
    )  # fmt: skip
    return path


def changed(name, index, by):
    value = TAPS[name].copy()
    value[index] = not value[index] if value.dtype == bool else value[index] + by
    return {"taps": {**TAPS, name: value}}


REVERSED = dict(reversed(TAPS.items()))


@pytest.mark.parametrize("now, expected", [
    (changed("patches", (1, 0), 1e-15), "patches: 1 of 4 entries"),
    (changed("bit", 1, None), "bit: 1 of 3 entries"),
    (changed("count", 0, 1), "count: 1 of 2 entries"),
    (changed("grads/patches", 0, 1e-10), "grads/patches: 1.3e-11"),
    (changed("grads/patches", 1, np.nan), "grads/patches: nan"),
    ({"taps": {**TAPS, "patches": np.array([[1.0, 2.0], [3.0, np.nan]])}}, "patches: 1 of 4"),
    ({"silent": np.array([-0.0, 6.0])}, "logits: 1 of 2 entries"),
    ({"silent/head.bias": np.zeros(2)}, "results differ: ['silent/head.bias']"),
    ({"taps": {**TAPS, "count": TAPS["count"].astype(np.int64)}}, "count: int32"),
    ({"taps": {**TAPS, "patches": TAPS["patches"][:, :1]}}, "patches: float64 (2, 2)"),
    ({"taps": {("other" if k == "bit" else k): v for k, v in TAPS.items()}}, "from tap 1 on"),
    ({"taps": REVERSED}, "from tap 0 on"),
    ({"taps": {k: v for k, v in TAPS.items() if k != "grads/patches"}}, "from tap 3 on"),
    ({"taps": {**TAPS, "more": np.zeros(1)}}, "from tap 4 on"),
    ({"silent": np.array([0.0, 7.0])}, "logits: 1 of 2 entries"),
    ({"dimages": np.array([0.25, 2.0])}, "grads/input: 1.0e+00"),
    ({"silent/head.weight": np.array([2.0, 4.0])}, "grads/silent/head.weight: 2.0e+00"),
])  # fmt: skip
def test_a_difference_is_named(tmp_path, now, expected):
    before, after = result(tmp_path / "old.npz"), result(tmp_path / "new.npz", **now)
    found, _ = unchanged.differences(before, after)
    assert len(found) == 1 and expected in found[0], found


def test_what_is_equal_or_rounding_of_a_gradient_passes(tmp_path):
    before = result(tmp_path / "old.npz")
    assert unchanged.differences(before, before) == ([], 0.0)
    after = result(tmp_path / "new.npz", **changed("grads/patches", 1, 8e-15))
    found, worst = unchanged.differences(before, after)
    assert not found and 0 < worst < unchanged.GRADIENTS
