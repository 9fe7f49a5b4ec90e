"""Input of a shape or kind that an operation cannot take is one line of refimpl's own."""

from __future__ import annotations

import numpy as np
import pytest

import refimpl
from refimpl.conventions import (
    ConfigError,
    DtypeError,
    NonFiniteError,
    RefimplError,
    ShapeError,
)
from refimpl.ops import (
    boolean,
    cross_entropy,
    fit,
    haar,
    linear,
    matmul,
    soft_cross_entropy,
    weight_binarizer,
)

LOGITS = np.zeros((2, 3))


@pytest.mark.parametrize(("call", "error", "words"), [
    (lambda: haar.swt2(np.zeros(4)), ShapeError, r"swt2: x has shape \(4,\)"),
    (lambda: haar.dwt2(np.zeros(4)), ShapeError, r"dwt2: x has shape \(4,\)"),
    (lambda: haar.swt2(np.zeros((0, 4))), ShapeError, r"swt2: x has shape \(0, 4\)"),
    (lambda: haar.swt2_backward((np.zeros((2, 3)), (np.zeros((3, 2)),) * 3)), ShapeError, "cH"),
    (lambda: matmul.forward(np.zeros(3), np.zeros(3)), ShapeError, "matmul: a has shape"),
    (lambda: linear.forward(np.zeros(()), np.zeros((2, 3))), ShapeError, "linear: weight"),
    (lambda: fit.forward(np.zeros(4), 0), ShapeError, r"fit: .*, 0 outputs; expected"),
    (lambda: fit.forward(np.zeros(4), -4), ShapeError, r"fit: .*, -4 outputs; expected"),
    (lambda: boolean.forward(np.zeros((2, 3, 4, 5)), np.ones((2, 1, 1))), ShapeError, "alpha"),
    (lambda: boolean.forward(np.zeros((3, 1)), np.ones((3, 4))), ShapeError, "alpha"),
    (lambda: cross_entropy.forward(LOGITS, np.zeros(2)), DtypeError, "array of integers"),
    (lambda: cross_entropy.forward(LOGITS, [0, 1]), DtypeError, "array of integers"),
    (lambda: cross_entropy.forward(LOGITS, np.array([0, 1]), 7.0), ConfigError, "smoothing is 7"),
    (lambda: soft_cross_entropy.forward(LOGITS[:0], LOGITS[:0]), ShapeError, "empty batch"),
    (lambda: weight_binarizer.forward(np.array([[1.0, np.nan]])), NonFiniteError,
     r"weight_binarizer: weight\[0, 1\] is nan"),
    (lambda: refimpl.unflatten({"a": LOGITS, "a.b": LOGITS}), ShapeError, r"a\.b: 'a' is a"),
    (lambda: refimpl.unflatten({"a.b": LOGITS, "a": LOGITS}), ShapeError, "a: is a group"),
])  # fmt: skip
def test_one_line_of_our_own(call, error, words):
    with pytest.raises(error, match=words) as raised:
        call()
    assert isinstance(raised.value, RefimplError)
    assert "\n" not in str(raised.value)


def test_a_model_with_a_nan_is_not_written(tmp_path):
    model = refimpl.create_model("react_micro", depth=1)
    params = model.init(np.random.default_rng(0))
    params["head"]["bias"][3] = np.nan
    with pytest.raises(NonFiniteError, match=r"head\.bias\[3\] is nan"):
        refimpl.save(tmp_path / "m.safetensors", model, params)
    assert list(tmp_path.iterdir()) == []


def test_sizes_may_be_numpy_integers_and_become_json():
    model = refimpl.create_model("react_micro", dim=np.int64(8), norm_eps=np.float32(0.25))
    fields = model.config.to_json()
    assert type(fields["dim"]) is int and type(fields["norm_eps"]) is float
