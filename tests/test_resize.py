"""Models on images of another size than they were made for, from the engine to the command line.

That the network is right is tested in tests/test_models.py, and interpolation in
tests/test_interpolate.py. Here: every way in comes to the same network.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import refimpl
from refimpl import engine, golden, ops
from refimpl.conventions import ConfigError, ShapeError
from refimpl.data import bundled
from refimpl.golden import store
from refimpl.kernels import backend
from refimpl.models import VisionTransformer, binary, files, flatten, interpreter
from refimpl.models.packing import pack_rows
from tests import networks, strategies
from tests.command_line import SEVEN, SMALL, assert_one_line, run, save_model

NAME = "didb_micro_mnist"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "tiny.safetensors")


# Parameters


@given(networks.configs(), strategies.seeds(), strategies.floats())
def test_resizing_is_linear_and_its_backward_is_the_adjoint(config, seed, dtype):
    """<resize(p), g> = <p, adjoint(g)> for every parameter that is interpolated.

    The adjoint is that of the nodes that make the list's values of parameters alone.
    """
    rng = np.random.default_rng(seed)
    size = (3 * config.patch_size, 4 * config.patch_size)
    listed = binary.network(config, size)
    params = flatten(networks.parameters(config, rng, dtype))
    networks.freeze(params)
    other = binary.network(config.replace(image_size=size))
    resized = interpreter.resized(listed, params, other)
    changed = {path for path in params if resized[path] is not params[path]}
    per_token = {path for path in params if path == "pos_embed" or ".token_shift_" in path}
    alphas = {path for path in params if path.endswith("attn.alpha")}
    own = config.grid != (3, 4), config.tokens != 12 + config.num_prefix_tokens
    assert changed == (per_token if own[0] else set()) | (alphas if own[1] else set())
    for name, i in listed.of_parameters.items():
        node = listed.nodes[i]
        if node.op == "stop_gradient":
            continue
        (path,), op = node.params, getattr(ops, node.op)
        y, cache = op.forward(params[path], **node.attributes)
        np.testing.assert_array_equal(resized[path], y, err_msg=name)
        dy = rng.standard_normal(y.shape).astype(dtype)
        (dx,) = op.backward(dy, cache)
        left, right = (y.astype(float) * dy).ravel(), (params[path].astype(float) * dx).ravel()
        size = np.abs(left).sum() + np.abs(right).sum()
        assert abs(left.sum() - right.sum()) <= 1e3 * np.finfo(dtype).eps * size, path
        for array in (y, dx):
            assert array.dtype == dtype and array.flags.c_contiguous


def test_there_and_back_again():
    """A constant map stays one; the class token's entry is not part of it."""
    config = networks.small(**networks.DIDB)
    params = networks.parameters(config, np.random.default_rng(0))
    params["pos_embed"][:, 1:] = np.arange(10)
    model, found = VisionTransformer(config), params
    for size in ((10, 14), (2, 2), (4, 6)):
        model, found = model.resized(found, size)
        np.testing.assert_array_equal(found["pos_embed"][:, 0], params["pos_embed"][:, 0])
        np.testing.assert_allclose(found["pos_embed"][0, 1:, 9], 9, rtol=1e-14)
    assert model.config == config


@pytest.mark.parametrize("pool, ratio", (("cls", 7 / 36), ("mean", 6 / 35)))
def test_alpha_goes_with_one_by_the_number_of_tokens(pool, ratio):
    config = networks.small(**networks.DIDB | {"pool": pool})  # a grid of 2 x 3
    params = networks.parameters(config, np.random.default_rng(0))
    _, found = VisionTransformer(config).resized(params, (10, 14))  # 5 x 7
    for i, block in params["blocks"].items():
        alpha = found["blocks"][i]["attn"]["alpha"]
        np.testing.assert_allclose(alpha, block["attn"]["alpha"] * ratio, rtol=1e-15)


# Backends, engine, goldens


@given(networks.configs(block="binary"), strategies.seeds(), st.sampled_from(((1, 2), (4, 3))))
def test_the_kernels_follow(config, seed, grid):
    network = networks.with_images_of(networks.make(config, seed), grid)
    logits, dimages, grads = network.run()
    ours = network.run(backend=backend)
    np.testing.assert_allclose(ours[0], logits, rtol=1e-9, atol=1e-9)
    for a, b in [(ours[1], dimages), *((ours[2][p], grads[p]) for p in grads)]:
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("pool", networks.POOLS)
@pytest.mark.parametrize("grid", [(1, 2), (5, 7)])
def test_the_engine_in_replay(tmp_path, pool, grid):
    drawn = networks.make(networks.small(**networks.DIDB, pool=pool), 3, np.float32)
    drawn = networks.with_images_of(drawn, grid)
    model, params = drawn.model.resized(drawn.params, drawn.images.shape[2:])
    compiled = engine.compile(model, params)
    packed = {n: pack_rows(v) if v.dtype == bool else v
              for n, v in compiled.taps(drawn.images).items()}  # fmt: skip
    store.make(tmp_path / "bundle", model, params, drawn.images, taps="io")
    compared = golden.compare(golden.read(tmp_path / "bundle"), packed, mode="replay")
    assert compared.passed, compared.first
    with pytest.raises(ShapeError, match="engine: images has shape"):
        engine.compile(drawn.model, drawn.params)(drawn.images)


def test_a_bundle_of_another_size_checks_itself(tmp_path):
    drawn = networks.with_images_of(networks.make(networks.small(**networks.DIDB), 3), (3, 4))
    model, params = drawn.model.resized(drawn.params, drawn.images.shape[2:])
    golden.make(tmp_path / "bundle", model, params, drawn.images, grads=True)
    assert golden.selfcheck(tmp_path / "bundle").passed


# The classifier


@pytest.mark.parametrize("size", [56, (28, 56), (12, 20)])
def test_a_classifier_resizes_the_image_and_the_model(size):
    plain = refimpl.classifier(NAME, backend="numpy")
    model, params = plain.model.resized(plain.params, size)
    ask = refimpl.classifier(NAME, backend="numpy", image_size=size)
    assert ask.preprocessing.size == ask.model.config.image_size == model.config.image_size
    height, width = model.config.image_size
    pixels = np.asarray(Image.open(SEVEN).resize((width, height), Image.Resampling.BILINEAR))
    x = plain.preprocessing.normalise(pixels[None])
    np.testing.assert_array_equal(ask.logits(x), model.predict(params, x))
    np.testing.assert_array_equal(ask(SEVEN)[0].probabilities, ask.probabilities(x)[0])


def test_its_own_size_changes_nothing():
    for backend_name in ("numpy", "engine"):
        answers = [refimpl.classifier(NAME, backend_name, size)(SEVEN)[0] for size in (None, 28)]
        np.testing.assert_array_equal(answers[0].probabilities, answers[1].probabilities)


@pytest.mark.parametrize("floats", ["float32", "float16"])
def test_a_packed_file_is_resized_like_a_latent_one(tmp_path, floats):
    file = files.read(NAME)
    path = tmp_path / "packed.safetensors"
    files.save_packed(path, file.model, file.params, floats=floats)
    x = np.random.default_rng(0).standard_normal((2, 1, 28, 40)).astype(np.float32)
    found, expected = (
        refimpl.classifier(p, "engine", (28, 40)).logits(x) for p in (path, file.path)
    )
    if floats == "float32":
        np.testing.assert_array_equal(found, expected)
    else:  # scales and maps are rounded, so bits may flip: the engine runs it, that is all
        assert found.shape == expected.shape


def test_a_size_that_the_patch_does_not_divide():
    with pytest.raises(ConfigError, match=f"{NAME}.*image_size has a side of 30; .*patch_size 4"):
        refimpl.classifier(NAME, image_size=(28, 30))


# The command


def test_classify_at_another_size(model):
    found = run("classify", SEVEN, "--model", model, "--image-size", "56x32", "--json")
    assert (found.status, found.err) == (0, "")
    (answer,) = json.loads(found.out)
    (expected,) = refimpl.classifier(model, image_size=(56, 32))(bundled.mnist() / SEVEN.name)
    assert answer["label"] == expected.label
    assert answer["probability"] == pytest.approx(expected.probability, rel=1e-6)


def test_evaluate_at_another_size_says_so(model):
    asked = ("evaluate", "--data", SMALL, "--model", model, "--limit", 6, "--image-size", 32)
    status, out, err = run(*asked, "--record")
    assert (status, err) == (0, f"recorded in {model.with_suffix('.json')}\n")
    assert "6 images of the test split at 32 x 32 pixels" in out
    card = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))
    assert card["evaluation"]["data"].endswith("at 32 x 32 pixels")


@pytest.mark.parametrize("verb", [("classify", SEVEN), ("evaluate", "--data", SMALL)])
def test_sizes_that_are_refused(model, verb):
    for text in ("30", "28x30"):
        refused = run(*verb, "--model", model, "--image-size", text)
        assert_one_line(refused, str(model), "side of 30", "multiple of patch_size 4")
    for text in ("0", "28x", "x28", "28x28x28", "many", "-4", "28X28"):
        status, out, err = run(*verb, "--model", model, f"--image-size={text}")
        assert (status, out) == (2, "")
        assert f"{text!r} is not a size such as 56 or 56x84" in err
