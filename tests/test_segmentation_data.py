"""Images with label maps: ADE20K's layout, class lists, augmentation alike, scenes of digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from refimpl.conventions import DataError, OutputError
from refimpl.data import mnist, palette, scenes, segmentation
from refimpl.data.preprocessing import Preprocessing
from refimpl.training.augmentation import augment, augment_with_labels, random_crop
from tests import strategies
from tests.command_line import SMALL

PLAIN = Preprocessing.plain((6, 8), 3)
TABLE = "Idx\tRatio\tTrain\tVal\tName\n1\t0.2\t7\t2\twall\n2\t0.1\t6\t1\tbuilding, edifice \n"
LINES = "0 zero\n7 seven\n1 one\n2 two\n"


def write(
    folder: Path, names: list[str], classes: str = TABLE, size: tuple[int, int] = (8, 6)
) -> Path:
    """Pairs whose annotation has 0, 1 and 2 in it."""
    list_name = "objectInfo150.txt" if "Idx" in classes else "classes.txt"
    folder.mkdir()
    (folder / list_name).write_text(classes)
    for i, name in enumerate(names):
        for kind, suffix in (("images", "jpg"), ("annotations", "png")):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            mode = "RGB" if kind == "images" else "L"
            image = Image.new(mode, size, 0 if mode == "L" else (40 * i, 0, 0))
            if mode == "L":
                image.putpixel((i, 0), 1)
                image.putpixel((i, 1), 2)
            image.save(folder / kind / f"{name}.{suffix}")
    return folder


def test_a_split_of_ade20ks_layout(tmp_path):
    names = ["training/b", "training/a", "validation/c"]
    path = write(tmp_path / "data", names)
    folder = segmentation.find(path, "train")
    assert folder.split == "training"
    assert [pair.image.name for pair in folder.pairs] == ["a.jpg", "b.jpg"]
    assert folder.classes == ((1, 2), ("wall", "building, edifice"))
    image, labels = folder.pairs[0].read(folder.classes)
    assert (image.size, labels.dtype) == ((8, 6), np.uint8)
    expected = np.full((6, 8), 255)
    expected[0, 1], expected[1, 1] = 0, 1
    np.testing.assert_array_equal(labels, expected)
    assert segmentation.find(path, "test").split == "validation"


def test_without_splits_all_is_read_whichever_is_asked_for(tmp_path):
    path = write(tmp_path / "data", ["a", "b", "c"], LINES)
    for split in segmentation.SPLITS:
        folder = segmentation.find(path, split)
        assert (folder.split, len(folder.pairs)) == (None, 3)
    assert folder.classes == ((0, 1, 2, 7), ("zero", "one", "two", "seven"))
    chosen = [pair.image.stem for pair in folder.spread(2).pairs]
    assert chosen == ["a", "b"]
    assert folder.spread(9) == folder


def test_loaded_in_one_size_images_bilinear_labels_nearest(tmp_path):
    path = write(tmp_path / "data", ["a", "b"], size=(16, 12))
    data = segmentation.load(path, "train", PLAIN)
    assert data.images.shape == (2, 6, 8, 3)
    assert data.labels.shape == (2, 6, 8)
    assert set(np.unique(data.labels)) <= {0, 1, 255}
    assert data.class_names == ("wall", "building, edifice")


@given(strategies.seeds(), strategies.sizes(2), st.integers(1, 4))
def test_labels_enlarged_by_a_whole_factor_are_repeated(seed, size, factor):
    labels = np.random.default_rng(seed).integers(256, size=size).astype(np.uint8)
    large = segmentation.resize_labels(labels, (size[0] * factor, size[1] * factor))
    np.testing.assert_array_equal(large, labels.repeat(factor, 0).repeat(factor, 1))
    np.testing.assert_array_equal(segmentation.resize_labels(large, size), labels)


def test_a_palette_image_holds_indices_and_no_colours(tmp_path):
    path = write(tmp_path / "data", ["a"], LINES)
    indices = np.array([[0, 1, 7, 255]] * 6, np.uint8).repeat(2, axis=1)
    image = Image.fromarray(indices)
    image.putpalette(palette.colours(255).tobytes() + bytes(3))
    image.save(path / "annotations" / "a.png")
    assert Image.open(path / "annotations" / "a.png").mode == "P"
    folder = segmentation.find(path, "train")
    _, labels = folder.pairs[0].read(folder.classes)
    np.testing.assert_array_equal(labels[0, ::2], [0, 1, 3, 255])


def broken(tmp_path: Path, classes: str = LINES) -> Path:
    return write(tmp_path / "data", ["train/a", "train/b"], classes)


def save_annotation(path: Path, image: Image.Image) -> None:
    image.save(path / "annotations" / "train" / "b.png")


@pytest.mark.parametrize(("change", "message"), [
    (lambda p: (p / "annotations/train/b.png").unlink(), r"images/train/b\.jpg: has no annotation"),
    (lambda p: (p / "images/train/b.jpg").unlink(), r"annotations/train/b\.png: has no image"),
    (lambda p: (p / "classes.txt").unlink(), "no class list, expected .*objectInfo150.txt"),
    (lambda p: (p / "images/test").mkdir() or (p / "images/val").mkdir(), None),
    (lambda p: save_annotation(p, Image.new("RGB", (8, 6))), r"b\.png: the image's mode is RGB"),
    (lambda p: save_annotation(p, Image.new("I;16", (8, 6))), r"b\.png: the image's mode is I;16"),
    (lambda p: save_annotation(p, Image.new("L", (6, 8))), r"b\.png: 6 x 8 pixels, expected 8 x 6"),
    (lambda p: save_annotation(p, Image.new("L", (8, 6), 3)), r"b\.png: index 3 is in no line"),
    (lambda p: (p / "annotations/train/b.png").write_bytes(b"?"), r"b\.png: not an image"),
    (lambda p: (p / "images/train/b.jpg").write_bytes(b""), r"b\.jpg: the file is empty"),
])  # fmt: skip
def test_what_is_wrong_with_a_data_set_is_one_line(tmp_path, change, message):
    path = broken(tmp_path)
    change(path)
    if message is None:
        assert len(segmentation.find(path, "train").pairs) == 2
        with pytest.raises(DataError, match="found val and test, expected one of"):
            segmentation.find(path, "test")
        return
    with pytest.raises(DataError, match=message) as error:
        segmentation.load(path, "train", PLAIN)
    assert "\n" not in str(error.value)


def test_other_refusals(tmp_path):
    with pytest.raises(DataError, match="expected images/ and annotations/"):
        segmentation.find(tmp_path, "train")
    path = broken(tmp_path)
    with pytest.raises(DataError, match="found train, expected one of"):
        segmentation.find(path, "test")
    with pytest.raises(DataError, match="split is 'val'"):
        segmentation.find(path, "val")


@pytest.mark.parametrize(("text", "message"), [
    ("Idx\tName\n1\twall\n1\tfloor\n", "index 1 a second time"),
    ("Idx\tName\n1\n", "row 2 has 1 columns, expected 2"),
    ("Idx\tName\n256\twall\n", "found the index '256'"),
    ("Idx\tName\nx\twall\n", "found the index 'x'"),
    ("01 wall\n1 floor\n", "an index twice"),
    ("wall\n", "expected FOLDER NAME"),
    ("", "no class names in it"),
    ("".join(f"{i} c{i}\n" for i in range(256)), "256 classes, expected at most 255"),
])  # fmt: skip
def test_a_bad_class_list(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        segmentation.read_classes(path)


# --- augmentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [(), (3,)])
@given(
    strategies.seeds(), strategies.sizes(3), st.sampled_from([(0, False, 1.0), (1, True, 1.0),
    (0, True, 0.6), (1, False, 0.4)]),
)  # fmt: skip
def test_labels_go_where_their_pixels_go(colour, seed, shape, how):
    """Images that say in each pixel what its label is: 255 - v, and 0 for what is ignored."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 256, size=shape).astype(np.uint8)
    images = np.broadcast_to((255 - labels).reshape(*shape, *[1] * len(colour)), (*shape, *colour))
    options = dict(zip(("shift", "flip", "crop"), how, strict=True))
    moved, maps = augment_with_labels(images, labels, np.random.default_rng(seed + 1), **options)
    assert moved.shape[:3] == maps.shape
    channel = moved[..., 0] if colour else moved
    np.testing.assert_array_equal(255 - channel, maps)
    alone = augment(images, np.random.default_rng(seed + 1), **options)
    np.testing.assert_array_equal(moved, alone)


@given(strategies.seeds(), strategies.sizes(3), st.sampled_from([0.01, 0.3, 0.5, 0.9, 1.0]))
def test_a_crop_is_a_window_of_the_image(seed, shape, part):
    images = np.arange(np.prod(shape)).reshape(shape)
    cut = random_crop(images, part, np.random.default_rng(seed))
    size = tuple(max(1, round(part * side)) for side in shape[1:])
    assert cut.shape == (shape[0], *size)
    for image, window in zip(images, cut, strict=True):
        top, left = np.argwhere(image == window[0, 0])[0]
        np.testing.assert_array_equal(image[top : top + size[0], left : left + size[1]], window)


def test_every_place_of_a_crop_occurs():
    image = np.arange(12).reshape(1, 3, 4).repeat(200, axis=0)
    cut = random_crop(image, 0.5, np.random.default_rng(0))
    assert set(cut[:, 0, 0]) == {0, 1, 2, 4, 5, 6}


# --- scenes ---------------------------------------------------------------------------------------


def test_scenes_are_fixed_by_their_seed_and_have_a_label_in_every_pixel():
    images, labels = mnist.load(SMALL, "train")
    drawn = [scenes.draw(images, labels, np.random.default_rng(i)) for i in range(40)]
    again = scenes.draw(images, labels, np.random.default_rng(7))
    np.testing.assert_array_equal(again.image, drawn[7].image)
    np.testing.assert_array_equal(again.labels, drawn[7].labels)
    digits = []
    for image, label in drawn:
        assert (image.dtype, image.shape) == (label.dtype, label.shape) == (np.uint8, (56, 56))
        assert set(np.unique(label)) <= set(range(11))
        assert (image[label < 10] >= scenes.INK).all()
        digits.append(len(np.unique(label)) - 1)
        clutter = (label == 10) & (image >= scenes.INK)
        assert clutter.any()
    assert min(digits) >= 1 and max(digits) >= 3
    share = np.mean([label < 10 for _, label in drawn])
    assert 0.15 < share < 0.4


def test_strokes_hide_what_is_behind_them():
    """A bright and a dim square: no pixel of the dim one shows the bright one under it."""
    digits = np.zeros((2, 28, 28), np.uint8)
    digits[:, 4:24, 4:24] = np.array([255, 100])[:, None, None]
    rng = np.random.default_rng(0)
    for image, label in (scenes.draw(digits, np.array([3, 5]), rng) for _ in range(40)):
        assert image[label == 5].max(initial=0) <= 100


def test_scenes_as_a_folder(tmp_path):
    done = []
    path = tmp_path / "scenes"
    scenes.write(SMALL, path, {"train": 3, "test": 2}, seed=4, progress=done.append)
    assert sum(done) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]
    scenes.write(SMALL, tmp_path / "more", {"train": 1, "test": 3}, seed=4)
    for split, count in (("train", 3), ("test", 2)):
        folder = segmentation.find(path, split)
        assert folder.classes.names == scenes.CLASS_NAMES
        assert folder.classes.indices == tuple(range(11))
        data = segmentation.load(path, split, Preprocessing.plain((56, 56), 1))
        assert (len(data.images), data.split) == (count, split)
        more = segmentation.load(tmp_path / "more", split, Preprocessing.plain((56, 56), 1))
        np.testing.assert_array_equal(more.images[0], data.images[0])
        images, labels = mnist.load(SMALL, split)
        rng = np.random.default_rng([4, ("train", "test").index(split), 0])
        np.testing.assert_array_equal(scenes.draw(images, labels, rng).labels, data.labels[0])
    with pytest.raises(OutputError, match="exists; expected the name of a new folder"):
        scenes.write(SMALL, path, {"train": 1, "test": 1})
    with pytest.raises(DataError):
        scenes.write(tmp_path, tmp_path / "none", {"train": 1, "test": 1})
    assert not (tmp_path / "none").exists()


def test_colours_are_all_different_and_none_is_black():
    found = {tuple(c) for c in palette.colours(255).tolist()}
    assert len(found) == 255
    assert (0, 0, 0) not in found
    np.testing.assert_array_equal(palette.colours(9), palette.colours(255)[:9])
