"""Whole networks on the fused twins: logits equal to the bit, gradients to the ladder.

The logits of a real network in float32 are to the ladder too, since gelu's erf is another.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings

from refimpl import create_model, ops
from refimpl.conventions import NonFiniteError
from refimpl.kernels import backend
from refimpl.kernels.twins import projection
from refimpl.models import flatten, unflatten
from tests import networks, oracles, strategies, tolerances

COVERING = networks.covering()
SUMS = 4096  # terms that a gradient adds up over the depth of a network: generous for float32
# A gradient that is 0 in exact arithmetic is the rounding noise of terms that cancel; this share of
# the network's largest gradient takes its place as the scale.
FLOOR = {np.dtype(np.float32): 1e-2, np.dtype(np.float64): tolerances.STRUCTURAL_ZERO}


def agree(network: networks.Network) -> None:
    """Forward and backward by the twins and by the operations themselves.

    The twins add up in the order of the operations, so no bit flips, in float32 either. BLAS, which
    computes the products with real weights, may take another order for another shape.
    """
    logits, dimages, grads = network.run(backend=backend)
    expected_logits, expected_dimages, expected = network.run(backend=ops)
    assert logits.dtype == expected_logits.dtype
    if network.model.config.binarize != "full" or network.model.config.block == "real":
        worst = tolerances.disagreement(logits, expected_logits)
        assert worst <= tolerances.relative(logits.dtype, SUMS)
    else:
        np.testing.assert_array_equal(logits, expected_logits)
    assert grads.keys() == expected.keys()
    largest = max(float(np.abs(gradient).max()) for gradient in expected.values())
    floor = FLOOR[logits.dtype] * largest
    for path, theirs in {"images": expected_dimages, **expected}.items():
        ours = dimages if path == "images" else grads[path]
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), path
        worst = tolerances.disagreement(ours, theirs, floor)
        oracles.note(f"networks on the twins, gradients, {ours.dtype}", worst, path)
        assert worst <= tolerances.relative(ours.dtype, SUMS), f"{path}: {worst:.1e}"


@pytest.mark.parametrize("dtype", strategies.FLOATS, ids=str)
@pytest.mark.parametrize("name", COVERING)
def test_every_switch(name, dtype):
    agree(networks.make(COVERING[name], 7, dtype))


@settings(max_examples=20)
@given(networks.all_configs(), strategies.seeds(), strategies.floats())
def test_any_network(config, seed, dtype):
    agree(networks.make(config, seed, dtype))


@pytest.mark.parametrize("stage", networks.SWITCHES["binarize"])
@pytest.mark.parametrize("name", ["didb_micro", "react_micro"])
def test_stages_of_training(name, stage):
    agree(micro(name, binarize=stage))


def micro(name: str, **fields) -> networks.Network:
    model = create_model(name, depth=2, **fields)
    return networks.make(model.config, 3, np.float32, batch=3)


def test_taps_see_the_same_values():
    network = networks.make(networks.small(**networks.DIDB), 5)

    def values(chosen) -> dict[str, np.ndarray]:
        found = {}
        network.run(lambda name, value, op, inputs: found.setdefault(name, value), chosen)
        return found

    ours, expected = values(backend), values(ops)
    assert list(ours) == list(expected)
    for name, value in expected.items():
        if name.startswith("grads/"):
            assert tolerances.disagreement(ours[name], value, 1.0) <= tolerances.FLOAT64, name
        else:
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_prediction_keeps_no_cache_and_gives_the_same():
    network = micro("didb_micro")
    ours, expected = (
        network.model.predict(network.params, network.images, backend=b) for b in (backend, ops)
    )
    np.testing.assert_array_equal(ours, expected)


def test_a_batch_is_its_images():
    network = micro("didb_micro")
    together, _ = network.model.forward(network.params, network.images, backend=backend)
    for image, logits in zip(network.images, together, strict=True):
        alone, _ = network.model.forward(network.params, image[None], backend=backend)
        assert tolerances.disagreement(alone[0], logits) <= tolerances.relative(logits.dtype, 64)


def test_threads_do_not_disturb_each_other():
    network = micro("didb_micro")
    expected = network.run(backend=backend)
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: network.run(backend=backend), range(8)))
    for logits, dimages, grads in runs:
        np.testing.assert_array_equal(logits, expected[0])
        np.testing.assert_array_equal(dimages, expected[1])
        for path, gradient in expected[2].items():
            np.testing.assert_array_equal(grads[path], gradient, err_msg=path)


@pytest.mark.parametrize("path", ["blocks.1.mlp.up.move", "blocks.0.attn.q_low.weight"])
def test_a_nan_is_found_in_the_same_layer(path):
    network = micro("didb_micro")
    flat = {name: np.array(value) for name, value in flatten(network.params).items()}
    flat[path].flat[3] = np.nan
    found = []
    for chosen in (backend, ops):
        with pytest.raises(NonFiniteError) as error:
            network.model.forward(unflatten(flat), network.images, backend=chosen)
        found.append((str(error.value), error.value.layer))
    assert found[0] == found[1]
    assert found[0][1] == path.rsplit(".", 1)[0]


@pytest.mark.parametrize("slope", [np.nan, np.inf])
@pytest.mark.parametrize("layer", ["blocks.0.attn.rprelu", "blocks.0.attn.q_low.rprelu"])
def test_a_slope_that_is_no_number_is_found_where_nothing_is_negative(layer, slope):
    network = micro("didb_micro")
    flat = {name: np.array(value) for name, value in flatten(network.params).items()}
    flat[f"{layer}.slope"][0] = slope
    flat[f"{layer}.shift_in"][0] = -100  # so that the slope is multiplied by 0
    found = []
    for chosen in (backend, ops):
        with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError) as error:
            network.model.forward(unflatten(flat), network.images, backend=chosen)
        found.append((str(error.value), error.value.layer))
    assert found[0] == found[1]


def every_second(value: np.ndarray) -> np.ndarray:
    """The same values, not side by side in memory."""
    twice = np.full((*value.shape, 2), np.nan, value.dtype)
    twice[..., 0] = value
    return twice[..., 0]


def locked(value: np.ndarray) -> np.ndarray:
    value = value.copy()
    value.flags.writeable = False
    return value


@pytest.mark.parametrize("kept", [every_second, locked])
@pytest.mark.parametrize("which", ["every", "first"])
def test_how_parameters_lie_in_memory_changes_nothing(kept, which):
    network = micro("didb_micro")
    writable = {name: np.array(value) for name, value in flatten(network.params).items()}
    # one of several that a twin takes together, and one of a norm
    few = ("blocks.0.attn.q_low_move", "blocks.0.norm1.weight", "blocks.0.attn.v.move")
    changed = {
        name: kept(value) if which == "every" or name in few else value
        for name, value in writable.items()
    }
    assert set(few) <= set(writable)
    expected = network._replace(params=unflatten(writable)).run(backend=backend)
    found = network._replace(params=unflatten(changed)).run(backend=backend)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    for path, gradient in expected[2].items():
        np.testing.assert_array_equal(found[2][path], gradient, err_msg=path)


@pytest.mark.parametrize(
    ("fields", "dtype", "words"),
    [
        ({"dim": 16}, "float64", "of float64; expected float32"),
        ({"dim": 24, "heads": 3}, "float32", "where 16 does not divide the channels"),
    ],
)
def test_a_fall_back_to_numpy_is_said_once(fields, dtype, words) -> None:
    projection._say_once.cache_clear()
    model = create_model("react_micro", depth=1, image_size=8, **fields)
    params = model.init(np.random.default_rng(0), dtype)
    images = np.zeros((1, 1, 8, 8), dtype)
    with pytest.warns(UserWarning, match=f"no fused projection {words}") as caught:
        for _ in range(2):
            model.predict(params, images, backend=backend)
    assert len(caught) == 1


def test_what_the_kernels_can_do_is_not_warned_of(recwarn) -> None:
    projection._say_once.cache_clear()
    model = create_model("react_micro", depth=1, image_size=8, dim=16)
    params = model.init(np.random.default_rng(0))
    model.predict(params, np.zeros((1, 1, 8, 8), np.float32), backend=backend)
    assert not recwarn.list
