"""The twin of the whole projection against the operations, one by one [SPEC 5]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refimpl.models.run import Run

from refimpl import ops
from refimpl.conventions import NonFiniteError
from refimpl.kernels import backend
from refimpl.models import flatten, projection
from refimpl.models.config import named
from tests import oracles, strategies, tolerances

F32 = np.dtype(np.float32)
THRESHOLDS = (0.0, -0.0, 1.0, -1.0)
seeds = strategies.seeds()
# as wide, wider, narrower; one word, more than a word, more than the 128 terms of a sum
widths = st.sampled_from([(16, 16), (48, 48), (144, 144), (16, 48), (32, 128), (160, 320),
                          (48, 16), (128, 32), (320, 160)])  # fmt: skip


def draw_params(rng: np.random.Generator, inputs: int, outputs: int, tokens: int | None) -> dict:
    names = ("shift_in", "slope", "shift_out")
    rprelu = {name: strategies.on_grid(rng, (outputs,), F32) for name in names}
    if tokens is not None:
        shifts = ("token_shift_in", "token_shift_out")
        rprelu |= {name: strategies.on_grid(rng, (tokens,), F32) for name in shifts}
    return {
        "move": strategies.on_grid(rng, (inputs,), F32),
        "weight": strategies.weight(rng, (outputs, inputs), F32),
        "norm": {name: strategies.normal(rng, (outputs,), F32) for name in ("weight", "bias")},
        "rprelu": rprelu,
    }


def run(stage: str, ste: str, chosen, tap=None) -> Run:
    return Run(named("didb_micro", binarize=stage, ste=ste), chosen, tap)


@given(
    seeds,
    strategies.sizes(2, high=6),
    widths,
    st.booleans(),
    st.sampled_from(("full", "activations")),
    st.sampled_from(ops.sign.STES),
)
def test_values_to_the_bit_and_gradients_to_the_ladder(seed, leading, width, token, stage, ste):
    rng, (inputs, outputs) = np.random.default_rng(seed), width
    params = draw_params(rng, inputs, outputs, leading[1] if token else None)
    x = strategies.on_grid(rng, (*leading, inputs), F32, THRESHOLDS)
    dy = strategies.normal(rng, (*leading, outputs), F32)
    results = []
    for chosen in (backend, ops):
        how = run(stage, ste, chosen)
        y, cache = projection.forward(params, x, how, name="p", source="x")
        assert isinstance(cache, projection.Cache) == (chosen is ops)
        dx, grads = projection.backward(dy, params, cache, how, name="p", source="x")
        again, _ = projection.backward(dy, params, cache, how, name="p", source="x")
        np.testing.assert_array_equal(dx, again)  # the cache is left as it was
        results.append((y, {"x": dx, **flatten(grads)}))
    (y, ours), (expected, theirs) = results
    if stage == "full":
        np.testing.assert_array_equal(y, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (gradient.shape, gradient.dtype), name
        worst = tolerances.disagreement(ours[name], gradient)
        oracles.note("projection, twin, float32", worst, name)
        assert worst <= tolerances.relative(F32, dy.size), name


def test_a_listener_of_the_gradients_gets_every_step():
    """Forward by the twin, backward with a listener: the steps are made anew."""
    rng = np.random.default_rng(0)
    params = draw_params(rng, 32, 64, 5)
    x, dy = strategies.normal(rng, (2, 5, 32), F32), strategies.normal(rng, (2, 5, 64), F32)
    _, cache = projection.forward(params, x, run("full", "clip", backend), name="p", source="x")
    heard = []
    listening = run("full", "clip", backend, lambda name, *_: heard.append(name))
    dx, _ = projection.backward(dy, params, cache, listening, name="p", source="x")
    expected, _ = projection.backward(
        dy, params, cache, run("full", "clip", backend), name="p", source="x"
    )
    assert {"grads/p.z", "grads/p.linear", "grads/p.bit", "grads/p.norm"} <= set(heard)
    assert tolerances.disagreement(dx, expected) <= tolerances.relative(F32, dy.size)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("where", "stage"), [("x", "full"), ("x", "activations"), ("weight", "full")]
)
def test_what_is_not_finite_is_named(broken, where, stage):
    rng = np.random.default_rng(0)
    params, x = draw_params(rng, 16, 32, None), strategies.normal(rng, (2, 3, 16), F32)
    (x if where == "x" else params["weight"])[1, 2] = broken
    with pytest.raises(NonFiniteError, match="blocks.0.mlp.up"):
        projection.forward(
            params, x, run(stage, "clip", backend), name="blocks.0.mlp.up", source="x"
        )


def test_what_the_twin_leaves_to_the_operations():
    rng = np.random.default_rng(0)
    params = draw_params(rng, 16, 32, None)
    x = strategies.normal(rng, (2, 3, 16), F32)
    options = {"binarize": "full", "ste": "clip", "eps": 1e-5}
    assert backend.projection.forward(params, x, **options) is not None
    assert backend.projection.forward(params, x, **options | {"binarize": "none"}) is None
    assert backend.projection.forward(params, x.astype(np.float64), **options) is None
    odd = draw_params(rng, 8, 24, None)
    assert backend.projection.forward(odd, x[..., :8], **options) is None
