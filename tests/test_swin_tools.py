"""What stands around a network with windows [SPEC 6.7]: files, golden bundles, engine, report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings

import refimpl
from refimpl import engine
from refimpl.conventions import ConfigError, ModelFileError
from refimpl.golden import bounds, compare, diagnose, read, record, search, selfcheck, store
from refimpl.models import files, flatten, packing
from refimpl.models.params import shapes
from tests import networks, strategies
from tests.command_line import SEVEN, assert_one_line, run

DIDB = networks.swin(**networks.DIDB)
MICRO = "didb_swin_micro"


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """A small untrained model's file."""
    path = tmp_path_factory.mktemp("swin") / "swin.safetensors"
    model = refimpl.create_model(MICRO, dim=8, depth=[1, 2])
    refimpl.save(path, model, model.init(np.random.default_rng(0)))
    return path


# files


@settings(max_examples=10)
@given(networks.swins(), strategies.seeds())
def test_a_packed_file_holds_what_was_packed(config, seed):
    made = networks.make(config, seed, np.float32, batch=1)
    arrays = packing.pack(config, made.params)
    again = packing.split(config, packing.join(arrays))
    assert list(again) == list(arrays) == list(packing.shapes(config))
    for name, value in arrays.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_matrices_of_merges_have_bits():
    assert "merges.0.proj.weight" in packing.binary_matrices(DIDB)
    assert not any("bias" in path for path in packing.binary_matrices(DIDB))
    assert packing.shapes(DIDB)["merges.0.proj.bits"] == (20, 8)


def test_a_file_comes_back(micro):
    file = files.read(micro)
    assert file.model.config.depth == (1, 2)
    fresh = file.model.init(np.random.default_rng(0))
    for path, value in flatten(fresh).items():
        np.testing.assert_array_equal(flatten(file.params)[path], value, err_msg=path)


def test_absurd_depths_are_refused_at_once(micro, tmp_path):
    file = files.read(micro)
    config = {**file.model.config.to_json(), "depth": [10**12, 10**12]}
    described = {"config": json.dumps(config), "class_names": "null", "preprocessing": "null"}
    header = {"format": "refimpl", "format_version": "1", **described}
    for kind, arrays in (
        ("latent", flatten(file.params)),
        ("packed", packing.join(packing.pack(file.model.config, file.params))),
    ):
        path = tmp_path / f"{kind}.safetensors"
        path.write_bytes(files.to_bytes(arrays, header | {"kind": kind}))
        with pytest.raises(
            ModelFileError, match="2000000000000 blocks|expected shape|expected \\("
        ):
            files.read_any(path)


# golden bundles


@pytest.mark.parametrize(
    "fields",
    [networks.DIDB, {}, {"block": "real"}, {**networks.DIDB, "decoder": "fpn"}],
    ids=["didb", "react", "real", "fpn"],
)
def test_a_bundle_judges_single_precision(tmp_path, fields):
    made = networks.make(networks.swin(**fields), seed=1, dtype=np.float32, batch=2)
    store.make(tmp_path / "golden", made.model, made.params, made.images, grads=True)
    assert selfcheck(tmp_path / "golden").passed
    bundle = read(tmp_path / "golden")
    dlogits = bundle.reference.steps["grads/logits"].value.astype(np.float32)
    single = record.trace(made.model, made.params, made.images, dlogits)
    candidate = {name: step.value for name, step in single.items() if name != record.INPUT}
    for mode in ("free", "replay"):
        found = compare(bundle, candidate, mode=mode)
        failed = [verdict.name for verdict in found.verdicts if verdict.verdict == "FAIL"]
        assert not failed, (mode, failed[:3])


@pytest.mark.parametrize(
    "tap, expected",
    [
        ("blocks.1.attn.scores", "position_bias left out"),
        ("merges.0.proj.z", "move"),
        ("blocks.2.attn.low", "H and V bands swapped"),
    ],
)
def test_mistakes_are_named(tmp_path, tap, expected):
    made = networks.make(DIDB, seed=2, batch=2)
    store.make(tmp_path / "golden", made.model, made.params, made.images, grads=True)
    bundle = read(tmp_path / "golden")
    step = bundle.reference.steps[tap]
    (inputs, config) = [bundle.reference.steps[read].value for read in step.inputs], DIDB
    wrong = {
        "blocks.1.attn.scores": lambda: step.value - _bias(bundle),
        "merges.0.proj.z": lambda: inputs[0],
        "blocks.2.attn.low": lambda: refimpl.ops.bands.forward(inputs[0], (4, 2))[0][0],
    }[tap]()
    assert config.stage_of(2).grid == (2, 4)
    candidate = {tap: wrong}
    found = compare(bundle, candidate)
    assert expected in diagnose.causes(found, bundle, candidate)[tap]


def _bias(bundle) -> np.ndarray:
    table = bundle.reference.params["blocks.1.attn.position_bias"]
    shape = bundle.reference.steps["blocks.1.attn.scores"].value.shape
    return refimpl.ops.position_bias.forward(np.zeros(shape), table)[0]


def test_taps_of_blocks(tmp_path):
    made = networks.make(DIDB, seed=3, dtype=np.float32, batch=1)
    store.make(tmp_path / "golden", made.model, made.params, made.images, taps="block")
    index = (tmp_path / "golden" / "index.csv").read_text()
    for name in ("tokens", "merges.0.proj.out", "merges.0.proj.bit", "blocks.3.out"):
        assert f",{name}," in index
    assert ",merges.0.patches," not in index


def test_a_tie_free_input_is_found():
    config = networks.swin(image_size=(8, 8), depth=(1, 1), dim=4, channels=1, mlp_ratio=1)
    params, image = search.draw(config, seed=0)
    model = networks.make(config, seed=0, batch=1).model
    found = search.tie_free(model, params, image)
    assert search.is_tie_free(model, params, found.images)


def test_bounds_are_positive_and_finite():
    made = networks.make(DIDB, seed=4, batch=1)
    reference = bounds.reference(made.model, made.params, made.images, made.dlogits)
    free = bounds.Free(reference, bounds.UNITS["float32"])
    for name, step in reference.steps.items():
        if name != record.INPUT:
            assert free[name].shape == step.value.shape, name
            assert (free[name] > 0).all() and np.isfinite(free[name]).all(), name


# engine, report, command line


def test_the_engine_says_that_it_runs_no_real_ones(micro):
    real = networks.make(networks.swin(block="real"), 0, np.float32)
    with pytest.raises(ConfigError, match="engine: found real blocks; expected a binary network"):
        engine.compile(real.model, real.params)
    assert packing.for_engine(files.read(micro).model.config)


@pytest.mark.parametrize("packed", [False, True])
def test_the_classifier_takes_the_engine(packed, micro, tmp_path):
    expected = refimpl.classifier(micro, backend="numpy")([SEVEN])[0].probabilities
    if packed:
        file = files.read(micro)
        files.save_packed(tmp_path / "packed.safetensors", file.model, file.params)
    ask = refimpl.classifier(tmp_path / "packed.safetensors" if packed else micro)
    assert isinstance(ask.engine, engine.Engine)
    np.testing.assert_allclose(ask([SEVEN])[0].probabilities, expected, rtol=1e-4)


def test_other_sizes_in_the_engine():
    """Interpolated parameters, as the reference has them."""
    made = networks.make(DIDB, seed=5, dtype=np.float32, batch=2)
    model, params = made.model.resized(made.params, (16, 8))
    other = networks.with_images_of(made, (8, 4))
    expected = made.model.predict(made.params, other.images)
    found = engine.compile(model, params)(other.images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_report_says_what_it_does_not_draw(micro, tmp_path):
    result = run("report", SEVEN, "--model", micro, "-o", tmp_path / "page.html")
    assert_one_line(result, "found windows of 7", "expected attention over all tokens")


def test_every_parameter_has_a_place(micro):
    config = files.read(micro).model.config
    assert {path.split(".")[0] for path in shapes(config)} == {
        "patch_embed", "embed_norm", "blocks", "merges", "norm", "head",
    }  # fmt: skip
