"""The segmenter: windows, images of any size, metrics of a folder, the verbs, three photographs.

The photographs and their annotations are those of ADE20K that REFIMPL_ADE20K names, a folder with
images/, annotations/ and objectInfo150.txt.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import refimpl
from refimpl import metrics
from refimpl.conventions import DataError, ModelFileError
from refimpl.data import palette, scenes, segmentation
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import cards, files
from refimpl.report.segmentation import LEGEND, ROW, draw_confusion, overlay
from refimpl.segmenters import Segmentation, Segmenter, covering_size, windows
from tests import oracles, tolerances
from tests.command_line import SMALL, assert_one_line, run, save_model, save_segmenter

SIDES = st.integers(1, 40)


def small(seed: int = 0, dtype=np.float64, **fields) -> Segmenter:
    """Reads RGB images of 8 x 12."""
    sizes = {"image_size": (8, 12), "channels": 3, "dim": 8, "depth": 1, "num_classes": 5}
    model = refimpl.create_model("segmenter_didb_micro", **sizes | fields)
    params = model.init(np.random.default_rng(seed), dtype)
    params["head"]["weight"] *= 100
    names = [f"class {i}" for i in range(model.config.num_classes)]
    return Segmenter(model, params, Preprocessing.plain((8, 12), 3), names)


def picture(height: int, width: int, seed: int = 1) -> np.ndarray:
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(256, size=shape).astype(np.uint8)


def direct(ask: Segmenter, pixels: np.ndarray) -> np.ndarray:
    """Logits (classes, H, W) of an image of the model's size."""
    x = ask.preprocessing.normalise(pixels[None]).astype(np.float64)
    return ask.model.predict(ask.params, x)[0]


# --- windows --------------------------------------------------------------------------------------


@given(SIDES, SIDES, SIDES, SIDES)
def test_windows_cover_the_image_and_overlap_by_a_third(height, width, h, w):
    size = covering_size((height, width), (h, w))
    assert size[0] >= h and size[1] >= w
    if height >= h and width >= w:
        assert size == (height, width)
    else:  # no larger than it must be, and of the same shape but for rounding
        assert size[0] == h or size[1] == w
        scale = max(h / height, w / width)
        assert size[0] - 1 < scale * height <= size[0] + 1e-9
        assert size[1] - 1 < scale * width <= size[1] + 1e-9
    covered = np.zeros(size, int)
    places = list(windows(size, (h, w)))
    for place in places:
        assert covered[place].shape == (h, w)
        covered[place] += 1
    assert covered.min() >= 1
    tops = sorted({rows.start for rows, _ in places})
    assert (tops[0], tops[-1]) == (0, size[0] - h)
    assert all(b - a <= -(-2 * h // 3) for a, b in itertools.pairwise(tops))


def test_an_image_of_the_models_size_is_one_window():
    ask, pixels = small(), picture(8, 12)
    np.testing.assert_array_equal(ask.logits(pixels), direct(ask, pixels))
    np.testing.assert_array_equal(ask(pixels).labels, direct(ask, pixels).argmax(axis=0))


def test_logits_of_a_larger_image_are_the_mean_over_its_windows():
    ask, pixels = small(), picture(8, 24)
    parts = {left: direct(ask, pixels[:, left : left + 12]) for left in (0, 6, 12)}
    found = ask.logits(pixels)
    for columns, lefts in {(0, 6): [0], (6, 12): [0, 6], (12, 18): [6, 12], (18, 24): [12]}.items():
        part = slice(*columns)
        expected = np.mean([parts[x][:, :, columns[0] - x : columns[1] - x] for x in lefts], axis=0)
        np.testing.assert_allclose(found[:, :, part], expected, rtol=1e-12, atol=1e-12)


def test_a_smaller_image_is_enlarged_and_answered_at_its_own_size():
    ask, pixels = small(), picture(5, 6)
    large = Image.fromarray(pixels).resize((12, 10), Image.Resampling.BILINEAR)
    torch = oracles.require("torch")
    expected = torch.nn.functional.interpolate(
        torch.tensor(ask.logits(np.asarray(large)))[None], (5, 6), mode="bilinear"
    )
    found = ask.logits(pixels)
    assert tolerances.disagreement(found, expected[0].numpy()) <= tolerances.FLOAT64
    assert ask(pixels).labels.shape == (5, 6)


def test_many_windows_are_computed_in_parts():
    ask, pixels = small(), picture(30, 50)
    total, covered = np.zeros((5, 30, 50)), np.zeros((30, 50))
    for place in windows((30, 50), (8, 12)):
        total[:, place[0], place[1]] += direct(ask, pixels[place])
        covered[place] += 1
    np.testing.assert_allclose(ask.logits(pixels), total / covered, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_engine_answers_like_numpy(tmp_path, pool):
    path = save_segmenter(tmp_path / "model.safetensors", dim=16, pool=pool)
    pixels = picture(60, 70)
    slow, quick = (refimpl.segmenter(path, backend=b).logits(pixels) for b in ("numpy", "engine"))
    packed = tmp_path / "packed.safetensors"
    file = files.read(path)
    files.save_packed(packed, file.model, file.params)
    np.testing.assert_array_equal(refimpl.segmenter(packed).logits(pixels), quick)
    # a bit that flips between the two changes pixels around it
    assert np.mean(slow.argmax(axis=0) == quick.argmax(axis=0)) > 0.95


def test_real_blocks_run_in_numpy(tmp_path):
    model = refimpl.create_model("segmenter_deit_micro", dim=8, depth=1)
    path = tmp_path / "deit.safetensors"
    refimpl.save(path, model, model.init(np.random.default_rng(0)))
    ask = refimpl.segmenter(path)
    assert ask.engine is None
    assert ask(picture(56, 56)).labels.shape == (56, 56)


# --- files ----------------------------------------------------------------------------------------


def test_the_task_is_in_the_file(tmp_path):
    segmenter = save_segmenter(tmp_path / "segmenter.safetensors")
    classifier = save_model(tmp_path / "classifier.safetensors")
    assert files.read(segmenter).model.config.task == "segmentation"
    assert files.read(classifier).model.config.task == "classification"
    with pytest.raises(ModelFileError, match="a segmenter, expected a classifier"):
        refimpl.classifier(segmenter)
    with pytest.raises(ModelFileError, match="a classifier of whole images, expected a segmenter"):
        refimpl.segmenter(classifier)
    file = files.read(segmenter)
    cropped = {**file.model.preprocessing.to_json(), "crop": 0.5}
    refimpl.save(tmp_path / "c.safetensors", file.model, file.params, preprocessing=cropped)
    with pytest.raises(ModelFileError, match=r"crop is 0\.5, expected 1"):
        refimpl.segmenter(tmp_path / "c.safetensors")


# --- evaluation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    scenes.write(SMALL, folder / "scenes", {"train": 12, "test": 5})
    save_segmenter(folder / "model.safetensors")
    return folder


def test_evaluation_is_the_metrics_of_all_pixels(workshop):
    ask = refimpl.segmenter(workshop / "model.safetensors", backend="numpy")
    folder = segmentation.find(workshop / "scenes", "test")
    done = []
    result = ask.evaluate(folder, done.append)
    pairs = [pair.read(folder.classes) for pair in folder.pairs]
    labels = np.stack([labels for _, labels in pairs])
    predicted = np.stack([ask(image).labels for image, _ in pairs])
    counts = metrics.confusion_matrix(labels, predicted, 11)
    assert result.confusion == counts.tolist()
    assert (result.count, sum(done), result.labelled_pixels) == (5, 5, 5 * 56 * 56)
    assert result.mean_iou == metrics.mean_iou(counts)
    assert result.pixel_accuracy == np.mean(labels == predicted)
    absent = [n for i, n in enumerate(scenes.CLASS_NAMES) if i not in labels]
    assert absent and all(result.per_class_iou[name] is None for name in absent)
    assert result.per_class_pixels["background"] == np.count_nonzero(labels == 10)


PIXELS = {"a": ("......", ".XX...", ".XX.X.", "......"), "b": ("X...", "....", "..XX", "..XX")}
INDICES = {"a": ("111111", "122211", "122201", "110111"), "b": ("1111", "1111", "1122", "1122")}


def test_the_metrics_of_two_images_by_hand(tmp_path):
    """Bright pixels are answered `square`; one image has two windows, 0 has no label.

    square: 4 + 4 right, 2 + 0 missed, 0 + 1 too many; ground: 16 + 11 right.
    """
    for kind in ("images", "annotations"):
        (tmp_path / kind).mkdir()
    for name, rows in PIXELS.items():
        bright = np.array([list(row) for row in rows]) == "X"
        Image.fromarray(np.where(bright, 255, 0).astype(np.uint8)).save(
            tmp_path / "images" / f"{name}.png"
        )
        indices = np.array([list(row) for row in INDICES[name]]).astype(np.uint8)
        Image.fromarray(indices).save(tmp_path / "annotations" / f"{name}.png")
    (tmp_path / "classes.txt").write_text("1 ground\n2 square\n3 cow\n")
    folder = segmentation.find(tmp_path, "test")
    names = folder.classes.names
    model = refimpl.create_model("segmenter_didb_micro", image_size=4, num_classes=3)

    def brightness(x: np.ndarray) -> np.ndarray:
        return np.concatenate([-x, x, np.full_like(x, -9)], axis=1)

    preprocessing = Preprocessing((4, 4), "grey", (0.5,), (0.5,))
    backend = SimpleNamespace(
        engine=brightness,
        expect=lambda work: None,
        warm=lambda: None,
        count=lambda images: brightness,
    )
    found = Segmenter(model, None, preprocessing, names, backend).evaluate(folder)
    assert found.confusion == [[27, 1, 0], [2, 8, 0], [0, 0, 0]]
    assert found.per_class_iou == {"ground": 27 / 30, "square": 8 / 11, "cow": None}
    assert found.mean_iou == pytest.approx((27 / 30 + 8 / 11) / 2, rel=1e-15)
    assert (found.pixel_accuracy, found.labelled_pixels) == (35 / 38, 38)


def test_evaluate_a_segmentation_folder(workshop, tmp_path):
    model = save_segmenter(tmp_path / "model.safetensors")
    table, drawn = tmp_path / "matrix.csv", tmp_path / "matrix.png"
    oracles.require("matplotlib")
    command = ("evaluate", "--data", workshop / "scenes", "--model", model, "--record")
    status, out, err = run(*command, "--confusion", table, "--confusion", drawn, "--json")
    assert (status, err) == (0, f"recorded in {model.with_suffix('.json')}\n")
    answer = json.loads(out)
    rows = list(csv.reader(table.read_text().splitlines()))[1:]
    assert [[int(n) for n in row[1:]] for row in rows] == answer["confusion"]
    assert Image.open(drawn).size == (800, 800)
    card = json.loads(model.with_suffix(".json").read_text())
    assert card["evaluation"]["mean_iou"] == answer["mean_iou"]
    assert card["evaluation"]["data"] == "scenes, 5 images of the test split"
    status, out, _ = run("evaluate", "--data", workshop / "scenes", "--model", model, "--limit", 2)
    assert status == 0
    for words in ("on 2 images of the test split", "mean IoU", "pixel accuracy", "background"):
        assert words in out


def test_what_evaluate_refuses(workshop, tmp_path):
    model, data = workshop / "model.safetensors", workshop / "scenes"
    classifier = save_model(tmp_path / "classifier.safetensors")
    evaluate = ("evaluate", "--data", data, "--model", model)
    assert_one_line(run(*evaluate, "--confusion", "m.txt"), "'.txt'", "'.csv' or '.png'")
    other = ("evaluate", "--data", SMALL, "--model")
    assert_one_line(run(*other, model), "found idx files, expected images/ and annotations/")
    assert_one_line(run(*other, classifier, "--confusion", "m.csv"), "no segmenter")
    (tmp_path / "list.txt").write_text("".join(f"{i} c{i}\n" for i in range(11)))
    result = run(*evaluate, "--class-names", tmp_path / "list.txt")
    assert_one_line(result, "11 classes (c0", "expected those of the model")


def test_the_shipped_segmenter(tmp_path):
    """On scenes that it has not seen; its card has the figure for the 2,000 test scenes."""
    scenes.write(SMALL, tmp_path / "scenes", {"test": 60}, seed=1)
    ask = refimpl.segmenter("segmenter_didb_scenes", backend="engine")
    found = ask.evaluate(segmentation.find(tmp_path / "scenes", "test"))
    card = cards.read(files.find("segmenter_didb_scenes"))["evaluation"]
    assert card["count"] == 2000 and card["mean_iou"] >= 0.7
    assert found.mean_iou == pytest.approx(card["mean_iou"], abs=0.05)
    image = tmp_path / "scenes" / "images" / "test" / "00000.png"
    assert ask(image).warning is None
    mask = tmp_path / "mask.png"
    Image.new("L", (60, 70), 250).save(tmp_path / "paper.png")
    status, out, err = run("segment", tmp_path / "paper.png", "-o", mask, "--json")
    assert status == 0 and err.startswith("refimpl: warning: ")
    assert "paper.png: brightness 0.98, the images of the training had 0.11 to 0.45" in err
    assert json.loads(out)["warning"] in err


# --- training -------------------------------------------------------------------------------------


def test_train_then_segment(workshop, tmp_path):
    path, mask, seen = (tmp_path / name for name in ("m.safetensors", "mask.png", "seen.png"))
    status, out, err = run(
        "train", "--data", workshop / "scenes", "--model", "segmenter_react_micro",
        "--set", "dim=8", "--set", "depth=1", "--epochs", 2, "--batch-size", 4,
        "--crop", 0.8, "--flip", "--validation", 2, "-o", path,
    )  # fmt: skip
    assert status == 0, err
    history = json.loads(path.with_suffix(".json").read_text())["history"]
    assert history[1]["loss"] < history[0]["loss"]
    for epoch, line in zip(history, err.splitlines()[-2:], strict=True):
        assert 0 < epoch["validation_mean_iou"] < epoch["validation_accuracy"] <= 1
        assert f", mIoU {epoch['validation_mean_iou']:.2%}  " in line
    image = workshop / "scenes" / "images" / "test" / "00000.png"
    command = ("segment", image, "-o", mask, "--overlay", seen, "--model", path)
    status, out, err = run(*command)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == ["class", "number", "colour", "pixels"]
    answer = refimpl.segmenter(path)(image)
    written = Image.open(mask)
    assert written.mode == "P"
    np.testing.assert_array_equal(np.asarray(written), answer.labels)
    np.testing.assert_array_equal(
        np.asarray(written.convert("RGB")), palette.colours(11)[answer.labels]
    )
    assert Image.open(seen).size[0] == 224 + 220
    status, out, _ = run(*command, "--json", "--force")
    classes = json.loads(out)["classes"]
    assert sum(entry["share"] for entry in classes) == pytest.approx(1)
    assert {entry["number"]: entry["share"] for entry in classes} == answer.shares()


def test_what_training_refuses(workshop, tmp_path):
    train = ("train", "-o", tmp_path / "m.safetensors", "--set", "dim=8", "--set", "depth=1")
    data = ("--data", workshop / "scenes")
    tiny = ("--model", "segmenter_didb_micro")
    result = run(*train, *data, "--model", "didb_micro", "--set", "num_classes=11")
    assert_one_line(result, "label maps for a segmenter such as segmenter_didb_micro")
    result = run(*train, *data, *tiny, "--set", "num_classes=10")
    assert_one_line(result, "found 11 classes", "add --set num_classes=11")
    result = run(*train, "--data", SMALL, *tiny, "--set", "num_classes=10")
    assert_one_line(result, "found idx files, expected images/ and annotations/")
    result = run(*train, *data, *tiny, "--distillation", 0.5)
    assert_one_line(result, "distillation is 0.5")
    assert_one_line(run(*train, *data, *tiny, "--crop", 0), "crop is 0.0")


# --- pictures and tables --------------------------------------------------------------------------


def test_a_legend_names_what_is_to_be_seen():
    """Two classes of 3,000 pixels each in 6,090, one of 60, and thirty of a single one."""
    labels = np.zeros(6090, np.uint8)
    labels[3000:6000], labels[6000:6060], labels[6060:] = 100, 130, np.arange(30) + 10
    labels = labels.reshape(58, 105)
    answer = Segmentation(labels, tuple(f"class {i}" for i in range(150)))
    grey = Image.new("L", (105, 58), 60)
    page = overlay(grey, answer)
    assert page.size == (3 * 105 + LEGEND, 3 * 58)  # enlarged to 224 pixels at least
    mixed = (60 + palette.colours(150)[labels].astype(int)) / 2
    found = np.asarray(page)[1 : 3 * 58 : 3, 1 : 3 * 105 : 3]
    assert np.abs(found - mixed).max() <= 0.5
    boxes = [page.getpixel((3 * 105 + 12, ROW // 2 + ROW * row + 4)) for row in range(5)]
    named = [tuple(palette.colours(150)[i].tolist()) for i in (0, 100, 130)]
    assert boxes == [*named, (255, 255, 255), (255, 255, 255)]
    lines = [np.asarray(page)[ROW // 2 + ROW * row :, 3 * 105 + 12 + ROW :][: ROW - 4]
             for row in range(5)]  # fmt: skip
    assert [bool((line < 128).any()) for line in lines] == [True, True, True, True, False]


@pytest.mark.filterwarnings("error")
def test_names_that_a_font_cannot_write_become_numbers(tmp_path):
    """What is drawn for them is what is drawn for the numbers."""
    oracles.require("matplotlib")
    counts = np.array([[3, 1, 0], [0, 5, 1], [2, 2, 2]])
    for i, names in enumerate((["sky", "天空", "$5 and $6"], ["sky", "class 1", "$5 and $6"])):
        draw_confusion(counts, names, tmp_path / f"{i}.png")
    first, second = (np.asarray(Image.open(tmp_path / f"{i}.png")) for i in range(2))
    np.testing.assert_array_equal(first, second)
    labels = np.array([[0, 1], [1, 1]], np.uint8)
    pages = [overlay(Image.new("L", (2, 2)), Segmentation(labels, names))
             for names in (("é", "天空"), ("é", "class 1"))]  # fmt: skip
    np.testing.assert_array_equal(*map(np.asarray, pages))


def test_tables_shorten_long_names(workshop, tmp_path):
    names = [f"{i}, a name that no line of a terminal has room for, " * 3 for i in range(11)]
    file = files.read(workshop / "model.safetensors")
    path, listed = tmp_path / "m.safetensors", tmp_path / "names.txt"
    names = [name.strip() for name in names]
    refimpl.save(path, file.model, file.params, class_names=names)
    listed.write_text("".join(f"{i} {name}\n" for i, name in enumerate(names)))
    image = workshop / "scenes" / "images" / "test" / "00000.png"
    data = ("--data", workshop / "scenes", "--class-names", listed)
    for command in (("segment", image, "-o", tmp_path / "mask.png"), ("evaluate", *data)):
        status, out, err = run(*command, "--model", path)
        assert status == 0, err
        assert "1, a name that no line of..." in out
        assert max(len(line) for line in out.splitlines()[1:]) < 80
        (tmp_path / "mask.png").unlink(missing_ok=True)
        found = json.loads(run(*command, "--model", path, "--json").out)
        assert names[1] in json.dumps(found)


# --- segment --------------------------------------------------------------------------------------


def test_what_segment_refuses(workshop, tmp_path):
    model, out = workshop / "model.safetensors", tmp_path / "mask.png"
    assert_one_line(run("segment", tmp_path / "no.png", "-o", out, "--model", model), "no.png")
    classifier = save_model(tmp_path / "classifier.safetensors")
    image = workshop / "scenes" / "images" / "test" / "00000.png"
    result = run("segment", image, "-o", out, "--model", classifier)
    assert_one_line(result, "expected a segmenter")
    result = run("segment", image, "-o", tmp_path / "none" / "mask.png", "--model", model)
    assert_one_line(result, "mask.png")
    assert not out.exists()


def test_segment_overwrites_nothing_that_it_reads(workshop, tmp_path):
    model, image, out = (tmp_path / name for name in ("m.safetensors", "a.png", "mask.png"))
    save_segmenter(model)
    shutil.copy(workshop / "scenes" / "images" / "test" / "00000.png", image)
    before = model.read_bytes(), image.read_bytes()
    command = ("segment", image, "--model", model, "-o")
    assert_one_line(run(*command, image), "a.png: is the image itself")
    assert_one_line(run(*command, out, "--overlay", image), "a.png: is the image itself")
    assert_one_line(run(*command, out, "--overlay", out), "mask.png: is named for two outputs")
    assert_one_line(run(*command, model), "m.safetensors: is the model itself")
    other = tmp_path / "mask.npz"
    assert_one_line(run(*command, other), "suffix '.npz', expected '.png'")
    assert_one_line(run(*command, tmp_path / "mask.jpg"), "suffix '.jpg', expected '.png'")
    linked = tmp_path / "linked.png"
    linked.symlink_to(model)
    assert_one_line(run(*command, linked), "linked.png: is the model itself")
    assert_one_line(run(*command, out, "--overlay", tmp_path / "no" / "seen.png"), "no such folder")
    assert (model.read_bytes(), image.read_bytes()) == before
    assert not out.exists()


def test_golden_vectors_of_a_segmenter(workshop, tmp_path):
    image = workshop / "scenes" / "images" / "test" / "00000.png"
    make = ("golden", "make", "--image", image, "--model", workshop / "model.safetensors")
    status, out, err = run(*make, "--grads", "-o", tmp_path / "gold")
    assert status == 0
    assert "a bundle cannot show" in err  # what an untrained file leaves at its start
    index = (tmp_path / "gold" / "index.csv").read_text()
    for tap in ("logits,real,float64,1 11 56 56,", "head.out,real,float64,1 196 11,"):
        assert f",{tap}" in index
        assert f",grads/{tap}" in index
    assert run("golden", "compare", tmp_path / "gold", tmp_path / "gold" / "taps").status == 0


# --- ADE20K ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ade20k() -> Path:
    name = os.environ.get("REFIMPL_ADE20K")
    if not name:
        pytest.skip("REFIMPL_ADE20K names no folder with images of ADE20K")
    return Path(name)


def test_three_photographs_of_ade20k(ade20k):
    folder = segmentation.find(ade20k, "test")
    assert len(folder.classes.names) == 150
    assert folder.classes.names[:3] == ("wall", "building, edifice", "sky")
    pairs = [pair.read(folder.classes) for pair in folder.pairs]
    assert [image.size for image, _ in pairs] == [(683, 512), (500, 364), (400, 300)]
    assert [labels.shape for _, labels in pairs] == [(512, 683), (364, 500), (300, 400)]
    first = np.unique(pairs[0][1]).tolist()
    assert first == [0, 1, 2, 4, 6, 9, 17, 255]  # wall is index 1 in the file, label 0 here


# pixels called building, with any label, and the number of classes that occur
ADE20K_COUNTED = (181641, 628772, 15)


def test_metric_of_an_answer_that_is_known(ade20k):
    """All is called building. Its IoU is then its share of the labelled pixels, all others have 0.

    Counted with `Image.histogram` alone.
    """
    folder = segmentation.find(ade20k, "test")
    counts = sum(
        metrics.confusion_matrix(labels, np.ones_like(labels), 150)
        for labels in (pair.labels(folder.classes) for pair in folder.pairs)
    )
    histogram = sum(np.array(Image.open(pair.annotation).histogram()) for pair in folder.pairs)
    labelled = histogram[1:].sum()
    present = np.count_nonzero(histogram[1:])
    assert metrics.pixel_accuracy(counts) == histogram[2] / labelled
    assert metrics.mean_iou(counts) == pytest.approx(histogram[2] / labelled / present)
    assert (histogram[2], labelled, present) == ADE20K_COUNTED


def test_an_untrained_model_of_150_classes_end_to_end(ade20k, tmp_path):
    model = refimpl.create_model(
        "segmenter_didb_tiny", image_size=160, dim=12, heads=2, depth=1, mlp_ratio=1
    )
    path = tmp_path / "untrained.safetensors"
    names = segmentation.find(ade20k, "test").classes.names
    refimpl.save(path, model, model.init(np.random.default_rng(0)), class_names=list(names))
    status, out, err = run("evaluate", "--data", ade20k, "--model", path, "--json")
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert (answer["count"], answer["labelled_pixels"]) == (3, ADE20K_COUNTED[1])
    assert sum(value is not None for value in answer["per_class_iou"].values()) == ADE20K_COUNTED[2]
    image = ade20k / "images" / "ADE_val_00000001.jpg"
    mask, seen = tmp_path / "mask.png", tmp_path / "seen.png"
    status, _, err = run("segment", image, "-o", mask, "--overlay", seen, "--model", path)
    assert (status, err) == (0, "")
    assert Image.open(mask).size == (683, 512)
    assert Image.open(seen).size[0] == 683 + 220


def test_a_folder_that_is_no_data_set(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DataError, match="no images in it"):
        segmentation.find(tmp_path, "test")


@pytest.mark.parametrize("size", [(9, 12), (8, 13), (7, 12)])
def test_labels_of_another_size_than_the_image_are_told(size) -> None:
    """Those of a larger one would be cut off, and the rest be counted."""
    image = Image.fromarray(picture(8, 12))
    with pytest.raises(DataError, match=r"street\.png: labels are .*, expected \(8, 12\)"):
        small().confusion(image, np.zeros(size, np.uint8), "street.png")


def test_data_of_other_classes_are_told_before_the_work() -> None:
    """Also of as many: an index would mean something else."""
    model = small()
    for names in (("a", "b"), tuple(f"{name}?" for name in model.class_names)):
        folder = SimpleNamespace(classes=SimpleNamespace(names=names), pairs=())
        with pytest.raises(DataError, match="the data: found .*, expected those of the model"):
            model.evaluate(folder)
