"""The twin of attention between its projections against the operations, one by one [SPEC 6.2].

Only AVX-512 makes it worth its while; it is right on every CPU, and the tests ask for it on all.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import ops
from refimpl.conventions import NonFiniteError
from refimpl.kernels import backend, lookup
from refimpl.models import flatten, interpreter, unflatten
from tests import networks, oracles, strategies, tolerances

F32 = np.dtype(np.float32)
SWITCHED = ("ste", "alpha_scope", "similarity", "attention", "rprelu", "haar_cls", "band_weights")
# tokens of one sixteen, of more, of more than a word; a single one
SIDES = ((1, 1), (2, 3), (4, 4), (3, 11), (5, 7))


@pytest.fixture(autouse=True)
def _on_every_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "pays", lambda path: True)
        yield


@st.composite
def configs(draw: st.DrawFn):
    fields = {name: draw(st.sampled_from(networks.SWITCHES[name])) for name in SWITCHED}
    grid, heads = draw(st.sampled_from(SIDES)), draw(st.integers(1, 2))
    return networks.small(
        image_size=(2 * grid[0], 2 * grid[1]),
        heads=heads,
        dim=heads * draw(st.sampled_from((16, 32, 48))),
        mlp_ratio=1,
        depth=1,
        pool=draw(st.sampled_from(networks.POOLS)),
        binarize=draw(st.sampled_from(("full", "activations"))),
        neighbours=draw(st.sampled_from(("existing", "eight"))),
        **fields,
    )


def run(network: networks.Network, chosen):
    """Logits, gradients and which units ran as one."""
    model = network.model
    logits, cache = model.forward(network.params, network.images, backend=chosen)
    dimages, grads = model.backward(network.dlogits, cache)
    ran = [unit.op for unit in model.network.units if unit.nodes[-1] in cache.units]
    return logits, {"images": dimages, **flatten(grads)}, ran


@given(strategies.seeds(), configs())
def test_values_to_the_bit_and_gradients_to_the_ladder(seed, config):
    network = networks.make(config, seed, F32)
    logits, ours, ran = run(network, backend)
    expected, theirs, _ = run(network, ops)
    assert "attention" in ran
    if config.binarize == "full":
        np.testing.assert_array_equal(logits, expected)
    else:
        assert tolerances.disagreement(logits, expected) <= tolerances.relative(F32, 4096)
    assert ours.keys() == theirs.keys()
    floor = 1e-2 * max(float(np.abs(gradient).max()) for gradient in theirs.values())
    for path, gradient in theirs.items():
        assert (ours[path].shape, ours[path].dtype) == (gradient.shape, gradient.dtype), path
        worst = tolerances.disagreement(ours[path], gradient, floor)
        oracles.note("attention, twin, float32", worst, path)
        assert worst <= tolerances.relative(F32, 4096), path


def micro(**fields) -> networks.Network:
    model = networks.small(**{"dim": 32, "depth": 1, "mlp_ratio": 1, **networks.DIDB, **fields})
    return networks.make(model, 3, F32)


def test_an_image_of_another_size():
    """alpha and what each token has are made of parameters then."""
    network = micro()
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 10)).astype(F32)
    network = network._replace(images=images, dlogits=network.dlogits[:2])
    _, cache = network.model.forward(network.params, images, backend=backend)
    assert any(unit.op == "attention" and unit.nodes[-1] in cache.units
               for unit in cache.network.units)  # fmt: skip
    _, ours = network.model.backward(network.dlogits, cache)
    _, cache = network.model.forward(network.params, images, backend=ops)
    _, theirs = network.model.backward(network.dlogits, cache)
    ours, theirs = flatten(ours), flatten(theirs)
    floor = 1e-2 * max(float(np.abs(gradient).max()) for gradient in theirs.values())
    for path, gradient in theirs.items():
        worst = tolerances.disagreement(ours[path], gradient, floor)
        assert worst <= tolerances.relative(F32, 4096), path


def test_a_listener_of_the_gradients_gets_every_step():
    """Forward by the twins, backward with a listener: the steps are made anew."""
    network = micro()
    model, heard = network.model, {}
    _, cache = model.forward(network.params, network.images, backend=backend)
    model.backward(network.dlogits, cache, tap=lambda name, y, *_: heard.update({name: y}))
    _, expected = model.backward(network.dlogits, cache)
    for path, gradient in flatten(expected).items():
        worst = tolerances.disagreement(heard[f"grads/param.{path}"], gradient, 1.0)
        assert worst <= tolerances.relative(F32, 4096), path
    assert "grads/blocks.0.attn.prob" in heard


def test_backward_leaves_the_cache_as_it_was():
    network = micro()
    _, cache = network.model.forward(network.params, network.images, backend=backend)
    first, again = (interpreter.backward(network.dlogits, cache)[1] for _ in range(2))
    for path, gradient in first.items():
        np.testing.assert_array_equal(again[path], gradient)


@pytest.mark.parametrize("path", ["q_low_move", "v_move", "alpha", "band_weight"])
def test_what_is_not_finite_is_named(path):
    network = micro()
    flat = {name: np.array(value) for name, value in flatten(network.params).items()}
    flat[f"blocks.0.attn.{path}"].reshape(-1)[0] = np.nan
    errors = []
    for chosen in (backend, ops):
        with pytest.raises(NonFiniteError) as error:
            network.model.forward(unflatten(flat), network.images, backend=chosen)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_what_the_twin_leaves_to_the_operations(monkeypatch):
    network = micro()
    assert "attention" in run(network, backend)[2]
    for other in (networks.make(network.model.config, 3), micro(dim=24, heads=3)):
        assert "attention" not in run(other, backend)[2]
    monkeypatch.setattr(lookup, "pays", lambda path: False)
    assert "attention" not in run(network, backend)[2]
