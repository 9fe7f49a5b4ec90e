"""What a loaded model knows beside its parameters: how images are made ready, and class names."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import refimpl
from refimpl.conventions import ConfigError, DataError, DtypeError, ModelFileError
from refimpl.data import bundled, mnist
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import cards, files
from tests.command_line import PATIENCE, SEVEN, save_model, save_segmenter

NAME = "didb_micro_mnist"
IMAGES, LABELS = (part[:100] for part in mnist.load(bundled.mnist() / "small", "test"))


def test_the_documented_way_is_right() -> None:
    """Images divided by 255 gave 11.8 % of the digits, without a word."""
    model, params = refimpl.load(NAME)
    logits = model.predict(params, model.prepare(IMAGES))
    assert np.mean(logits.argmax(axis=1) == LABELS) >= 0.97
    classifier = refimpl.classifier(NAME, backend="numpy")
    expected = classifier.preprocessing.apply_array(IMAGES)
    np.testing.assert_array_equal(model.prepare(IMAGES), expected)
    np.testing.assert_array_equal(logits, classifier.logits(model.prepare(IMAGES)))
    assert model.preprocessing == classifier.preprocessing
    assert model.class_names == classifier.class_names == mnist.CLASS_NAMES


def test_images_of_any_size_are_prepared() -> None:
    model, _ = refimpl.load("didb_cifar10")
    x = model.prepare(np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8))
    assert (x.shape, x.dtype) == ((2, 3, 32, 32), np.float32)
    for wrong in (x, x[0], "seven.png", ["seven.png"], [None]):
        with pytest.raises(DataError, match="expected uint8"):
            model.prepare(wrong)


def test_a_list_of_images_may_have_a_size_each() -> None:
    model, _ = refimpl.load(NAME)
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, size, np.uint8) for size in ((30, 20), (28, 28), (40, 41, 3))]
    found = model.prepare(images)
    for image, x in zip(images, found, strict=True):
        np.testing.assert_array_equal(model.prepare(image[None]), x[None])
    np.testing.assert_array_equal(model.prepare(list(map(Image.fromarray, images))), found)
    assert model.prepare([]).shape == (0, 1, 28, 28)


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16"])
def test_an_image_of_any_mode_is_the_picture_that_it_shows(mode) -> None:
    """What Pillow keeps of it may be indices of a palette, or no red, green and blue."""
    model, _ = refimpl.load("didb_cifar10")
    pixels = np.random.default_rng(2).integers(0, 256, (40, 50, 3), np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    np.testing.assert_array_equal(model.prepare([image])[0], model.preprocessing.apply(image))


@pytest.mark.parametrize("alone", [Image.new("L", (28, 28)), None, 5])
def test_what_is_no_list_of_images(alone) -> None:
    with pytest.raises(DataError, match=f"found {type(alone).__name__}; expected an array or a"):
        refimpl.load(NAME)[0].prepare(alone)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
@pytest.mark.parametrize("call", ["predict", "forward"])
def test_pixels_that_are_not_prepared_are_refused(call, dtype) -> None:
    model, params = refimpl.load(NAME)
    with pytest.raises(DtypeError, match=rf"images is {dtype}; .*model\.prepare") as caught:
        getattr(model, call)(params, IMAGES[:2, None].astype(dtype))
    assert "\n" not in str(caught.value)


def test_arguments_in_the_wrong_order_are_told() -> None:
    model, params = refimpl.load(NAME)
    for call in (model.predict, model.forward):
        with pytest.raises(DtypeError, match="params is ndarray; expected a dict"):
            call(model.prepare(IMAGES[:2]), params)


def test_a_drawn_network_has_none() -> None:
    model = refimpl.create_model("didb_micro")
    assert (model.preprocessing, model.class_names) == (None, None)
    with pytest.raises(ConfigError, match=r"preprocessing is None; .*refimpl\.load"):
        model.prepare(IMAGES)


def test_saving_what_was_loaded_loses_nothing(tmp_path: Path) -> None:
    path, packed = tmp_path / "again.safetensors", tmp_path / "packed.safetensors"
    refimpl.save(path, *refimpl.load(NAME))
    (model, params), (first, weights) = refimpl.load(path), refimpl.load(NAME)
    assert (model, model.preprocessing) == (first, first.preprocessing)
    assert model.class_names == first.class_names
    weights = refimpl.flatten(weights)
    for name, array in refimpl.flatten(params).items():
        np.testing.assert_array_equal(array, weights[name])
    files.save_packed(packed, *refimpl.load(NAME))
    expected = refimpl.classifier(NAME, backend="numpy")(SEVEN)[0]
    for again in (path, packed):
        (answer,) = refimpl.classifier(again)(SEVEN)
        assert (answer.label, answer.warning) == ("7", None)
        assert answer.probability == pytest.approx(expected.probability, abs=1e-3)


def test_other_fields_keep_what_still_fits() -> None:
    model, params = refimpl.load(NAME)
    assert model.replace(binarize="none").preprocessing == model.preprocessing
    assert model.replace(binarize="none").class_names == model.class_names
    larger, _ = model.resized(params, (56, 84))
    assert larger.prepare(IMAGES[:1]).shape == (1, 1, 56, 84)
    assert model.replace(num_classes=3).class_names is None
    assert model.replace(channels=3).preprocessing is None
    # the same network, whatever it was loaded from
    assert refimpl.models.VisionTransformer(model.config) == model
    assert hash(refimpl.models.VisionTransformer(model.config)) == hash(model)


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    model, params = refimpl.load(NAME)
    path = tmp_path / "model.safetensors"
    wrong = dataclasses.replace(model.preprocessing, size=(5, 7)).to_json()
    for options, message in (
        ({"class_names": ["one"]}, "1 class names; expected 10"),
        ({"class_names": [1] * 10}, "expected a list of strings"),
        ({"preprocessing": wrong}, r"makes \(1, 5, 7\), the model reads \(1, 28, 28\)"),
        ({"card": {"data": path}}, "card: .*PosixPath.*expected JSON values"),
        ({"card": {"loss": float("nan")}}, "card: .*nan; expected JSON values"),
    ):
        with pytest.raises(ConfigError, match=message):
            refimpl.save(path, model, params, **options)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    """A class folder of which the name is no UTF-8: the card could not be written."""
    model, params = refimpl.load(NAME)
    names = ["caf\udce9", "ö", *map(str, range(8))]
    path = tmp_path / "model.safetensors"
    refimpl.save(path, model, params, class_names=names, card={"data": "donn\udce9es"})
    assert refimpl.load(path)[0].class_names == tuple(names)
    card = cards.read(path)
    assert (card["class_names"], card["data"]) == (names, "donn\udce9es")
    assert "ö" in (tmp_path / "model.json").read_text(encoding="utf-8")


def test_a_teacher_reads_images_its_own_way(tmp_path) -> None:
    """A loaded one used to see them as the student does."""
    from refimpl.training import teachers
    from refimpl.training.recipes import Recipe

    recipe = Recipe(distillation=0.5)
    model, params = refimpl.load(NAME)
    student = Preprocessing.plain((28, 28), 1).apply_array
    chosen = teachers.choose((model, params), recipe, mnist.CLASS_NAMES, student, IMAGES[:1])
    assert np.mean(chosen.probabilities(IMAGES).argmax(axis=1) == LABELS) >= 0.97
    drawn = refimpl.models.VisionTransformer(model.config)
    chosen = teachers.choose((drawn, params), recipe, mnist.CLASS_NAMES, student, IMAGES[:1])
    np.testing.assert_array_equal(chosen.prepare(IMAGES[:1]), student(IMAGES[:1]))


# --- cards ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Figures:
    count: int = 5
    top1: float = 0.5


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.safetensors")


def write_card(model: Path, **entries: object) -> None:
    card = cards.read(model) | entries
    cards.path_of(model).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ("good", "evaluation is 'good'"),
        ([1], r"evaluation is \[1\]"),
        ({"count": "many"}, "count is 'many'"),
        ({"count": 1.5}, "count is 1.5"),
        ({"count": True}, "count is True"),
        ({"count": 4, "top1": "0.9"}, "top1 is '0.9'"),
        ({"count": 6}, "has figures of 6 images, found 5"),
    ],
)
def test_figures_that_are_none_are_told(saved, evaluation, message) -> None:
    write_card(saved, evaluation=evaluation)
    before = cards.path_of(saved).read_bytes()
    with pytest.raises(ModelFileError, match=message):
        cards.record(saved, Figures(), "noise")
    assert cards.path_of(saved).read_bytes() == before


@pytest.mark.parametrize("evaluation", [None, {}, {"count": None}, {"count": 5}])
def test_no_figures_are_no_hindrance(saved, evaluation) -> None:
    write_card(saved, evaluation=evaluation)
    cards.record(saved, Figures(), "noise")
    expected = {"data": "noise", "count": 5, "top1": 0.5}
    assert cards.read(saved)["evaluation"] == expected


def test_a_card_of_other_weights_is_left_alone(saved) -> None:
    before = cards.path_of(saved).read_bytes()
    refimpl.save(saved, *refimpl.load(NAME))  # no card: the old one stays
    with pytest.raises(ModelFileError, match=r"model\.json: is the card of other weights"):
        cards.record(saved, Figures(), "noise")
    assert cards.path_of(saved).read_bytes() == before


def test_a_number_of_a_card() -> None:
    shipped = files.find(NAME)
    assert cards.number(shipped, "evaluation", "top1") == 0.9884
    for keys in (("evaluation",), ("evaluation", "data"), ("none", "top1"), ("data", "more")):
        with pytest.raises(ModelFileError, match=f"{': '.join(keys)} is .*, expected a number"):
            cards.number(shipped, *keys)


# --- copies and other processes -------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["engine", "numpy"])
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda ask: pickle.loads(pickle.dumps(ask))]
)
def test_classifiers_can_be_copied_and_pickled(backend, again) -> None:
    ask = refimpl.classifier(NAME, backend=backend)
    expected = [answer.probabilities for answer in ask(IMAGES[:5])]
    found = [answer.probabilities for answer in again(ask)(IMAGES[:5])]
    np.testing.assert_array_equal(found, expected)


def test_segmenters_can_be_pickled(tmp_path) -> None:
    ask = refimpl.segmenter(save_segmenter(tmp_path / "segmenter.safetensors"))
    image = np.random.default_rng(1).integers(0, 256, (60, 70), np.uint8)
    again = pickle.loads(pickle.dumps(ask))
    np.testing.assert_array_equal(again(image).labels, ask(image).labels)


def test_an_engine_answers_on_both_sides_of_a_fork() -> None:
    """The pool's threads are the parent's: the child used to wait for them for ever."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    built = refimpl.engine.load(NAME, threads=2)
    x = refimpl.load(NAME)[0].prepare(IMAGES[:50])
    expected = built(x)  # starts the threads
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(built(x)), daemon=True)
    child.start()
    try:
        np.testing.assert_array_equal(answers.get(timeout=PATIENCE), expected)
    finally:
        child.terminate()
        child.join()
    np.testing.assert_array_equal(built(x), expected)


def test_threads_of_an_engine_are_counted_from_one() -> None:
    for threads in (0, -3):
        with pytest.raises(ConfigError, match=f"threads is {threads}; expected at least 1"):
            refimpl.engine.load(NAME, threads=threads)


def test_a_picture_that_is_cut_off_is_a_data_error() -> None:
    """Pillow opens it and fails when its pixels are asked for."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 90), np.uint8)).save(
        content, "PNG"
    )
    cut = content.getvalue()[:3000]
    with pytest.raises(DataError, match="broken or truncated"):
        refimpl.classifier(NAME, backend="numpy")(Image.open(io.BytesIO(cut)))


def test_other_weights_come_before_their_figures(saved) -> None:
    """Whoever evaluates on fewer images is told what is really wrong."""
    write_card(saved, evaluation={"count": 6})
    refimpl.save(saved, *refimpl.load(NAME))
    with pytest.raises(ModelFileError, match=r"model\.json: is the card of other weights"):
        cards.record(saved, Figures(), "noise")


@pytest.mark.parametrize("text", ['{"loss": NaN}', '{"loss": -Infinity}'])
def test_a_card_with_what_is_no_json_is_told_when_it_is_read(saved, text) -> None:
    cards.path_of(saved).write_text(text)
    with pytest.raises(ModelFileError, match=r"model\.json: cannot read .*is no number of JSON"):
        cards.read(saved)


@pytest.mark.parametrize("call", [refimpl.flatten, refimpl.unflatten])
@pytest.mark.parametrize("given", [None, [1], np.zeros(3)])
def test_parameters_that_are_no_dict(call, given) -> None:
    with pytest.raises(DtypeError, match=rf"params is {type(given).__name__}; expected a dict"):
        call(given)


def test_nothing_is_written_of_parameters_that_are_none(tmp_path) -> None:
    model, params = refimpl.load(NAME)
    for wrong in (None, [params], model):
        with pytest.raises(DtypeError, match="expected a dict of arrays"):
            refimpl.save(tmp_path / "model.safetensors", model, wrong)
    with pytest.raises(ModelFileError, match="found None; expected a name or a file's path"):
        refimpl.save(None, model, params)
    assert list(tmp_path.iterdir()) == []
