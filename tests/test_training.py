"""The training room: each part against an oracle or literals, then whole runs of a tiny model."""

from __future__ import annotations

import json
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl import ops
from refimpl.conventions import (
    ConfigError,
    DataError,
    ModelFileError,
    NonFiniteError,
    OutputError,
)
from refimpl.kernels import backend as kernels_backend
from refimpl.models.params import flatten
from refimpl.training import batches, checkpoints, loop
from refimpl.training.augmentation import augment, random_flip, random_shift, shift
from refimpl.training.optimizers import (
    AdamW,
    Muon,
    clip_by_global_norm,
    for_network,
    orthogonal,
)
from refimpl.training.recipes import Recipe
from refimpl.training.schedules import warmup_cosine
from tests import oracles, strategies, tolerances
from tests.command_line import PATIENCE
from tests.training_runs import (
    CLASSES,
    PREPROCESSING,
    RECIPE,
    bars,
    model,
    recipe,
    same_bits,
    timeless,
    train,
)

SHAPES = {"matrix": (3, 5), "bias": (4,), "scalar": ()}


def _arrays(rng: np.random.Generator, dtype: np.dtype = np.float64) -> dict[str, np.ndarray]:
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


# ---------------------------------------------------------------------------------- optimizers


@given(seed=strategies.seeds(), dtype=st.sampled_from(strategies.FLOATS))
def test_adamw_equals_torch(seed: int, dtype: np.dtype) -> None:
    torch_optimizer = oracles.require("torch", "tests.torch_models.optimizer")
    rng = np.random.default_rng(seed)
    params = {name: np.asarray(value) for name, value in _arrays(rng, dtype).items()}
    # gradients of very different lengths, an exact 0 among them
    gradients = [_arrays(rng, dtype) for _ in range(7)]
    gradients[2]["matrix"] *= 1e-6
    gradients[3]["bias"][1] = 0
    rates = rng.uniform(1e-4, 1e-1, size=7).tolist()
    shares = {"matrix": 0.5, "scalar": 0.02}
    expected = torch_optimizer.adamw(params, gradients, rates, 0.3, {"matrix"}, shares)

    optimizer = AdamW(params, decay=0.3, decayed={"matrix"}, shares=shares)
    for gradient, rate in zip(gradients, rates):
        optimizer.step(gradient, rate)
    for name, value in params.items():
        assert value.dtype == dtype
        # a parameter that starts at order 1 may end near 0: it keeps the rounding of its start
        error = tolerances.disagreement(value, expected[name], floor=1.0)
        oracles.note(f"AdamW {dtype}", error)
        assert error <= tolerances.relative(dtype, len(rates)), name


def test_adamw_decays_only_the_named_matrices() -> None:
    params = {"decayed": np.full(3, 2.0), "left": np.full(3, 2.0)}
    optimizer = AdamW(params, decay=0.5, decayed={"decayed"})
    optimizer.step({name: np.zeros(3) for name in params}, rate=0.1)
    assert params["decayed"].tolist() == [1.9, 1.9, 1.9]
    assert params["left"].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ("didb_micro", "deit_micro"))
def test_only_alpha_has_a_rate_of_its_own(name: str) -> None:
    network = refimpl.create_model(name, depth=2, layer_scale=name == "didb_micro")
    params = {
        path: value.copy()
        for path, value in flatten(network.init(np.random.default_rng(0))).items()
    }
    before = {path: value.copy() for path, value in params.items()}
    recipe = Recipe(alpha_rate=0.25, weight_decay=0.0)
    optimizer = for_network(network.network, params, recipe)
    optimizer.step({path: np.ones_like(value) for path, value in params.items()}, rate=1e-3)
    for path, value in params.items():  # the first step has the length of the rate
        rate = 2.5e-4 if path in ("blocks.0.attn.alpha", "blocks.1.attn.alpha") else 1e-3
        assert np.allclose(before[path] - value, rate, rtol=0, atol=1e-6), path


@given(
    seed=strategies.seeds(),
    dtype=st.sampled_from(strategies.FLOATS),
    sizes=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    scale=st.sampled_from((1e-3, 1.0, 1e6)),
)
def test_orthogonal_is_the_polynomial_of_singular_values(seed, dtype, sizes, scale) -> None:
    matrix = (np.random.default_rng(seed).standard_normal(sizes) * scale).astype(dtype)
    left, values, right = scipy.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values /= math.sqrt(np.sum(values**2)) + 1e-7
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    found = orthogonal(matrix)
    assert found.dtype == dtype
    error = tolerances.disagreement(found, (left * values) @ right, floor=1.0)
    oracles.note(f"orthogonal {np.dtype(dtype)}", error)
    # each turn stretches what a small singular value has of rounding by at most 3.4445
    assert error <= 3.4445**5 * tolerances.relative(dtype, max(sizes))


def test_orthogonal_leaves_nothing_where_nothing_is() -> None:
    assert not orthogonal(np.zeros((3, 2), np.float32)).any()


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_muon_equals_torch_but_for_its_bfloat16(shape) -> None:
    torch_optimizer = oracles.require("torch", "tests.torch_models.optimizer")
    rng = np.random.default_rng(2)
    start = rng.standard_normal(shape)
    gradients = [rng.standard_normal(shape) for _ in range(6)]
    rates = rng.uniform(1e-3, 1e-1, size=6).tolist()
    expected = torch_optimizer.muon(start, gradients, rates, 0.3)

    value = start.copy()
    optimizer = Muon({"w": value}, decay=0.3, decayed={"w"})
    for gradient, rate in zip(gradients, rates):
        optimizer.step({"w": gradient}, rate)
    moved = np.linalg.norm(value - start)
    assert moved > 0.1
    assert np.linalg.norm(value - expected) <= 2**-6 * moved


def _one_step(name: str, gradients, **fields) -> dict[str, np.ndarray]:
    """How far the first step of a network's optimizer moves every parameter."""
    network = refimpl.create_model(name, depth=(1, 1) if "swin" in name else 1, dim=16)
    start = {p: v.copy() for p, v in flatten(network.init(np.random.default_rng(0))).items()}
    params = {path: value.copy() for path, value in start.items()}
    optimizer = for_network(network.network, params, Recipe(weight_decay=0.0, **fields))
    optimizer.step({path: gradients(path, value) for path, value in params.items()}, rate=1e-3)
    return {path: start[path] - value for path, value in params.items()}


@pytest.mark.parametrize("name", ("didb_micro", "react_micro", "deit_micro", "swin_micro"))
def test_muon_steps_the_matrices_of_blocks_and_nothing_else(name: str) -> None:
    rng = np.random.default_rng(4)
    drawn: dict[str, np.ndarray] = {}

    def gradient(path, value):
        return drawn.setdefault(path, rng.standard_normal(value.shape).astype(value.dtype))

    adamw, muon = _one_step(name, gradient), _one_step(name, gradient, muon_rate=2.0)
    stepped = {path for path in adamw if not np.array_equal(adamw[path], muon[path])}
    matrices = {p for p, v in adamw.items() if p.startswith("blocks.") and p.endswith(".weight")}
    assert stepped == {path for path in matrices if adamw[path].ndim == 2}
    for path in stepped:  # as long as AdamW's by the root of the mean square, twice for the rate
        length = math.sqrt(np.mean(np.square(muon[path])))
        assert 0.6 * 0.4e-3 < length < 1.3 * 0.4e-3, path


def test_muon_takes_queries_keys_and_values_apart() -> None:
    """Gradients of queries a thousand times smaller than those of values make as long a step."""

    def gradient(path, value):
        drawn = np.random.default_rng(7).standard_normal(value.shape).astype(value.dtype)
        if path.endswith("qkv.weight"):
            drawn[:16] *= 1e-3
        return drawn

    step = _one_step("deit_micro", gradient, muon_rate=1.0)["blocks.0.attn.qkv.weight"]
    lengths = [np.linalg.norm(part) for part in np.split(step, 3)]
    assert max(lengths) < 1.3 * min(lengths)


def test_adamw_goes_on_from_its_state() -> None:
    rng = np.random.default_rng(1)
    start, gradients = _arrays(rng), [_arrays(rng) for _ in range(4)]
    whole = {name: np.array(value) for name, value in start.items()}
    optimizer = AdamW(whole, 0.1, {"matrix"})
    for gradient in gradients[:2]:
        optimizer.step(gradient, 0.01)
    state = {name: np.array(value) for name, value in optimizer.state().items()}
    rest = {name: np.array(value) for name, value in whole.items()}
    resumed = AdamW(rest, 0.1, {"matrix"})
    resumed.restore(state)
    for gradient in gradients[2:]:
        optimizer.step(gradient, 0.01)
        resumed.step(gradient, 0.01)
    assert all(np.array_equal(whole[name], rest[name]) for name in SHAPES)


@given(seed=strategies.seeds(), most=st.sampled_from((0.01, 1.0, 100.0)))
def test_clipping_equals_torch(seed: int, most: float) -> None:
    torch_optimizer = oracles.require("torch", "tests.torch_models.optimizer")
    gradients = _arrays(np.random.default_rng(seed))
    clipped, norm = clip_by_global_norm(gradients, most)
    whole = np.concatenate([np.ravel(value) for value in gradients.values()])
    assert norm == pytest.approx(np.linalg.norm(whole), rel=1e-14)
    for name, expected in torch_optimizer.clipped(gradients, most).items():
        # torch divides by norm + 1e-6
        assert tolerances.disagreement(clipped[name], expected) <= 2e-6 / norm


def test_clipping_does_not_depend_on_the_order_of_names() -> None:
    rng = np.random.default_rng(0)
    gradients = {str(i): rng.standard_normal(7) * 10.0 ** rng.integers(-9, 9) for i in range(50)}
    norms = set()
    for _ in range(20):
        order = rng.permutation(list(gradients))
        norms.add(clip_by_global_norm({name: gradients[name] for name in order}, 1.0)[1])
    assert len(norms) == 1


def test_clipping_literals() -> None:
    gradients = {"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    assert norm == 5.0
    assert np.allclose(clipped["a"], [0.6], rtol=1e-15)
    assert np.allclose(clipped["b"], [[0.0, 0.8]], rtol=1e-15)
    assert clip_by_global_norm(gradients, 5.0)[0]["a"] is gradients["a"]
    assert gradients["a"].tolist() == [3.0]


# ------------------------------------------------------------------------ schedule, augmentation


def test_schedule_literals() -> None:
    rates = [warmup_cosine(step, steps=10, peak=2.0, warmup=4) for step in range(11)]
    half = np.sqrt(3) / 2  # the cosine of a sixth of the way
    expected = [0.5, 1, 1.5, 2, 2, 1 + half, 1.5, 1, 0.5, 1 - half, 0]
    assert rates == pytest.approx(expected, abs=1e-15)


def test_schedule_without_warmup_starts_at_the_peak() -> None:
    assert warmup_cosine(0, steps=5, peak=0.3) == 0.3


@given(
    seed=strategies.seeds(),
    sizes=strategies.sizes(3),
    most=st.integers(0, 4),
    colour=st.booleans(),
    background=st.sampled_from((0, 255)),
)
def test_every_augmented_image_is_a_shift(seed, sizes, most, colour, background) -> None:
    _, height, width = sizes
    shape = sizes + (3,) * colour
    images = np.random.default_rng(seed).integers(1, 255, size=shape, dtype=np.uint8)
    before = images.copy()
    moved = random_shift(images, most, np.random.default_rng(seed + 1), background)
    assert np.array_equal(images, before)
    assert moved.dtype == np.uint8 and moved.shape == shape
    pad = [(most, most), (most, most)] + [(0, 0)] * colour
    for image, result in zip(images, moved):
        frame = np.pad(image, pad, constant_values=background)
        windows = [
            frame[top : top + height, left : left + width]
            for top in range(2 * most + 1)
            for left in range(2 * most + 1)
        ]
        assert any(np.array_equal(result, window) for window in windows)


@given(seed=strategies.seeds(), sizes=strategies.sizes(3), colour=st.booleans())
def test_every_flipped_image_is_itself_or_its_mirror_image(seed, sizes, colour) -> None:
    shape = sizes + (3,) * colour
    images = np.random.default_rng(seed).integers(0, 255, size=shape, dtype=np.uint8)
    before = images.copy()
    flipped = random_flip(images, np.random.default_rng(seed + 1))
    assert np.array_equal(images, before)
    assert flipped.dtype == np.uint8 and flipped.shape == shape
    for image, result in zip(images, flipped):
        assert np.array_equal(result, image) or np.array_equal(result, image[:, ::-1])


def test_about_half_of_the_images_are_mirrored() -> None:
    images = np.tile(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8), (1000, 1, 1))
    flipped = random_flip(images, np.random.default_rng(0))
    mirrored = (flipped == [[3, 2, 1], [6, 5, 4]]).all(axis=(1, 2))
    assert 450 < mirrored.sum() < 550
    assert (flipped[~mirrored] == images[0]).all()


def test_augmentation_draws_only_what_the_recipe_asks_for() -> None:
    """A recipe without flips gives the bits that it gave before there were flips."""
    images, _ = bars(6)
    shifted = random_shift(images, 2, np.random.default_rng(1))
    assert np.array_equal(augment(images, np.random.default_rng(1), shift=2), shifted)
    assert augment(images, np.random.default_rng(1)) is images
    rng = np.random.default_rng(1)
    both = random_shift(random_flip(images, rng), 2, rng)
    assert np.array_equal(augment(images, np.random.default_rng(1), shift=2, flip=True), both)


def test_shift_moves_down_and_right() -> None:
    image = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3)
    moved = shift(image, down=np.array([1]), right=np.array([-1]), background=9)
    assert moved[0].tolist() == [[9, 9, 9], [2, 3, 9]]


def test_random_shifts_use_the_whole_range_in_both_directions() -> None:
    dot = np.zeros((400, 5, 7), dtype=np.uint8)
    dot[:, 2, 3] = 1
    moved = random_shift(dot, 2, np.random.default_rng(0))
    _, rows, columns = np.nonzero(moved)
    assert set(zip((rows - 2).tolist(), (columns - 3).tolist())) == {
        (down, right) for down in range(-2, 3) for right in range(-2, 3)
    }


# --------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.0),
        ("activation_epochs", -1),
        ("batch_size", True),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("weight_decay", -0.1),
        ("weight_decay", float("inf")),
        ("warmup_fraction", 1.0),
        ("smoothing", 1.0),
        ("distillation", 1.1),
        ("teacher", 3),
        ("teacher", "didb_micro_mnist"),  # and no weight for it
        ("learning_rate", 10**309),
        ("shift", -1),
        ("flip", 1),
        ("clip_norm", 0.0),
        ("seed", -1),
        ("shards", 0),
    ],
)
def test_a_bad_recipe_is_one_clear_line(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(**{field: value})
    message = str(caught.value)
    assert field in message and repr(value) in message and "expected" in message
    assert "\n" not in message


def test_a_recipe_survives_json() -> None:
    given = Recipe(epochs=3, learning_rate=1e-3, clip_norm=1.5, seed=7)
    assert Recipe.from_json(json.loads(json.dumps(given.to_json()))) == given
    assert Recipe.from_json({"shift": 1}) == Recipe(shift=1)
    with pytest.raises(ConfigError, match="unknown field 'learning rate'"):
        Recipe.from_json({"learning rate": 1})


# ----------------------------------------------------------------------------------- checkpoints


def _checkpoint(value: float) -> checkpoints.Checkpoint:
    params = {"w": np.full((2, 3), value), "alpha": np.array(value, dtype=np.float32)}
    return checkpoints.Checkpoint(params, {"steps": np.array(4)}, {"history": [{"loss": value}]})


def test_a_checkpoint_comes_back(tmp_path) -> None:
    saved = _checkpoint(0.1)
    saved.params["w"] = np.arange(6.0).reshape(3, 2).T  # not C-contiguous
    checkpoints.save(tmp_path / "run.checkpoint", saved)
    loaded = checkpoints.load(tmp_path / "run.checkpoint")
    assert loaded.progress == saved.progress
    assert int(loaded.optimizer["steps"]) == 4
    assert loaded.params.keys() == saved.params.keys()
    for name, value in saved.params.items():
        assert loaded.params[name].dtype == value.dtype
        assert loaded.params[name].shape == value.shape
        assert np.array_equal(loaded.params[name], value)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch, moment, error):
    path = tmp_path / "run.checkpoint"
    checkpoints.save(path, _checkpoint(1.0))

    def crash(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, moment, crash)
    with pytest.raises(type(error)):
        checkpoints.save(path, _checkpoint(2.0))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["run.checkpoint"]
    assert checkpoints.load(path).params["alpha"] == 1.0


def test_what_is_no_checkpoint_is_refused(tmp_path) -> None:
    path = tmp_path / "run.checkpoint"
    with pytest.raises(ModelFileError, match=r"run\.checkpoint"):
        checkpoints.load(path)
    checkpoints.save(path, _checkpoint(1.0))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelFileError, match=r"run\.checkpoint"):
        checkpoints.load(path)


# ------------------------------------------------------------------------------------ whole runs


def test_a_tiny_model_learns_and_is_written(tmp_path) -> None:
    long = recipe(epochs=24, learning_rate=1e-2, shift=0, smoothing=0.0, seed=0)
    validation = bars(30)
    trained = train(tmp_path, long, count=32, validation=validation, card={"data": "bars"})
    losses = [result.loss for result in trained.history]
    assert len(losses) == 24
    assert losses[-1] < losses[0] / 3
    assert trained.history[-1].validation_accuracy >= 0.8

    assert sorted(os.listdir(tmp_path)) == ["run.json", "run.safetensors"]
    network, params = refimpl.load(tmp_path / "run.safetensors")
    assert network.config == model().config
    assert same_bits(params, trained.params)
    card = json.loads((tmp_path / "run.json").read_text())
    assert card["recipe"] == long.to_json()
    assert card["data"] == "bars"
    assert card["figures"]["loss"] == losses[-1]


@pytest.mark.parametrize("shards", [1, 3])
def test_same_recipe_same_bits(tmp_path, shards: int) -> None:
    clipped = recipe(shards=shards, clip_norm=1.0)
    first, second = (train(tmp_path, clipped, name) for name in ("first", "second"))
    assert same_bits(first.params, second.params)
    assert timeless(first.history) == timeless(second.history)


@pytest.mark.parametrize("backend", [ops, kernels_backend])
def test_the_number_of_threads_does_not_change_the_bits(tmp_path, backend) -> None:
    parts = recipe(shards=3, activation_epochs=1)
    first, second = (
        train(tmp_path, parts, f"{threads}", threads=threads, backend=backend) for threads in (1, 5)
    )
    assert same_bits(first.params, second.params)


def test_both_backends_learn_the_same(tmp_path) -> None:
    first, second = (
        train(tmp_path, name=name, backend=backend)
        for name, backend in (("ops", ops), ("kernels", kernels_backend))
    )
    losses = ([result.loss for result in trained.history] for trained in (first, second))
    assert next(losses) == pytest.approx(next(losses), rel=1e-5)


@pytest.mark.parametrize("change", [{"seed": 4}, {"flip": True}, {"shift": 0}, {"clip_norm": 0.1}])
def test_another_recipe_other_bits(tmp_path, change) -> None:
    assert not same_bits(train(tmp_path).params, train(tmp_path, recipe(**change), "other").params)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(tmp_path, monkeypatch) -> None:
    orders, shifts, augment = [], [], loop.augment
    images = [image.tobytes() for image in bars(20)[0]]

    def spy(batch, rng, **options):
        orders.extend(images.index(image.tobytes()) for image in batch)
        moved = augment(batch, rng, **options)
        shifts.extend(not np.array_equal(a, b) for a, b in zip(batch, moved))
        return moved

    monkeypatch.setattr(loop, "augment", spy)
    train(tmp_path, recipe(activation_epochs=1, epochs=2))
    epochs = [orders[first : first + 20] for first in (0, 20, 40)]
    assert len(orders) == 60
    assert all(sorted(order) == list(range(20)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({tuple(shifts[first : first + 20]) for first in (0, 20, 40)}) == 3


def test_the_start_is_not_changed(tmp_path) -> None:
    start = model().init(np.random.default_rng(0))
    before = {name: value.copy() for name, value in refimpl.flatten(start).items()}
    trained = train(tmp_path, params=start)
    assert same_bits(start, refimpl.unflatten(before))
    assert not same_bits(start, trained.params)


@pytest.mark.parametrize("backend", [ops, kernels_backend])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_gradients_of_shards_are_those_of_the_batch(weight: float, backend) -> None:
    network, (images, labels) = model(), bars(7)
    params = network.init(np.random.default_rng(2), dtype=np.float64)
    objective = batches.Objective(
        lambda pixels: PREPROCESSING.apply_array(pixels).astype(np.float64),
        backend,
        smoothing=0.1,
        teacher=lambda pixels: np.full((len(pixels), 3), (0.2, 0.3, 0.5)),
        weight=weight,
    )
    results = []
    with ThreadPoolExecutor(3) as pool:
        for shards in (1, 3, 7, 20):
            results.append(
                batches.batch_gradients(
                    network, params, images, labels, shards=shards, pool=pool, objective=objective
                )
            )  # fmt: skip
    whole = results[0]
    floor = max(np.abs(value).max() for value in whole.gradients.values())
    for parts in results[1:]:
        assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
        assert parts.correct == whole.correct
        for name, value in whole.gradients.items():
            error = tolerances.disagreement(
                parts.gradients[name], value, floor * tolerances.STRUCTURAL_ZERO
            )
            assert error <= tolerances.NETWORK_GRADIENTS, name


def test_shards_are_added_in_their_order_not_in_that_of_finishing(monkeypatch) -> None:
    """The first part finishes last; the sum must not change by one bit."""
    network, (images, labels) = model(), bars(12)
    params = network.init(np.random.default_rng(2))
    options = {"objective": batches.Objective(PREPROCESSING.apply_array), "shards": 3}
    shard, finished, last = batches._shard, [], threading.Event()

    def reversed_order(network, params, part, *rest):
        first = np.array_equal(part, images[:4])
        if first:
            assert last.wait(timeout=PATIENCE)
        result = shard(network, params, part, *rest)
        finished.append("first" if first else "other")
        if len(finished) == 2:
            last.set()
        return result

    with ThreadPoolExecutor(3) as pool:
        expected = batches.batch_gradients(network, params, images, labels, pool=pool, **options)
        monkeypatch.setattr(batches, "_shard", reversed_order)
        actual = batches.batch_gradients(network, params, images, labels, pool=pool, **options)
    assert finished == ["other", "other", "first"]
    assert actual.loss == expected.loss
    for name, value in expected.gradients.items():
        assert value.tobytes() == actual.gradients[name].tobytes()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("head.bias", (3e38, -3e38, -3e38), "the loss is"),  # finite, their difference is not
        ("blocks.0.attn.v.move", np.nan, "blocks.0.attn.v"),
    ],
)
def test_divergence_is_one_clear_line(tmp_path, path: str, value: object, found: str) -> None:
    start = refimpl.flatten(model().init(np.random.default_rng(0)))
    start[path][...] = value
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, params=refimpl.unflatten(start))
    message = str(caught.value)
    assert "step 1 (epoch 1) of stage full" in message and found in message
    assert "learning_rate" in message and "\n" not in message


def test_a_line_an_epoch_on_stderr_and_nothing_without_progress(tmp_path, capsys) -> None:
    train(tmp_path)
    assert capsys.readouterr() == ("", "")
    trained = train(tmp_path, name="again", progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [str(result) for result in trained.history]
    assert captured.err.startswith("full epoch 1/2  loss ")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"class_names": ["left", "right"]}, ConfigError, "3 classes"),
        ({"labels": np.zeros(3, dtype=np.int64)}, DataError, "20 images and 3 labels"),
        ({"images": np.zeros((0, 8, 12), np.uint8), "labels": np.zeros(0, int)}, DataError, "0 im"),
        ({"labels": np.arange(20)}, DataError, "0 to 19"),
        ({"images": np.zeros((20, 8, 12, 3), np.float32)}, DataError, "float32"),
        ({"size": (12, 8)}, DataError, r"the model reads \(1, 8, 12\)"),
        ({"out": "run.pickle"}, ModelFileError, "run.pickle: suffix"),
    ],
)
def test_data_that_does_not_fit_is_refused_at_once(tmp_path, change, error, words) -> None:
    images, labels = bars(20)
    given = {"images": images, "labels": labels, "class_names": list(CLASSES)}
    given |= {"size": (8, 12), "out": "run.safetensors"} | change
    with pytest.raises(error, match=words):
        loop.train(
            model(),
            RECIPE,
            given["images"],
            given["labels"],
            class_names=given["class_names"],
            preprocessing=PREPROCESSING.to_json() | {"size": given["size"]},
            out=tmp_path / given["out"],
        )
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_noticed_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_epoch", lambda *arguments: pytest.fail("it trained"))
    with pytest.raises(OutputError, match="no such folder"):
        train(tmp_path / "missing")
