"""Networks with windows [SPEC 6.7]: PyTorch, transformers, central differences, taps, resizing.

As in test_models, everything that compares two programs does so in float64.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from refimpl.conventions import ConfigError
from refimpl.kernels import backend
from refimpl.models import create_model, flatten
from refimpl.models.binary import network as listed
from refimpl.models.params import decayed, shapes
from tests import networks, oracles, strategies
from tests.test_models import assert_close, assert_mirrored, assert_slope
from tests.test_taps import assert_replayed, listen

DIDB = networks.DIDB


@pytest.mark.parametrize("sizes", networks.SWINS, ids=str)
@pytest.mark.parametrize("fields", [DIDB, {}, {"block": "real"}], ids=["didb", "react", "real"])
def test_each_size_against_torch(fields, sizes):
    assert_mirrored(networks.make(networks.swin(**fields, **sizes), seed=1, batch=2))


@settings(max_examples=20)
@given(networks.swins(), strategies.seeds())
def test_random_networks_against_torch(config, seed):
    assert_mirrored(networks.make(config, seed, batch=2))


@settings(max_examples=10)
@given(networks.swins(block="real", decoder="none"), strategies.seeds())
def test_swin_against_transformers(config, seed):
    theirs = oracles.require("transformers", "tests.torch_models.transformers_swin")
    if config.last_stage.window < config.window:  # theirs has tables of one size only
        config = config.replace(window=config.last_stage.window)
    network = networks.make(config, seed, batch=2)
    expected = theirs.run(
        config.to_json(), flatten(network.params), network.images, network.dlogits
    )
    assert_close("swin against transformers", network.run(), expected)


@pytest.mark.parametrize("name", ["swin_micro", "didb_swin_micro"])
def test_named_ones_against_torch(name):
    assert_mirrored(networks.make(create_model(name).config, seed=2, batch=1))


def test_full_size_against_transformers():
    """224 x 224 pixels, 28 million parameters at random."""
    theirs = oracles.require("transformers", "tests.torch_models.transformers_swin")
    network = networks.make(create_model("swin_tiny").config, seed=2, batch=1)
    config, flat = network.model.config, flatten(network.params)
    assert sum(value.size for value in flat.values()) == 28_288_354
    expected = theirs.run(config.to_json(), flat, network.images, network.dlogits)
    assert_close("swin_tiny against transformers", network.run(), expected)


@settings(max_examples=5)
@given(networks.swins(block="real"), strategies.seeds())
def test_against_central_differences(config, seed):
    assert_slope(networks.make(config, seed, batch=2))


@settings(max_examples=10)
@given(networks.swins(), strategies.seeds())
def test_backend_gives_the_same(config, seed):
    network = networks.make(config, seed, batch=2)
    assert_close("the kernels' backend with windows", network.run(backend=backend), network.run())


@settings(max_examples=10)
@given(networks.swins(), strategies.seeds())
def test_ops_of_taps_give_their_values(config, seed):
    listener = listen(networks.make(config, seed, batch=2))
    for name, tapped in listener.ops().items():
        assert_replayed(name, tapped, listener)


def test_the_taps_of_windows_and_of_the_grid():
    config = networks.swin(**DIDB)  # grids 4 x 8 and 2 x 4, windows of 2
    listener = listen(networks.make(config, seed=0, batch=3))
    assert listener["blocks.1.attn.q_low.head_z"].shape == (3 * 8, 2, 4, 5)
    assert listener["blocks.1.attn.v.head_bit"].shape == (3 * 8, 2, 5, 4)
    assert listener["blocks.2.attn.scores"].shape == (3 * 2, 4, 4, 4)
    assert listener["blocks.1.attn.low"].shape == (3, 32, 10)
    assert listener["merges.0.patches"].shape == (3, 8, 40)
    assert listener["merges.0.proj.int"].shape == (3, 8, 20)
    assert listener["grads/merges.0.proj.out"].shape == (3, 8, 20)
    expected = {f"grads/param.{path}" for path in shapes(config)}
    assert expected <= set(listener.taps)


@pytest.mark.parametrize("fields", [DIDB, {"binarize": "none"}], ids=["full", "none"])
def test_masked_keys_have_no_probability_no_bit_and_no_gradient(fields):
    listener = listen(networks.make(networks.swin(**fields), seed=3, batch=2))
    prob = "prob" if fields.get("binarize") else "prob.z"
    value = listener[f"blocks.1.attn.{prob}"].reshape(2, 8, 2, 4, 4)
    # the last window of each image holds four corners of the grid: every token sees itself alone
    apart = ~np.eye(4, dtype=bool)
    assert (value[:, -1][..., apart] == 0).all()
    assert (listener["grads/blocks.1.attn.scores"].reshape(value.shape)[:, -1] == 0).all()
    if prob == "prob.z":
        bit = listener["blocks.1.attn.prob.bit"].reshape(value.shape)
        assert not bit[:, -1][..., apart].any()
    # nothing is shifted in the other block
    assert (listener[f"blocks.0.attn.{prob}"] > 0).all()


def test_an_image_does_not_depend_on_its_batch():
    network = networks.make(networks.swin(**DIDB), seed=4, batch=3)
    logits = network.model.predict(network.params, network.images)
    for i in range(3):
        alone = network.model.predict(network.params, network.images[i : i + 1])
        np.testing.assert_allclose(alone[0], logits[i], rtol=1e-12)


@pytest.mark.parametrize("fields", [DIDB, {}, {"block": "real"}], ids=["didb", "react", "real"])
def test_images_of_another_size_against_torch(fields):
    network = networks.make(networks.swin(**fields), seed=5, batch=2)
    assert_mirrored(networks.with_images_of(network, (8, 8)))
    assert_mirrored(networks.with_images_of(network, (4, 12)))


def test_sizes_that_windows_cannot_take():
    network = networks.make(networks.swin(), seed=0, batch=2)  # windows of 2 in both stages
    for grid, expected in (((6, 8), "stage 1 has a grid of 3 x 4"), ((2, 8), "windows of 1")):
        with pytest.raises(ConfigError, match=expected):
            other = networks.with_images_of(network, grid)
            other.model.predict(other.params, other.images)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"window": -1}, "window is -1"),
        ({"window": 2.5}, "window is 2.5"),
        ({"window": False}, "window is False"),
        ({"depth": 4}, "depth is 4; expected a list"),
        ({"depth": ()}, r"depth is \(\); expected a list"),
        ({"depth": (2, 0)}, "depth is 0"),
        ({"pool": "cls"}, "pool is 'cls'; expected 'mean'"),
        ({"window": 3}, "stage 0 has a grid of 4 x 8; expected multiples of its window 3"),
        ({"depth": (1, 1, 1, 1)}, "stage 2 has a grid of 1 x 2; expected even sides"),
        ({"window": 0}, r"depth is \(2, 2\)"),
    ],
)
def test_refused(fields, expected):
    with pytest.raises(ConfigError, match=expected):
        networks.swin(**fields)


def test_stages_and_shifts():
    config = create_model("didb_swin_tiny").config
    stages = list(config.stages)
    assert [stage.grid for stage in stages] == [(56, 56), (28, 28), (14, 14), (7, 7)]
    assert [stage.dim for stage in stages] == [96, 192, 384, 768]
    assert [stage.heads for stage in stages] == [3, 6, 12, 24]
    assert [stage.num_keys for stage in stages] == [49] * 4
    shifts = [config.stage_of(i).shift for i in range(config.num_blocks)]
    assert shifts == [0, 3, 0, 3, 0, 3, 0, 3, 0, 3, 0, 0]  # stage 3 is one window
    assert config.merges == {2: 0, 4: 1, 10: 2}
    assert config == type(config).from_json(config.to_json())


def test_start_and_weight_decay():
    config = networks.swin(**DIDB)
    params = flatten(networks.make(config, seed=0).model.init(np.random.default_rng(0)))
    assert params["blocks.0.attn.alpha"] == params["blocks.3.attn.alpha"] == np.float32(1 / 4)
    table = params["blocks.3.attn.position_bias"]
    assert table.shape == (9, 4) and 0.01 < table.std() < 0.03
    assert params["merges.0.proj.rprelu.token_shift_in"].shape == (8,)
    assert decayed(listed(config).parameters) == {"patch_embed.weight", "head.weight"}
    real = decayed(listed(networks.swin(block="real")).parameters)
    assert "merges.0.proj.weight" in real and not any("bias" in path for path in real)
