"""The oracle itself: against PyWavelets, against transformers' ViT, against literals by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests import oracles, tolerances

CONFIG = {
    "image_size": [12, 20], "patch_size": 4, "channels": 3, "dim": 12, "depth": 2, "heads": 2,
    "mlp_ratio": 4, "num_classes": 5, "norm_eps": 1e-5, "block": "binary", "binarize": "full",
    "ste": "polynomial", "pool": "cls", "layer_scale": False, "alpha_scope": "layer",
    "similarity": "haar", "attention": "differential", "rprelu": "token",
    "context": "sum", "neighbours": "existing", "haar_mode": "edge", "haar_cls": "both",
    "band_weights": "learned",
}  # fmt: skip


def mirror(name: str):
    """A module of tests.torch_models, and torch."""
    return oracles.require("torch", f"tests.torch_models.{name}"), oracles.require("torch")


def draw(vit, config: dict) -> dict[str, np.ndarray]:
    """Random parameters for every name of the network of `config`; a positive alpha."""
    rng = np.random.default_rng(5)
    shapes = {name: value.shape for name, value in vit.VisionTransformer(config).named_parameters()}
    flat = {name: np.asarray(0.3 * rng.standard_normal(shape)) for name, shape in shapes.items()}
    for name in flat:
        if name.endswith("alpha"):
            flat[name] = np.asarray(0.05 + 0.1 * np.abs(flat[name]))
    return flat


def data(config: dict) -> tuple[np.ndarray, np.ndarray]:
    """Two images and the gradient of their logits."""
    rng = np.random.default_rng(6)
    images = rng.standard_normal((2, config["channels"], *config["image_size"]))
    return images, rng.standard_normal((2, config["num_classes"]))


def assert_close(actual, expected, tolerance: float) -> None:
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape
    assert tolerances.disagreement(np.asarray(actual), expected) <= tolerance


def assert_bands(actual, expected) -> None:
    approximation, details = actual
    for band, want in zip((approximation, *details), (expected[0], *expected[1])):
        assert_close(band.numpy(), want, tolerances.HAAR[np.dtype(np.float64)])


# Haar


@pytest.mark.parametrize("norm", ["average", "ortho"])
def test_periodic_swt2_is_that_of_pywavelets(norm):
    ops, torch = mirror("ops")
    pywt = oracles.require("pywt")
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 6))
    (expected,) = pywt.swt2(x, "haar", level=1, axes=(-2, -1), norm=norm == "average")
    assert_bands(ops.swt2(torch.tensor(x), "periodic", norm), expected)


def test_dwt2_and_idwt2_are_those_of_pywavelets():
    ops, torch = mirror("ops")
    pywt = oracles.require("pywt")
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 6))
    expected = pywt.dwt2(x, "haar", axes=(-2, -1))
    assert_bands(ops.dwt2(torch.tensor(x)), expected)
    tensors = torch.tensor(expected[0]), tuple(map(torch.tensor, expected[1]))
    assert_close(ops.idwt2(tensors).numpy(), x, 1e-14)


@pytest.mark.parametrize("norm", ["average", "ortho"])
@pytest.mark.parametrize("mode", ["edge", "periodic"])
@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 4), (2, 3, 1, 1)])
def test_iswt2_rebuilds(mode, norm, shape):
    ops, torch = mirror("ops")
    x = torch.tensor(np.random.default_rng(2).standard_normal(shape))
    assert_close(ops.iswt2(ops.swt2(x, mode, norm), norm).numpy(), x.numpy(), 1e-14)


def test_edge_repeats_the_last_row_and_column():
    ops, torch = mirror("ops")
    _, (rows, columns, diagonal) = ops.swt2(torch.tensor([[1.0, 2.0], [5.0, 14.0]]), "edge")
    assert rows.tolist() == [[-4.0, -6.0], [0.0, 0.0]]
    assert columns.tolist() == [[-2.5, 0.0], [-4.5, 0.0]]
    assert diagonal.tolist() == [[2.0, 0.0], [0.0, 0.0]]


# The grid of patches


@pytest.mark.parametrize("cls, high_token", [("both", 7.0), ("low", 0.0)])
def test_bands_sum_to_the_tokens(cls, high_token):
    ops, torch = mirror("ops")
    x = torch.tensor(np.random.default_rng(3).standard_normal((2, 16, 4)))
    x[:, 0] = 7
    low, high = ops.bands(x, (3, 5), "edge", cls)
    assert_close((low + high)[:, 1:].numpy(), x[:, 1:].numpy(), 1e-14)
    assert (low[:, 0] == 7).all() and (high[:, 0] == high_token).all()


@pytest.mark.parametrize("border, counts", [("existing", (3, 5)), ("eight", (8, 8))])
def test_mean_of_neighbours(border, counts):
    ops, torch = mirror("ops")
    x = torch.tensor([100.0, 1, 2, 4, 8, 16, 32])[None, :, None]  # class token, then a 2 x 3 grid
    corner, edge = counts
    expected = [0, 26 / corner, 61 / edge, 50 / corner, 19 / corner, 47 / edge, 22 / corner]
    assert_close(ops.neighbours(x, (2, 3), border)[0, :, 0].numpy(), expected, 1e-6)
    assert ops.neighbours(x[:, :1], (1, 1), border).tolist() == [[[0.0]]]


# Declared gradients


@pytest.mark.parametrize("ste, slopes", [
    ("polynomial", [0.0, 0.0, 1.0, 2.0, 2.0, 1.5, 0.0, 0.0]),
    ("clip", [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
])  # fmt: skip
def test_sign(ste, slopes):
    ops, torch = mirror("ops")
    z = torch.tensor([-1.5, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 1.5], requires_grad=True)
    y = ops.sign(z, ste)
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    y.sum().backward()
    assert z.grad.tolist() == slopes


def test_weight_binarizer():
    ops, torch = mirror("ops")
    weight = torch.tensor([[2.5, -1.5, 0.5, 0.5]], requires_grad=True)  # mean 1/2, Wc 2, -2, 0, 0
    binary = ops.binarize_weight(weight)
    assert binary.tolist() == [[1.25, -1.25, 1.25, 1.25]]
    (binary * torch.tensor([[3.0, 5.0, 7.0, 1.0]])).sum().backward()
    assert weight.grad.tolist() == [[-2.0, -2.0, 5.0, -1.0]]


def test_boolean():
    ops, torch = mirror("ops")
    quotients = [-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    alpha = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([[[quotients]]]).mul(0.5).requires_grad_()
    y = ops.boolean(x, alpha)
    assert y.flatten().tolist() == [0, 0, 0, 0, 0.5, 0.5, 0.5]
    dy = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    (y * dy).sum().backward()
    assert x.grad.flatten().tolist() == [0, 2, 4, 8, 16, 32, 0]
    assert alpha.grad.item() == 4 * -0.25 + 8 * -0.5 + 16 * 0.25 + 64


@pytest.mark.parametrize("alpha, gradient", [(2e-5, 6.0), (1e-5, 6.0), (0.9e-5, 0.0), (-1.0, 0.0)])
def test_boolean_alpha_has_no_gradient_below_the_smallest(alpha, gradient):
    ops, torch = mirror("ops")
    alpha = torch.full((3, 1, 1), alpha, dtype=torch.float64, requires_grad=True)
    ops.boolean(torch.ones(1, 3, 2, 3, dtype=torch.float64), alpha).sum().backward()
    assert alpha.grad.flatten().tolist() == [gradient] * 3


# Networks


@pytest.mark.parametrize("image_size", [[12, 12], [12, 20]])
def test_deit_is_that_of_transformers(image_size):
    vit, _ = mirror("vit")
    transformers_vit = oracles.require("transformers", "tests.torch_models.transformers_vit")
    config = {**CONFIG, "block": "real", "norm_eps": 1e-6, "image_size": image_size}
    flat = draw(vit, config)
    logits, dimages, grads = vit.run(config, flat, *data(config))
    expected_logits, expected_dimages, expected = transformers_vit.run(config, flat, *data(config))
    assert_close(logits, expected_logits, 1e-12)
    assert_close(dimages, expected_dimages, 1e-12)
    assert grads.keys() == expected.keys()
    for name, gradient in grads.items():
        assert_close(gradient, expected[name], 1e-11)


NEUTRAL = {
    "attention": {"shortcut": 1.0, "neighbour": 0.0},
    "rprelu": {"token_shift_in": 0.0, "token_shift_out": 0.0},
    "layer_scale": {"scale1.alpha": 1.0, "scale1.beta": 0.0,
                    "scale2.alpha": 1.0, "scale2.beta": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("field", NEUTRAL)
def test_a_switch_with_neutral_parameters_changes_nothing(field):
    vit, _ = mirror("vit")
    off = {**CONFIG, "attention": "plain", "rprelu": "channel"}
    value = {"attention": "differential", "rprelu": "token", "layer_scale": True}[field]
    on = {**off, field: value}
    flat = draw(vit, on)
    for name in flat:
        for end, neutral in NEUTRAL[field].items():
            if name.endswith(f".{end}"):
                flat[name][...] = neutral
    kept = vit.VisionTransformer(off).state_dict()
    expected = vit.run(off, {name: flat[name] for name in kept}, *data(off))
    actual = vit.run(on, flat, *data(on))
    assert len(flat) > len(kept)
    assert_close(actual[0], expected[0], 1e-12)
    for name in kept:
        assert_close(actual[2][name], expected[2][name], 1e-10)


@pytest.mark.parametrize("changes", [
    {}, {"similarity": "plain", "ste": "clip"}, {"binarize": "activations"},
    {"alpha_scope": "head", "haar_mode": "periodic", "haar_cls": "low", "neighbours": "eight"},
])  # fmt: skip
def test_every_parameter_of_a_network_gets_a_gradient(changes):
    """With mean pooling and layer scale: without them some gradients are 0 in exact arithmetic.

    The last block's neighbour weight sees no class token, and what one shift adds to all channels
    of a token in the residual stream is removed by every LayerNorm after it.
    """
    vit, _ = mirror("vit")
    config = {**CONFIG, "pool": "mean", "layer_scale": True, **changes}
    logits, dimages, grads = vit.run(config, draw(vit, config), *data(config))
    assert logits.shape == (2, 5) and dimages.shape == (2, 3, 12, 20)
    assert [name for name, value in grads.items() if not np.any(value)] == []


@pytest.mark.parametrize("changes, name", [
    ({"binarize": "none"}, "alpha"), ({"band_weights": "fixed"}, "band_weight"),
])  # fmt: skip
def test_what_does_not_learn_has_a_gradient_of_zeros(changes, name):
    vit, _ = mirror("vit")
    config = {**CONFIG, **changes}
    flat = draw(vit, config)
    _, _, grads = vit.run(config, flat, *data(config))
    for path in (f"blocks.{i}.attn.{name}" for i in range(2)):
        assert grads[path].shape == flat[path].shape and not np.any(grads[path])


@pytest.mark.parametrize("changes", [{"binarize": "none"}, {"block": "real"}])
def test_gradients_of_a_network_without_signs_are_differences(changes):
    """Along one random direction of all parameters at once."""
    vit, _ = mirror("vit")
    config = {**CONFIG, **changes}
    flat = draw(vit, config)
    images, dlogits = data(config)
    rng = np.random.default_rng(8)
    direction = {name: rng.standard_normal(value.shape) for name, value in flat.items()}

    def loss(step: float) -> float:
        moved = {name: value + step * direction[name] for name, value in flat.items()}
        return float((vit.run(config, moved, images, dlogits)[0] * dlogits).sum())

    _, _, grads = vit.run(config, flat, images, dlogits)
    expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
    actual = sum((grads[name] * direction[name]).sum() for name in flat)
    assert actual == pytest.approx(expected, rel=1e-5)


def test_build_refuses_wrong_parameters():
    vit, _ = mirror("vit")
    flat = draw(vit, CONFIG)
    wrong = {**flat, "blocks.0.attn.alpha": np.ones(1)}
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.alpha"):
        vit.build(CONFIG, wrong)
    with pytest.raises(TypeError, match="float32"):
        vit.build(CONFIG, {**flat, "head.bias": flat["head.bias"].astype(np.float32)})
