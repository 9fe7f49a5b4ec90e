"""The twin of the whole projection against the operations, one by one [SPEC 5]."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import ops
from refimpl.conventions import NonFiniteError
from refimpl.kernels import backend
from refimpl.models import binary, interpreter
from refimpl.models.nodes import INPUT, Network
from refimpl.models.parts import Parts
from tests import networks, oracles, strategies, tolerances

F32 = np.dtype(np.float32)
THRESHOLDS = (0.0, -0.0, 1.0, -1.0)
seeds = strategies.seeds()
# as wide, wider, narrower; one word, more than a word, more than the 128 terms of a sum
widths = st.sampled_from([(16, 16), (48, 48), (144, 144), (16, 48), (32, 128), (160, 320),
                          (48, 16), (128, 32), (320, 160)])  # fmt: skip
NAME = "blocks.0.mlp.up"


def listed(
    inputs: int, outputs: int, tokens: int, stage: str = "full", ste: str = "clip", token=False
) -> Network:
    """A network that is one projection of (B, tokens, inputs)."""
    rprelu = "token" if token else "channel"
    config = networks.small(
        image_size=(2, 2 * tokens), pool="mean", binarize=stage, ste=ste, rprelu=rprelu
    )
    net = Parts(config, config)
    net.shapes[INPUT] = (1, tokens, inputs)
    binary.projection(net, NAME, INPUT, outputs, config, net.enter(0))
    return net.network()


def draw_params(rng: np.random.Generator, network: Network) -> dict[str, np.ndarray]:
    """By path, on the grid of the thresholds."""
    draw = {"binary_matrix": strategies.weight, "latent_matrix": strategies.weight,
            "gain": strategies.normal, "bias": strategies.normal}  # fmt: skip
    return {
        path: draw.get(found.role, strategies.on_grid)(rng, found.shape, F32)
        for path, found in network.parameters.items()
    }


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
    network = listed(inputs, outputs, leading[1], stage, ste, token)
    params = draw_params(rng, network)
    x = strategies.on_grid(rng, (*leading, inputs), F32, THRESHOLDS)
    dy = strategies.normal(rng, (*leading, outputs), F32)
    results = []
    for chosen in (backend, ops):
        y, cache = interpreter.forward(network, params, x, backend=chosen)
        assert (len(cache.units), bool(cache.nodes)) == ((1, False), (0, True))[chosen is ops]
        dx, grads = interpreter.backward(dy, cache)
        again, _ = interpreter.backward(dy, cache)
        np.testing.assert_array_equal(dx, again)  # the cache is left as it was
        results.append((y, {"x": dx, **grads}))
    (y, ours), (expected, theirs) = results
    if stage == "full":
        np.testing.assert_array_equal(y, expected)
    assert ours.keys() == theirs.keys() == {"x", *params}
    for name, gradient in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (gradient.shape, gradient.dtype), name
        worst = tolerances.disagreement(ours[name], gradient)
        oracles.note("projection, twin, float32", worst, name)
        assert worst <= tolerances.relative(F32, dy.size), name


def test_a_listener_of_the_gradients_gets_every_step():
    """Forward by the twin, backward with a listener: the steps are made anew."""
    rng, network = np.random.default_rng(0), listed(32, 64, 5, token=True)
    params = draw_params(rng, network)
    x, dy = strategies.normal(rng, (2, 5, 32), F32), strategies.normal(rng, (2, 5, 64), F32)
    _, cache = interpreter.forward(network, params, x, backend=backend)
    heard = {}
    dx, grads = interpreter.backward(dy, cache, lambda name, value, *_: heard.update({name: value}))
    expected, expected_grads = interpreter.backward(dy, cache)
    steps = {f"grads/{NAME}.{step}" for step in ("z", "linear", "bit", "norm")}
    assert steps | {f"grads/param.{path}" for path in params} <= set(heard)
    for name, gradient in {"input": expected, **expected_grads}.items():
        ours = heard["grads/input" if name == "input" else f"grads/param.{name}"]
        np.testing.assert_array_equal(ours, dx if name == "input" else grads[name])
        assert tolerances.disagreement(ours, gradient) <= tolerances.relative(F32, dy.size), name


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("where", "stage"), [("x", "full"), ("x", "activations"), ("weight", "full")]
)
def test_what_is_not_finite_is_named(broken, where, stage):
    rng, network = np.random.default_rng(0), listed(16, 32, 3, stage)
    params, x = draw_params(rng, network), strategies.normal(rng, (2, 3, 16), F32)
    (x if where == "x" else params[f"{NAME}.weight"])[1, 2] = broken
    with pytest.raises(NonFiniteError, match=NAME) as error:
        interpreter.forward(network, params, x, backend=backend)
    assert error.value.layer == NAME


def test_what_the_twin_leaves_to_the_operations():
    rng = np.random.default_rng(0)
    params = list(draw_params(rng, listed(16, 32, 3)).values())
    x = strategies.normal(rng, (2, 3, 16), F32)
    options = {"binarize": "full", "ste": "clip", "eps": 1e-5}
    assert backend.projection.forward(x, *params, **options) is not None
    assert backend.projection.forward(x, *params, **options | {"binarize": "none"}) is None
    assert backend.projection.forward(x.astype(np.float64), *params, **options) is None
    odd = list(draw_params(rng, listed(8, 24, 3)).values())
    assert backend.projection.forward(x[..., :8], *odd, **options) is None
