"""Distillation [SPEC 7]: the weighted loss, and what a teacher may be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl.conventions import ConfigError, ModelFileError, ShapeError
from refimpl.models import VisionTransformer
from refimpl.ops import softmax
from refimpl.training import augmentation, batches, losses, teachers
from tests import oracles, strategies, tolerances
from tests.training_runs import (
    CLASSES,
    PREPROCESSING,
    bars,
    model,
    recipe,
    same_bits,
    timeless,
    train,
)

SOFT = recipe(distillation=0.75)


def _teacher(name: str = "deit_micro", dtype=np.float32, **fields):
    network = model(name, **fields)
    params = network.init(np.random.default_rng(9), dtype)
    params["head"]["weight"] *= 20  # an opinion
    return network, params


def _save(path, teacher, **options) -> str:
    options = {"class_names": list(CLASSES), "preprocessing": PREPROCESSING.to_json()} | options
    refimpl.save(path, *teacher, **options)
    return str(path)


# ----------------------------------------------------------------------------------- the loss


@given(
    strategies.seeds(),
    strategies.sizes(2),
    strategies.floats(),
    st.sampled_from((0.0, 0.1)),
    st.sampled_from((0.25, 0.5, 1.0)),
)
def test_loss_and_gradient_equal_torch(seed, shape, dtype, smoothing, weight) -> None:
    torch_losses = oracles.require("torch", "tests.torch_models.losses")
    rng = np.random.default_rng(seed)
    logits, teacher_logits = (3 * strategies.normal(rng, shape, dtype) for _ in range(2))
    labels = rng.integers(0, shape[1], size=shape[0])
    probabilities = softmax.forward(teacher_logits)[0]
    loss, cache = losses.forward(logits, labels, smoothing, probabilities, weight)
    (dlogits,) = losses.backward(np.ones((), dtype), cache)
    assert (loss.dtype, dlogits.dtype) == (dtype, dtype)
    expected = torch_losses.distillation(logits, labels, smoothing, teacher_logits, weight)
    for actual, right in zip((loss, dlogits), expected):
        error = tolerances.disagreement(actual, right)
        oracles.note(f"distillation {dtype}", error)
        assert error <= tolerances.relative(dtype, shape[0] * shape[1])


def test_without_a_teacher_the_loss_is_the_cross_entropy() -> None:
    logits, labels = np.random.default_rng(0).standard_normal((4, 3)), np.array([0, 2, 1, 1])
    loss, cache = losses.forward(logits, labels, 0.1)
    expected, expected_cache = refimpl.ops.cross_entropy.forward(logits, labels, 0.1)
    assert loss == expected
    (expected_dlogits,) = refimpl.ops.cross_entropy.backward(0.3, expected_cache)
    assert np.array_equal(losses.backward(0.3, cache)[0], expected_dlogits)


# ----------------------------------------------------------------------------------- whole runs


def test_the_student_comes_closer_to_its_teacher(tmp_path) -> None:
    """Labels say nothing here: all weight is the teacher's, and it answers at random."""
    network, params = _teacher()
    images, _ = bars(20)
    inputs = PREPROCESSING.apply_array(images)
    expected = softmax.forward(network.predict(params, inputs))[0]

    def distance(student) -> float:
        answer = softmax.forward(model().predict(student, inputs))[0]
        return float(np.abs(answer - expected).mean())

    alone = recipe(epochs=15, learning_rate=1e-2, shift=0, distillation=1.0)
    start = model().init(np.random.default_rng(alone.seed))
    trained = train(tmp_path, alone, teacher=(network, params))
    assert distance(trained.params) < distance(start) / 2


def test_the_card_says_who_taught(tmp_path) -> None:
    network, params = _teacher()
    path = _save(tmp_path / "teacher.safetensors", (network, params))
    named = recipe(distillation=0.5, teacher=path)
    by_name, by_hand = train(tmp_path, named), train(tmp_path, SOFT, "soft", teacher=_teacher())
    cards = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "soft")]
    assert cards[0]["recipe"] == named.to_json()
    assert cards[0]["teacher"] == cards[1]["teacher"]
    assert cards[0]["teacher"]["config"] == network.config.to_json()
    assert not same_bits(by_name.params, by_hand.params)  # 0.5 is not 0.75


def test_a_named_teacher_teaches_like_a_given_one(tmp_path) -> None:
    path = _save(tmp_path / "teacher.safetensors", _teacher())
    named = train(tmp_path, recipe(distillation=0.75, teacher=path), "named")
    given = train(tmp_path, SOFT, "given", teacher=_teacher())
    assert same_bits(named.params, given.params)
    assert timeless(named.history) == timeless(given.history)


def test_the_teacher_sees_the_augmented_images_and_only_predicts(tmp_path, monkeypatch) -> None:
    student, teacher, passes = [], [], []
    forward, predict = VisionTransformer.forward, VisionTransformer.predict
    backward = VisionTransformer.backward

    def forward_spy(self, params, images, **options):
        student.append(images)
        passes.append(self.config.block)
        return forward(self, params, images, **options)

    def backward_spy(self, dlogits, cache, **options):
        passes.append(self.config.block)
        return backward(self, dlogits, cache, **options)

    def predict_spy(self, params, images, **options):
        teacher.append(images)
        return predict(self, params, images, **options)

    monkeypatch.setattr(VisionTransformer, "forward", forward_spy)
    monkeypatch.setattr(VisionTransformer, "backward", backward_spy)
    monkeypatch.setattr(VisionTransformer, "predict", predict_spy)
    two_stages = recipe(distillation=0.5, activation_epochs=1, epochs=1, shards=1, shift=2)
    train(tmp_path, two_stages, teacher=_teacher())
    assert set(passes) == {"binary"}
    assert len(student) == len(teacher) == 6
    assert all(np.array_equal(a, b) for a, b in zip(student, teacher))
    still = PREPROCESSING.apply_array(bars(20)[0])
    assert not all(any(np.array_equal(x, y) for y in still) for x in np.concatenate(student))


def test_a_teacher_of_another_type_and_preparation(tmp_path) -> None:
    """float64, and an image that is prepared as the teacher's file says."""
    other = PREPROCESSING.to_json() | {"mean": [0.9], "std": [2.0]}
    path = _save(tmp_path / "teacher.safetensors", _teacher(dtype=np.float64), preprocessing=other)
    chosen = teachers.choose(
        None,
        recipe(distillation=0.5, teacher=path),
        CLASSES,
        PREPROCESSING.apply_array,
        bars(1)[0],
    )
    answer = chosen.probabilities(bars(4)[0])
    network, params = _teacher(dtype=np.float64)
    inputs = ((bars(4)[0] / 255 - 0.9) / 2)[:, None].astype(np.float32).astype(np.float64)
    assert answer.dtype == np.float64
    assert np.allclose(answer, softmax.forward(network.predict(params, inputs))[0], rtol=1e-12)
    train(tmp_path, recipe(distillation=0.5, teacher=path))


def test_interrupted_with_a_teacher(tmp_path, monkeypatch) -> None:
    whole = train(tmp_path, SOFT, "whole", teacher=_teacher())
    shard, calls = batches._shard, []

    def cut(*arguments):
        calls.append(None)
        if len(calls) > 8:
            raise KeyboardInterrupt
        return shard(*arguments)

    monkeypatch.setattr(batches, "_shard", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, SOFT, teacher=_teacher())
    monkeypatch.undo()
    network, params = _teacher()
    params["head"]["bias"][1] += 1
    with pytest.raises(ConfigError, match="another teacher"):
        train(tmp_path, SOFT, teacher=(network, params), resume=True)
    resumed = train(tmp_path, SOFT, teacher=_teacher(), resume=True)
    assert same_bits(whole.params, resumed.params)


# ----------------------------------------------------------------------------------- refusals


def _without_bias():
    network, params = _teacher()
    del params["head"]["bias"]
    return network, params


@pytest.mark.parametrize(
    ("teacher", "fields", "error", "words"),
    [
        (lambda: _teacher(num_classes=4), {}, ConfigError, "has 4 classes, expected 3"),
        (lambda: _teacher(image_size=(8, 16)), {}, ConfigError, r"reads images \(1, 8, 16\)"),
        (lambda: _teacher(channels=3), {}, ConfigError, r"the student's are \(1, 8, 12\)"),
        (_without_bias, {}, ShapeError, "head.bias: missing"),
        (_teacher, {"distillation": 0.0}, ConfigError, "a teacher was given"),
        (lambda: None, {}, ConfigError, "there is no teacher"),
        (
            lambda: _teacher(num_classes=4), {"teacher": "didb_micro_mnist"},
            ConfigError, "the teacher: has 4 classes",  # not the one that the recipe names
        ),
        (lambda: None, {"teacher": "nobody"}, ModelFileError, "nobody: no such file or model"),
    ],
)
def test_a_teacher_that_cannot_teach(tmp_path, teacher, fields, error, words) -> None:
    with pytest.raises(error, match=words) as caught:
        train(tmp_path, recipe(**{"distillation": 0.75} | fields), teacher=teacher())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_of_other_classes(tmp_path) -> None:
    path = _save(tmp_path / "t.safetensors", _teacher(), class_names=["both", "left", "right"])
    with pytest.raises(ConfigError, match=r"\(both, left, right\), expected.*\(left, right, both"):
        train(tmp_path, recipe(distillation=0.75, teacher=path))


def test_augmentation_draws_nothing_for_the_teacher(tmp_path, monkeypatch) -> None:
    """The same batches with and without: figures of both runs can be compared."""
    seen: dict[str, list[np.ndarray]] = {"with": [], "without": []}
    for name, fields in (("with", {"distillation": 0.5}), ("without", {})):

        def spy(images, rng, kept=seen[name], **options):
            kept.append(augmentation.augment(images, rng, **options))
            return kept[-1]

        monkeypatch.setattr("refimpl.training.loop.augment", spy)
        train(tmp_path, recipe(**fields), name, teacher=_teacher() if fields else None)
    assert all(np.array_equal(a, b) for a, b in zip(seen["with"], seen["without"], strict=True))
