"""From images to labels: every way in gives the same answer, and the answer is the network's.

Oracles: a head whose logits are known (weights 0, so its bias is the logits), Pillow called
directly, and the accuracies counted by hand from a list of labels.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import refimpl
from refimpl.classifiers import Classifier
from refimpl.conventions import (
    ConfigError,
    DataError,
    DtypeError,
    ModelFileError,
    RefimplError,
    ShapeError,
)
from refimpl.data import bundled
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import cards, files
from tests.command_line import run

NAMES = ("ant", "bee", "cow")
MODEL = refimpl.create_model("didb_micro", image_size=(8, 12), dim=6, depth=1, num_classes=3)
SCALED = Preprocessing(size=(8, 12), mode="grey", mean=(0.25,), std=(0.5,))
RNG = np.random.default_rng(40)
PICTURES = RNG.integers(0, 256, (5, 8, 12), dtype=np.uint8)


def params(**head: np.ndarray) -> dict:
    """Random, with a head that tells images apart unless it is given."""
    drawn = MODEL.init(np.random.default_rng(41))
    drawn["head"]["weight"] *= 100
    return drawn | {"head": drawn["head"] | head}


def known(logits: list[float]) -> dict:
    return params(weight=np.zeros((3, 6), np.float32), bias=np.array(logits, np.float32))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    options = {"class_names": list(NAMES), "preprocessing": SCALED.to_json()}
    refimpl.save(path, MODEL, params(), card={"data": "noise"}, **options)
    return path


@pytest.fixture(scope="module")
def ask(file: Path) -> Classifier:
    return refimpl.classifier(file)


def test_label_and_probability_are_the_softmax_of_the_logits() -> None:
    ask = Classifier(MODEL, known([0.0, math.log(6), math.log(3)]), SCALED, NAMES)
    (answer,) = ask(PICTURES[0])
    assert answer.label == "bee"
    assert answer.probability == pytest.approx(0.6, rel=1e-6)
    assert [name for name, _ in answer.top(3)] == ["bee", "cow", "ant"]
    assert [p for _, p in answer.top(3)] == pytest.approx([0.6, 0.3, 0.1], rel=1e-6)
    assert [name for name, _ in answer.top(2)] == ["bee", "cow"]
    assert len(answer.top(99)) == 3


def test_of_equal_classes_the_first_comes_first() -> None:
    (answer,) = Classifier(MODEL, known([1.0, 1.0, 1.0]), SCALED, NAMES)(PICTURES[0])
    assert answer.label == "ant"
    assert [name for name, _ in answer.top(3)] == list(NAMES)


def test_the_network_sees_the_scaled_pixels(ask: Classifier) -> None:
    x = ((PICTURES[:, None] / 255 - 0.25) / 0.5).astype(np.float32)
    logits = MODEL.predict(params(), x).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    answers = ask(PICTURES)
    np.testing.assert_allclose([a.probabilities for a in answers], expected, rtol=1e-5)
    # images that get the same answer would prove nothing
    assert np.ptp(expected, axis=0).max() > 0.1


def test_every_way_in_gives_the_same_answer(ask: Classifier, tmp_path: Path) -> None:
    expected = [a.probabilities for a in ask(PICTURES)]
    images = [Image.fromarray(picture) for picture in PICTURES]
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths):
        image.save(path)
    colour = np.repeat(PICTURES[..., None], 3, axis=-1)
    ways = [list(PICTURES), images, paths, [str(p) for p in paths], tuple(paths), colour]
    ways.append([PICTURES[0], images[1], paths[2], str(paths[3]), colour[4]])
    for way in ways:
        np.testing.assert_array_equal([a.probabilities for a in ask(way)], expected)
    for single in (PICTURES[1], images[1], paths[1], str(paths[1]), colour[1]):
        (answer,) = ask(single)
        np.testing.assert_allclose(answer.probabilities, expected[1], rtol=1e-5)


def test_any_size_and_mode_is_brought_to_the_models(ask: Classifier) -> None:
    image = Image.fromarray(PICTURES[0]).resize((120, 80), Image.Resampling.NEAREST)
    by_hand = image.resize((12, 8), Image.Resampling.BILINEAR)
    expected = ask(np.asarray(by_hand))[0].probabilities
    for same in (image, image.convert("RGB"), image.convert("RGBA"), image.convert("LA")):
        np.testing.assert_array_equal(ask(same)[0].probabilities, expected)


def test_more_images_than_a_batch(ask: Classifier) -> None:
    many = np.concatenate([PICTURES] * 41)  # 205 images, batches of 100
    answers = ask(many)
    assert len(answers) == 205
    assert [a.label for a in answers] == [a.label for a in ask(PICTURES)] * 41
    assert ask([]) == []


def test_double_precision_weights(tmp_path: Path) -> None:
    flat = {k: v.astype(np.float64) for k, v in refimpl.flatten(params()).items()}
    path = tmp_path / "double.safetensors"
    refimpl.save(path, MODEL, refimpl.unflatten(flat))
    (answer,) = refimpl.classifier(path, backend="numpy")(PICTURES[0])
    (quick,) = refimpl.classifier(path, backend="engine")(PICTURES[0])
    assert answer.probabilities.dtype == np.float64
    assert quick.probabilities.dtype == np.float32
    np.testing.assert_allclose(quick.probabilities, answer.probabilities, rtol=1e-4)


def test_a_file_that_says_nothing_about_images(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    refimpl.save(path, MODEL, params())
    bare = refimpl.classifier(path)
    assert bare.class_names == ("0", "1", "2")
    assert bare.preprocessing == Preprocessing((8, 12), "grey", mean=(0.0,), std=(1.0,))
    colour = refimpl.create_model("deit_micro", image_size=8, channels=3, dim=6, depth=1)
    refimpl.save(path, colour, colour.init(np.random.default_rng(42)))
    assert refimpl.classifier(path).preprocessing.mode == "rgb"


def test_the_backend_that_computes(file: Path, tmp_path: Path) -> None:
    assert refimpl.classifier(file).engine is None  # nothing is asked as yet, see test_choice
    assert refimpl.classifier(file, backend="engine").engine is not None
    assert refimpl.classifier(file, backend="numpy").engine is None
    with pytest.raises(ConfigError, match="backend is 'cuda', expected auto or numpy or engine"):
        refimpl.classifier(file, backend="cuda")
    real = refimpl.create_model("deit_micro", image_size=8, dim=6, depth=1)
    path = tmp_path / "real.safetensors"
    refimpl.save(path, real, real.init(np.random.default_rng(42)))
    assert refimpl.classifier(path).engine is None  # it knows no real blocks
    with pytest.raises(ConfigError, match="engine: found real blocks; expected a binary network"):
        refimpl.classifier(path, backend="engine")


def test_another_size_is_refused_whatever_was_asked_before(ask: Classifier) -> None:
    """NumPy would interpolate, the engine does not, and which of them computes depends on that."""
    message = r"classifier: images has shape \(2, 1, 16, 24\); expected \(any, 1, 8, 12\)"
    with pytest.raises(ShapeError, match=message):
        ask.logits(np.zeros((2, 1, 16, 24), np.float32))


def test_no_images_have_no_logits(ask: Classifier) -> None:
    nothing = np.zeros((0, 1, 8, 12), np.float32)
    assert ask.logits(nothing).shape == ask.probabilities(nothing).shape == (0, 3)
    assert ask([]) == []


def test_large_images_come_a_few_at_a_time(monkeypatch, ask: Classifier) -> None:
    seen: list[int] = []

    def count(self, x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return x[:, 0, 0, :3]

    monkeypatch.setattr(Classifier, "compute", count)
    monkeypatch.setattr("refimpl.classifiers.BATCH_BYTES", 2 * 4 * 8 * 12)
    assert len(ask(np.zeros((5, 8, 12), np.uint8))) == 5
    assert seen == [2, 2, 1]


def test_a_packed_file_is_for_the_engine(tmp_path: Path) -> None:
    latent = files.read("didb_micro_mnist")
    path = tmp_path / "packed.safetensors"
    files.save_packed(path, latent.model, latent.params)
    ask = refimpl.classifier(path)
    seven = bundled.mnist() / "7_0000.png"
    quick = refimpl.classifier("didb_micro_mnist", backend="engine")
    (packed,), (expected,) = ask(seven), quick(seven)
    np.testing.assert_array_equal(packed.probabilities, expected.probabilities)
    with pytest.raises(ModelFileError, match="safetensors: packed, so only the engine can run it"):
        refimpl.classifier(path, backend="numpy")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(np.zeros((8, 12)), "float64 (8, 12)", id="floats"),
        pytest.param(np.zeros((8, 12), bool), "bool (8, 12)", id="booleans"),
        pytest.param(np.zeros(12, np.uint8), "uint8 (12,)", id="one axis"),
        pytest.param(np.zeros((2, 8, 12, 4), np.uint8), "expected uint8", id="four channels"),
        pytest.param(np.zeros((8, 12, 4), np.uint8), "uint8 (8, 12, 4)", id="transparency"),
        pytest.param(np.zeros((8, 12, 1), np.uint8), "uint8 (8, 12, 1)", id="one channel"),
        pytest.param(np.zeros((0, 12), np.uint8), "uint8 (0, 12)", id="no pixels"),
        pytest.param([None], "found NoneType", id="none"),
        pytest.param(None, "found NoneType", id="none, alone"),
        pytest.param(7, "found int", id="a number, alone"),
        pytest.param(b"seven.png", "found bytes", id="bytes"),
        pytest.param([7], "found int", id="a number"),
        pytest.param("none.png", "none.png: cannot read", id="no such file"),
        pytest.param([PICTURES[0], "none.png"], "none.png: cannot read", id="one of two"),
        pytest.param(Image.new("F", (3, 3)), "floats", id="float image"),
    ],
)
def test_what_is_no_image(ask: Classifier, bad, message: str) -> None:
    with pytest.raises(DataError) as caught:
        ask(bad)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("preprocessing", "channels", "message"),
    [
        ({"size": [8, 8], "mode": "grey", "mean": [0], "std": [1]}, 1, "(1, 8, 8)"),
        ({"size": [8, 12], "mode": "rgb", "mean": [0] * 3, "std": [1] * 3}, 1, "(3, 8, 12)"),
        ({"size": [8, 12], "mode": "grey", "mean": [0], "std": [0]}, 1, "std is (0,)"),
        ([1, 2], 1, "[1, 2]"),
        (None, 2, "2 channels"),
    ],
)
def test_preprocessing_that_does_not_fit(tmp_path, preprocessing, channels, message) -> None:
    model = refimpl.create_model(
        "react_micro", image_size=(8, 12), channels=channels, dim=6, depth=1
    )
    path = tmp_path / "odd.safetensors"
    refimpl.save(path, model, model.init(RNG))
    stored = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata() | {"preprocessing": json.dumps(preprocessing)}
    safetensors.numpy.save_file(stored, path, metadata)
    with pytest.raises(ModelFileError) as caught:
        refimpl.classifier(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_warning_comes_with_the_answer() -> None:
    """Grey 128 is brightness 0.502, grey 178 is 0.698."""
    dark = dataclasses.replace(SCALED, brightness=(0.2, 0.6))
    ask = Classifier(MODEL, params(), dark, NAMES)
    images = np.full((2, 8, 12), [[[128]], [[178]]], np.uint8)
    like, unlike = ask(images)
    assert like.warning is None
    assert unlike.warning.startswith("brightness 0.70, the images of the training had 0.20 to 0.60")
    for answer, exchanged in zip((like, unlike), ask.inverted()(255 - images)):
        np.testing.assert_allclose(answer.probabilities, exchanged.probabilities, rtol=1e-5)
        assert (answer.warning is None) == (exchanged.warning is None)


def test_an_untrained_architecture_cannot_classify() -> None:
    with pytest.raises(ModelFileError, match="didb_micro: .*untrained"):
        refimpl.classifier("didb_micro")


# --- evaluation -----------------------------------------------------------------------------------


def test_accuracies_counted_by_hand() -> None:
    """The network always ranks g, f, e, d, c, b, a: the true class is at a known place."""
    model = MODEL.replace(num_classes=7)
    drawn = model.init(np.random.default_rng(43))
    drawn["head"] = {"weight": np.zeros((7, 6), np.float32), "bias": np.arange(7, dtype=np.float32)}
    ask = Classifier(model, drawn, SCALED, "abcdefg")
    labels = np.array([6, 6, 6, 5, 2, 1, 1, 1, 1, 1])  # places 0 0 0 1 4 5 5 5 5 5
    done = []
    result = ask.evaluate(
        np.concatenate([PICTURES] * 2), labels, batch_size=4, progress=done.append
    )
    assert result.count == 10
    assert result.top1 == 0.3
    assert result.top5 == 0.5
    assert result.per_class == {"b": 0.0, "c": 0.0, "f": 0.0, "g": 1.0}
    assert result.per_class_count == {"b": 5, "c": 1, "f": 1, "g": 3}
    assert result.images_per_second > 0
    assert done == [4, 4, 2]


def test_accuracy_agrees_with_one_image_at_a_time(ask: Classifier) -> None:
    labels = np.array([0, 1, 2, 0, 1])
    right = [ask(p)[0].label == NAMES[c] for p, c in zip(PICTURES, labels)]
    result = ask.evaluate(PICTURES, labels, batch_size=2)
    assert result.top1 == sum(right) / 5
    assert result.top5 == 1.0  # there are three classes


def test_images_that_are_ready_are_not_cropped_again() -> None:
    half = dataclasses.replace(SCALED, crop=0.5)
    large = RNG.integers(0, 256, (40, 16, 24), dtype=np.uint8)
    pixels = half.pixels_array(large)
    ask = Classifier(MODEL, params(), half, NAMES)
    # a bias that lets every class win somewhere
    ask = Classifier(MODEL, params(bias=-ask.logits(half.normalise(pixels)).mean(0)), half, NAMES)
    labels = ask.logits(half.normalise(pixels)).argmax(axis=-1)  # so all answers are right
    assert ask.evaluate(pixels, labels, ready=True).top1 == 1
    assert ask.evaluate(large, labels).top1 == 1
    assert ask.evaluate(pixels, labels).top1 < 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], "5 images, 2 labels"), ([0, 1, 2, 3, 0], "labels 0 to 3"), ([-1] * 5, "labels -1")],
)
def test_labels_that_do_not_fit(ask: Classifier, labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ask.evaluate(PICTURES, np.array(labels))


def test_no_images_have_no_accuracy(ask: Classifier) -> None:
    with pytest.raises(DataError, match="0 images"):
        ask.evaluate(PICTURES[:0], np.array([], np.int64))


def test_an_evaluation_goes_into_the_card(tmp_path: Path, ask: Classifier) -> None:
    path = tmp_path / "model.safetensors"
    refimpl.save(path, MODEL, params(), card={"data": "noise"})
    before = cards.read(path)
    result = ask.evaluate(PICTURES, np.array([0, 1, 2, 0, 1]))
    cards.record(path, result, "five pictures")
    after = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    evaluation = after.pop("evaluation")
    assert after == before
    assert evaluation["data"] == "five pictures"
    assert evaluation["top1"] == result.top1
    assert evaluation["per_class"] == result.per_class


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_unreadable_cards(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "model.safetensors"
    refimpl.save(path, MODEL, params())
    if content is not None:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(RefimplError, match=r"model\.json"):
        cards.read(path)


def test_a_model_that_says_nothing_of_preprocessing_answers_with_a_warning(tmp_path):
    network = refimpl.create_model("react_micro", depth=1)
    path = tmp_path / "bare.safetensors"
    refimpl.save(path, network, network.init(np.random.default_rng(0)))
    (answer,) = refimpl.classifier(path)(np.zeros((28, 28), np.uint8))
    assert "does not say how images are prepared" in answer.warning


def test_a_packed_model_has_no_numbers_of_another_type(tmp_path: Path) -> None:
    binary = refimpl.create_model("didb_micro", dim=32, depth=1, image_size=(8, 12), num_classes=3)
    binary = refimpl.models.VisionTransformer(
        binary.config, Preprocessing.plain((8, 12), 1), ("a", "b", "c")
    )
    latent, packed = tmp_path / "latent.safetensors", tmp_path / "packed.safetensors"
    refimpl.save(latent, binary, binary.init(np.random.default_rng(0)))
    assert run("pack", latent, "-o", packed).status == 0
    with pytest.raises(ModelFileError, match="packed model; expected one that NumPy can run"):
        refimpl.classifier(packed).astype(np.float64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"labels": np.array([0.0, 1.0])}, DataError, "labels are float64, expected integers"),
        ({"labels": [0, 1]}, DataError, "labels are list, expected integers"),
        ({"labels": np.array([[0], [1]])}, DataError, r"labels have shape \(2, 1\), expected"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0, expected a whole number of at least 1"),
        ({"batch_size": 2.5}, ConfigError, "batch_size is 2.5, expected a whole number"),
    ],
)
def test_what_an_evaluation_refuses(ask: Classifier, options, error, message: str) -> None:
    images = np.zeros((2, 8, 12), np.uint8)
    with pytest.raises(error, match=message):
        ask.evaluate(images, **{"labels": np.array([0, 1])} | options)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, bool])
def test_pixels_that_are_ready_have_256_values(ask: Classifier, dtype) -> None:
    """Of others, -1 would be taken for white and True for an index."""
    pixels = np.zeros((2, 8, 12), dtype)
    with pytest.raises(DataError, match=f"pixels: found {np.dtype(dtype)}, expected uint8"):
        ask.evaluate(pixels, np.array([0, 1]), ready=True)


@pytest.mark.parametrize("found", ["complex128", "object", "bool", "list"])
def test_inputs_that_are_no_real_numbers(ask: Classifier, found: str) -> None:
    x = np.zeros((1, 1, 8, 12))
    with pytest.raises(DtypeError, match=f"classifier: images is {found}; expected an array"):
        ask.logits(x.tolist() if found == "list" else x.astype(found))


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f2", "i1", "u8"])
def test_inputs_of_any_real_type_and_order(ask: Classifier, dtype: str) -> None:
    x = ask.preprocessing.apply_array(PICTURES).round()  # whole numbers, which each of them has
    x = abs(x) if dtype == "u8" else x
    np.testing.assert_array_equal(ask.logits(np.asfortranarray(x.astype(dtype))), ask.logits(x))
