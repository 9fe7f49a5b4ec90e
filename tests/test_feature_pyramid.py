"""decoder="fpn" [SPEC 10]: PyTorch, central differences, taps, and the tools around a network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refimpl
from refimpl import engine, ops
from refimpl.golden import compare, diagnose, read, store
from refimpl.kernels import backend
from refimpl.models import create_model, files, flatten, packing
from refimpl.models.binary import network as listed
from refimpl.models.params import decayed, shapes
from refimpl.training import optimizers
from tests import networks, strategies, tolerances
from tests.test_models import assert_equal, assert_mirrored, assert_slope
from tests.test_taps import assert_replayed, listen

# grids 8 x 12 and 4 x 6; 8 x 4, 4 x 2 and 2 x 1; one level
SIZES = (
    {"image_size": (16, 24), "window": 2, "depth": (1, 2)},
    {"image_size": (16, 8), "window": 1, "depth": (2, 1, 1), "dim": 6},
    {"image_size": (8, 12), "window": 2, "depth": (1,)},
)
FAMILIES = {"didb": networks.DIDB, "react": {}, "real": {"block": "real"}}
DIDB = networks.swin(**networks.DIDB, **SIZES[0], decoder="fpn")


def config(family: str, sizes: dict):
    return networks.swin(**FAMILIES[family], **sizes, decoder="fpn")


# the equations


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_against_torch(family, sizes):
    assert_mirrored(networks.make(config(family, sizes), seed=1, batch=2))


@settings(max_examples=20)
@given(st.sampled_from(SIZES), st.integers(2, 9), strategies.seeds())
def test_random_networks_against_torch(sizes, classes, seed):
    drawn = networks.swin(**{**sizes, "num_classes": classes}, decoder="fpn")
    assert_mirrored(networks.make(drawn, seed, batch=2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grid", [(4, 8), (8, 4), (12, 16)])
def test_images_of_another_size_against_torch(family, grid):
    network = networks.make(config(family, SIZES[0]), seed=2, batch=2)
    assert_mirrored(networks.with_images_of(network, grid))


@pytest.mark.parametrize("name", ["segmenter_didb_swin_micro", "segmenter_swin_micro"])
def test_named_ones_against_torch(name):
    assert_mirrored(networks.make(create_model(name).config, seed=3, batch=1))


@settings(max_examples=10)
@given(st.sampled_from(SIZES), strategies.seeds())
def test_against_central_differences(sizes, seed):
    assert_slope(networks.make(config("real", sizes), seed, batch=2))


def doubled(x, axis):
    """Three quarters of the nearer, one of the farther neighbour; the ends are their own."""
    n = x.shape[axis]
    before, after = x.take([0, *range(n - 1)], axis), x.take([*range(1, n), n - 1], axis)
    pairs = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return pairs.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def test_what_reaches_the_head_by_hand():
    """Two levels, from the taps of both stages, with the middle of each kernel alone."""
    network = networks.make(DIDB, seed=4, batch=2)
    params = refimpl.unflatten({path: v.copy() for path, v in flatten(network.params).items()})
    levels = params["decoder"]
    for level in levels.values():
        level["smooth"]["weight"][:, :, np.arange(9).reshape(3, 3) != 4] = 0
    heard = listen(network._replace(params=params))
    x, last = heard["blocks.0.out"], heard["norm.out"]
    assert x.shape == (2, 96, 10) and last.shape == (2, 24, 20)
    centred = x - x.mean(axis=-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + DIDB.norm_eps)
    x = x * levels["0"]["norm"]["weight"] + levels["0"]["norm"]["bias"]

    def affine(x, leaves, weight):
        return x @ weight.T + leaves["bias"]

    def enlarged(x):
        return doubled(doubled(x, 1), 2)

    lateral = [affine(v, levels[s]["lateral"], levels[s]["lateral"]["weight"])
               for s, v in (("0", x), ("1", last))]  # fmt: skip
    above = lateral[1].reshape(2, 4, 6, 10)
    tops = lateral[0].reshape(2, 8, 12, 10) + enlarged(above), above
    smooth = [affine(top, levels[s]["smooth"], levels[s]["smooth"]["weight"][:, :, 1, 1])
              for s, top in zip("01", tops)]  # fmt: skip
    total = (smooth[0] + enlarged(smooth[1])).reshape(2, 96, 10)
    assert tolerances.disagreement(heard["decoder.sum"], total) <= tolerances.FLOAT64
    y = ops.gelu.forward(total)[0]
    token = affine(y, params["head"], params["head"]["weight"])
    assert tolerances.disagreement(heard["head.out"], token) <= tolerances.FLOAT64


# taps, backends, parameters


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_ops_of_taps_give_their_values(family, sizes):
    heard = listen(networks.make(config(family, sizes), seed=6, batch=2))
    for name, tapped in heard.ops().items():
        assert_replayed(name, tapped, heard)


def test_the_table():
    heard = listen(networks.make(DIDB, seed=7, batch=3)).taps
    expected = {
        "0.norm.out": (3, 96, 10), "0.lateral.out": (3, 96, 10), "0.top": (3, 96, 10),
        "0.smooth.out": (3, 96, 10), "1.lateral.out": (3, 24, 10), "1.smooth.out": (3, 24, 10),
        "sum": (3, 96, 10), "gelu.out": (3, 96, 10),
    }  # fmt: skip
    for prefix in ("decoder.", "grads/decoder."):
        found = {name.removeprefix(prefix): tapped.value.shape
                 for name, tapped in heard.items() if name.startswith(prefix)}  # fmt: skip
        assert found == expected
    assert heard["head.out"].value.shape == (3, 96, 4)
    assert {f"grads/param.{path}" for path in shapes(DIDB)} <= set(heard)
    both = heard["grads/blocks.0.out"].inputs
    assert both == ["grads/merges.0.patches", "grads/decoder.0.norm.out", "blocks.0.out"]


def test_listening_and_the_kernels_backend_change_nothing():
    network = networks.make(DIDB, seed=8, batch=2)
    expected = network.run()
    assert_equal(network.run(tap=lambda *heard: None), expected)
    found = network.run(backend=backend)
    assert tolerances.disagreement(found[0], expected[0]) <= tolerances.NETWORK_LOGITS
    np.testing.assert_array_equal(
        network.model.predict(network.params, network.images), expected[0]
    )


def test_names_shapes_and_start():
    config = networks.swin(decoder="fpn")
    found = {path: shape for path, shape in shapes(config).items() if "blocks" not in path}
    assert list(found)[-14:] == [
        "norm.weight", "norm.bias",
        "decoder.0.norm.weight", "decoder.0.norm.bias",
        "decoder.0.lateral.weight", "decoder.0.lateral.bias",
        "decoder.0.smooth.weight", "decoder.0.smooth.bias",
        "decoder.1.lateral.weight", "decoder.1.lateral.bias",
        "decoder.1.smooth.weight", "decoder.1.smooth.bias",
        "head.weight", "head.bias",
    ]  # fmt: skip
    assert found["decoder.1.lateral.weight"] == (10, 20)
    assert found["decoder.1.smooth.weight"] == (10, 10, 3, 3)
    assert (found["norm.weight"], found["head.weight"]) == ((20,), (4, 10))
    params = flatten(networks.make(config, seed=0).model.init(np.random.default_rng(0)))
    assert 0.015 < params["decoder.0.smooth.weight"].std() < 0.02
    assert (params["decoder.0.norm.weight"] == 1).all()
    kernels = {f"decoder.{s}.{part}.weight" for s in (0, 1) for part in ("lateral", "smooth")}
    assert decayed(listed(config).parameters) == {"patch_embed.weight", "head.weight", *kernels}
    real = listed(networks.swin(decoder="fpn", block="real"))
    assert kernels <= decayed(real.parameters)
    assert not kernels & packing.binary_matrices(config)


# files, golden bundles, engine, training


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("fpn") / "fpn.safetensors"
    model = create_model("segmenter_didb_swin_micro", dim=8, depth=[1, 1])
    refimpl.save(path, model, model.init(np.random.default_rng(0)))
    return path


def test_a_file_comes_back_and_segments(saved, tmp_path):
    """Latent and packed, in the engine, which answers like NumPy."""
    file = files.read(saved)
    packed = tmp_path / "packed.safetensors"
    files.save_packed(packed, file.model, file.params)
    arrays = files.read_any(packed).arrays
    for path in ("decoder.0.smooth.weight", "decoder.1.lateral.bias", "head.weight"):
        np.testing.assert_array_equal(arrays[path], flatten(file.params)[path])
    pixels = np.random.default_rng(0).integers(256, size=(60, 70, 3)).astype(np.uint8)
    ask, slow = (
        refimpl.segmenter(saved, backend="engine"),
        refimpl.segmenter(saved, backend="numpy"),
    )
    assert isinstance(ask.engine, engine.Engine)
    found = ask.logits(pixels)
    assert found.shape == (11, 60, 70)
    np.testing.assert_array_equal(refimpl.segmenter(packed).logits(pixels), found)
    # a bit that flips between the two changes pixels around it
    assert np.mean(ask(pixels).labels == slow(pixels).labels) > 0.95


@pytest.mark.parametrize(
    "tap, expected",
    [
        ("decoder.0.smooth.out", "decoder.0.smooth.weight: the kernel turned around"),
        ("decoder.1.lateral.out", "decoder.1.lateral.bias left out"),
        ("decoder.0.top", "nothing done: equal to decoder.0.lateral.out"),
        ("decoder.gelu.out", "nothing done: equal to decoder.sum"),
    ],
)
def test_mistakes_are_named(tmp_path, tap, expected):
    made = networks.make(DIDB, seed=9, batch=2)
    store.make(tmp_path / "golden", made.model, made.params, made.images)
    bundle = read(tmp_path / "golden")
    step = bundle.reference.steps[tap]
    inputs = [bundle.reference.steps[name].value for name in step.inputs]
    level = made.params["decoder"][tap[8]] if tap[8].isdigit() else {}
    candidate = {
        "decoder.0.smooth.out": lambda: ops.convolution.forward(
            inputs[0], level["smooth"]["weight"][:, :, ::-1, ::-1], level["smooth"]["bias"], (8, 12)
        )[0],
        "decoder.1.lateral.out": lambda: step.value - level["lateral"]["bias"],
        "decoder.0.top": lambda: inputs[0],
        "decoder.gelu.out": lambda: inputs[0],
    }[tap]()
    found = compare(bundle, {tap: candidate})
    assert expected in diagnose.causes(found, bundle, {tap: candidate})[tap]


def test_taps_of_blocks(tmp_path):
    made = networks.make(DIDB, seed=10, dtype=np.float32, batch=1)
    store.make(tmp_path / "golden", made.model, made.params, made.images, taps="block")
    index = (tmp_path / "golden" / "index.csv").read_text()
    assert ",decoder.gelu.out," in index and ",head.out," in index
    assert ",decoder.0.smooth.out," not in index


def test_it_learns_where_the_bright_pixels_are():
    model = create_model(
        "segmenter_swin_micro", image_size=(16, 24), window=2, dim=8, depth=[1, 1], num_classes=2
    )
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 1, 4, 6)).repeat(4, axis=2).repeat(4, axis=3)
    labels = (images[:, 0] > 0).astype(np.uint8)
    params = model.init(rng, np.float64)
    optimizer, losses = optimizers.AdamW(flatten(params)), []
    for _ in range(60):
        logits, cache = model.forward(params, images)
        loss, loss_cache = ops.pixel_cross_entropy.forward(logits, labels)
        (dlogits,) = ops.pixel_cross_entropy.backward(1.0, loss_cache)
        optimizer.step(flatten(model.backward(dlogits, cache)[1]), rate=0.01)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(2), abs=0.01)
    assert losses[-1] < 0.2
