"""Labelled data sets: whatever holds the same images gives the same arrays.

Oracles: the arrays that the images were made from (PNG loses nothing), Pillow called directly,
and archives packed by tarfile, zipfile and their compressors.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refimpl.conventions import DataError
from refimpl.data import archives, bundled, datasets, mnist
from refimpl.data.preprocessing import Preprocessing

SMALL = bundled.mnist() / "small"
PLAIN = Preprocessing.plain((4, 6), 3)
RNG = np.random.default_rng(60)


def picture(level: int | None = None, format: str = "PNG") -> bytes:
    """An image file of 4 x 6 pixels, of one colour or random."""
    pixels = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    if level is not None:
        pixels[:] = level
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


# The level of an image says what it is: 10 * class + number, and 100 more in the test split.
TREE = {
    f"{split}/{name}/{number:04d}.png": picture(100 * (split == "test") + 10 * c + number)
    for split, counts in {"train": (2, 1, 2), "test": (1, 3, 0)}.items()
    for c, (name, count) in enumerate(zip(("ant", "bee", "cow"), counts))
    for number in range(count)
}
LEVELS = {"train": [0, 1, 10, 20, 21], "test": [100, 110, 111, 112]}
LABELS = {"train": [0, 0, 1, 2, 2], "test": [0, 1, 1, 1]}


def write_folder(path: Path, tree: Mapping[str, bytes]) -> Path:
    for name, content in tree.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_tar(path: Path, tree: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in tree.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, tree: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in tree.items():
            archive.writestr(name, content)
    return path


WRITERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "folder": write_folder,
    "tar": write_tar,
    "tar.gz": lambda path, tree: write_tar(path, tree, "w:gz"),
    "tar.bz2": lambda path, tree: write_tar(path, tree, "w:bz2"),
    "tar.xz": lambda path, tree: write_tar(path, tree, "w:xz"),
    "zip": write_zip,
    "stored zip": lambda path, tree: write_zip(path, tree, zipfile.ZIP_STORED),
}


def assert_tree(data: datasets.Dataset, split: str) -> None:
    assert data.class_names == ("ant", "bee", "cow")
    assert data.split == split
    assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int64)
    assert data.images.shape == (len(LEVELS[split]), 4, 6, 3)
    assert data.images[:, 0, 0, 0].tolist() == LEVELS[split]
    assert data.labels.tolist() == LABELS[split]


@pytest.mark.parametrize("split", datasets.SPLITS)
@pytest.mark.parametrize("form", WRITERS)
def test_every_form_gives_the_same_arrays(tmp_path, form, split) -> None:
    path = WRITERS[form](tmp_path / "data", TREE)  # the name says nothing of what it is
    assert_tree(datasets.load(path, split, PLAIN), split)
    assert_tree(datasets.load(str(path), split, PLAIN), split)


@pytest.mark.parametrize("form", WRITERS)
def test_any_order_common_folders_and_files_of_other_kinds(tmp_path, form) -> None:
    tree = {f"some/where/{name}": content for name, content in reversed(TREE.items())}
    tree |= {"README.txt": b"not an image", "some/labels.pkl": b"(cos\nsystem\n(S'false'\ntR."}
    tree |= {"some/where/train/ant/._0000.png": b"?", "__MACOSX/train/ant/0000.png": b"?"}
    path = WRITERS[form](tmp_path / "data", tree)
    assert_tree(datasets.load(path, "test", PLAIN), "test")


def test_names_that_tar_writes_for_a_folder(tmp_path) -> None:
    folder = write_folder(tmp_path / "folder", TREE)
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(folder, ".")  # members ., ./train, ./train/ant/0000.png
    assert_tree(datasets.load(tmp_path / "data.tar", "train", PLAIN), "train")


@pytest.mark.parametrize("form", WRITERS)
def test_without_splits_all_images_are_read(tmp_path, form) -> None:
    tree = {name.removeprefix("test/"): content for name, content in TREE.items() if "test" in name}
    path = WRITERS[form](tmp_path / "data", tree)
    for split in datasets.SPLITS:
        data = datasets.load(path, split, PLAIN)
        assert data.split is None
        assert data.class_names == ("ant", "bee")
        assert data.images[:, 0, 0, 0].tolist() == LEVELS["test"]


def test_a_class_may_be_called_like_a_split(tmp_path) -> None:
    tree = {"train/train/1.png": picture(1), "train/car/1.png": picture(2)}
    data = datasets.load(write_folder(tmp_path / "split", tree), "train", PLAIN)
    assert (data.class_names, data.split) == (("car", "train"), "train")
    tree = {name.removeprefix("train/"): content for name, content in tree.items()}
    data = datasets.load(write_folder(tmp_path / "whole", tree), "train", PLAIN)
    assert (data.class_names, data.split) == (("car", "train"), None)


def test_images_of_any_size_and_format_become_the_models(tmp_path) -> None:
    tree = {}
    for number, format in enumerate(("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")):
        image = Image.fromarray(RNG.integers(0, 256, (9 + number, 20, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        image.save(buffer, format)
        tree[f"kind/{number}.{format}"] = buffer.getvalue()  # suffixes in capitals too
    grey = Preprocessing((4, 6), "grey", mean=(0.0,), std=(1.0,), crop=0.5)
    data = datasets.load(write_zip(tmp_path / "data.zip", tree), "test", grey)
    assert data.images.shape == (6, 4, 6)
    for content, pixels in zip(tree.values(), data.images):
        np.testing.assert_array_equal(grey.pixels(Image.open(io.BytesIO(content))), pixels)


def test_idx_files_come_from_the_same_door() -> None:
    images, labels = mnist.load(SMALL, "test")
    data = datasets.load(SMALL, "test", mnist.PREPROCESSING)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    assert (data.class_names, data.split) == (mnist.CLASS_NAMES, "test")
    colour = datasets.load(SMALL, "test", Preprocessing.plain((32, 32), 3)).spread(3)
    assert colour.images.shape == (3, 32, 32, 3)


def test_progress_counts_the_images_that_are_decoded(tmp_path) -> None:
    done: list[int] = []
    datasets.load(write_tar(tmp_path / "data.tar", TREE), "test", PLAIN, done.append)
    assert done == [1] * 4


def test_spread_takes_images_from_everywhere() -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None]
    data = datasets.Dataset(images, np.arange(10), tuple("abcdefghij"), None)
    assert data.spread(5).labels.tolist() == [0, 2, 4, 6, 8]
    assert data.spread(3).labels.tolist() == data.spread(3).images.ravel().tolist() == [0, 3, 6]
    assert data.spread(10) is data
    assert data.spread(99) is data


def test_links_in_a_folder_are_followed(tmp_path) -> None:
    folder = write_folder(tmp_path / "folder", TREE)
    linked = tmp_path / "linked"
    (linked / "test" / "bee").mkdir(parents=True)
    os.symlink(folder / "test" / "ant", linked / "test" / "ant")
    os.symlink(folder / "train" / "cow" / "0000.png", linked / "test" / "bee" / "b.png")
    data = datasets.load(linked, "test", PLAIN)
    assert data.images[:, 0, 0, 0].tolist() == [100, 20]
    os.symlink(linked, linked / "test" / "ant" / "round")  # in circles
    with pytest.raises(DataError, match="not arranged as"):
        datasets.load(linked, "test", PLAIN)
    with pytest.raises(DataError, match="nested deeper than 16"):
        list(archives.members(linked))


def test_nothing_is_written(tmp_path) -> None:
    path = write_zip(tmp_path / "data.zip", TREE)
    before = path.stat()
    datasets.load(path, "train", PLAIN)
    assert [p.name for p in tmp_path.iterdir()] == ["data.zip"]
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_members_are_read_one_after_the_other(tmp_path) -> None:
    for form, write in WRITERS.items():
        found = {m.name: m.read() for m in archives.members(write(tmp_path / form, TREE))}
        assert found == TREE, form


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (("ant", "bee"), "found 2 classes (ant, bee), expected those of the model, 3 classes (ant"),
        (("bee", "ant", "cow"), "found 3 classes (bee, ant, cow), expected"),
        (tuple(str(i) for i in range(1000)), "found 1000 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ."),
    ],
)
def test_classes_must_be_those_of_the_model(found, message) -> None:
    datasets.require_classes("data", ["ant", "bee", "cow"], ("ant", "bee", "cow"))
    with pytest.raises(DataError) as caught:
        datasets.require_classes("data.zip", found, ("ant", "bee", "cow"))
    assert str(caught.value).startswith("data.zip: ")
    assert message in str(caught.value)
