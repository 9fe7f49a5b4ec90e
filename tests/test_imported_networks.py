"""Networks of others [SPEC 6.8] under the machinery of all networks: gradients, replay, bounds.

That they compute what the code of others does, `test_importing.py` says.
"""

from __future__ import annotations

import numpy as np
import pytest

from refimpl import engine
from refimpl.conventions import ConfigError
from refimpl.golden import bounds
from refimpl.kernels import backend
from refimpl.models import Config, flatten, packing, unflatten
from refimpl.models.vit import VisionTransformer
from refimpl.training import stages
from refimpl.training.recipes import Recipe
from tests import networks

IMPORTED = networks.imported()
SMOOTH = [n for n, c in IMPORTED.items() if c.block == "real" or c.binarize == "none"]


def test_every_value_of_every_field_is_among_them():
    for field, values in networks.IMPORTED.items():
        assert {getattr(config, field) for config in IMPORTED.values()} == set(values)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_against_central_differences(name):
    """Along a random direction of every parameter at once, of each parameter's own size."""
    net, rng = networks.make(IMPORTED[name], 3), np.random.default_rng(4)
    _, dimages, grads = net.run()
    flat = flatten(net.params)
    way = {path: rng.standard_normal(value.shape) for path, value in flat.items()}
    frozen = [path for path in flat if path.rpartition(".")[2].startswith("running")]
    way |= {path: np.zeros(flat[path].shape) for path in frozen}
    along = rng.standard_normal(net.images.shape)
    expected = sum((grads[p] * way[p]).sum() for p in flat) + (dimages * along).sum()

    def objective(step: float) -> float:
        params = unflatten({path: flat[path] + step * way[path] for path in flat})
        return (net.model.predict(params, net.images + step * along) * net.dlogits).sum()

    found = (objective(1e-5) - objective(-1e-5)) / 2e-5
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert all(not grads[path].any() for path in frozen)


@pytest.mark.parametrize("name", IMPORTED)
def test_every_tap_is_its_replay_and_has_bounds(name):
    net = networks.make(IMPORTED[name], 1)
    ref = bounds.reference(net.model, net.params, net.images, net.dlogits)
    free = bounds.Free(ref, bounds.UNITS["float32"])
    for tap, step in ref.steps.items():
        if step.op is None:
            continue
        found = step.op(*(ref.steps[read].value for read in step.inputs))
        np.testing.assert_allclose(found, step.value, rtol=1e-9, atol=1e-12, err_msg=tap)
        bound = free[tap]
        assert bound.shape == step.value.shape and np.isfinite(bound).all(), tap


@pytest.mark.parametrize("name", IMPORTED)
def test_the_fused_backend_agrees(name):
    net = networks.make(IMPORTED[name], 2)
    ours, theirs = net.run(), net.run(backend=backend)
    np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-12, atol=1e-12)
    for path, gradient in ours[2].items():
        np.testing.assert_allclose(theirs[2][path], gradient, rtol=1e-9, atol=1e-10, err_msg=path)


@pytest.mark.parametrize("name", [n for n, c in IMPORTED.items() if not c.window])
def test_images_of_another_size(name):
    net = networks.make(IMPORTED[name], 5)
    larger = networks.with_images_of(net, (3, 5))
    _, _, grads = larger.run()
    assert {p: g.shape for p, g in grads.items()} == {
        p: v.shape for p, v in flatten(net.params).items()
    }
    model, params = net.model.resized(net.params, larger.images.shape[2:])
    np.testing.assert_array_equal(
        model.predict(params, larger.images), net.model.predict(net.params, larger.images)
    )


@pytest.mark.parametrize("name", IMPORTED)
def test_configurations_come_back_from_json(name):
    assert Config.from_json(IMPORTED[name].to_json()) == IMPORTED[name]


def test_networks_without_these_fields_are_said_as_before():
    fields = networks.small().to_json()
    assert not set(networks.IMPORTED) & set(fields)


def test_the_engine_says_which_field_it_does_not_know():
    for fields, named in (({"norm": "batch"}, "norm='batch'"), ({"pool": "patches"}, "pool="),
                          ({"position": "patches"}, "position='patches'")):  # fmt: skip
        config = networks.small(**fields)
        assert not packing.for_engine(config)
        net = networks.make(config, 0, np.float32)
        with pytest.raises(ConfigError, match=named):
            engine.compile(net.model, net.params)


def test_the_training_mode_of_batch_norms_is_refused():
    model = VisionTransformer(networks.small(norm="batch"))
    with pytest.raises(ConfigError, match="running statistics no step moves; expected 'layer'"):
        stages.plan(model, Recipe())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"distillation": "head", "pool": "mean"}, "pool is 'mean'; expected 'cls', since dist"),
        ({"distillation": "token", "decoder": "linear"}, "decoder is 'linear'; expected 'none'"),
        ({"last_norm": "pooled", "decoder": "linear"}, "decoder is 'linear'; expected 'none'"),
        ({"last_norm": "pooled", "distillation": "head"}, "distillation is 'head'; expected"),
        ({"similarity": "haar", "distillation": "token"}, "distillation is 'token'; expected"),
        ({"box": "3"}, "pool is 'cls'; expected 'mean', since box is '3'"),
        ({"block": "real", "norm": "batch"}, "norm is 'batch', but real blocks have no such"),
        ({"qkv_bias": False}, "qkv_bias is False, but binary blocks have no such choice"),
        ({"merge_eps": 1e-3}, "merge_eps is 0.001; expected null, since window is 0"),
        ({"merge_eps": 0, "window": 2}, "merge_eps is 0; expected a number between 0 and 1"),
        ({"mlp_ratio": 1.5}, "mlp_ratio is 1.5; expected a whole number of at least 1"),
        ({"mlp_ratio": 0.09, "block": "real"}, "mlp_ratio is 0.09; expected a number that gives"),
        ({"mlp_ratio": float("inf"), "block": "real"}, "mlp_ratio is inf; expected a number"),
        ({"mlp_ratio": 0.0, "block": "real"}, "mlp_ratio is 0; expected a whole number of at"),
        ({"qkv_bias": 1, "block": "real"}, "qkv_bias is 1; expected true or false"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        networks.small(**fields)


def test_distilled_logits_are_the_mean_of_two_heads():
    net = networks.make(IMPORTED["distilled"], 0)
    flat = flatten(net.params)
    taps = {}
    model = VisionTransformer(net.model.config)
    logits, _ = model.forward(net.params, net.images, tap=lambda n, v, *_: taps.update({n: v}))
    out = taps["norm.out"]
    first = out[:, 0] @ flat["head.weight"].T + flat["head.bias"]
    second = out[:, 1] @ flat["head_dist.weight"].T + flat["head_dist.bias"]
    np.testing.assert_allclose(logits, (first + second) / 2, atol=1e-14)
