"""Images with a label for every pixel, in the layout of ADE20K:

    images/[training/]NAME.jpg            in any image format
    annotations/[training/]NAME.png       8 bits a pixel, grey or palette: the index of its class
    objectInfo150.txt or classes.txt      what the indices mean

The folder of a split is `training` or `train`; `validation`, `val` or `test` is what to evaluate
on.
A class list is ADE20K's own table (columns divided by tabs, among them `Idx` and `Name`), or a line
`INDEX NAME` for each class. Labels are numbered in the order of the indices: ADE20K's wall, index
1, is label 0. An index that the list leaves out has no label where it is 0 (ADE20K's unlabelled)
or 255 (the usual void); any other is an error. Where two classes have one name, their index follows
it in brackets. Without folders for splits the data set is read as a whole, whichever is asked for.

Images and labels are arrays in memory, or both read on demand: see image_folder.py.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from refimpl.conventions import IGNORED, DataError, shown
from refimpl.data import class_names as names_file
from refimpl.data import mnist
from refimpl.data.archives import read_file
from refimpl.data.datasets import MAPS, Dataset, processes, require_counts
from refimpl.data.image_folder import FolderArray, Progress, Workers, in_memory, left
from refimpl.data.images import (
    decode,
    decode_indices,
    in_folder,
    left_out_of,
    orientation_of,
    picture_size,
    suffixes_of,
)
from refimpl.data.preprocessing import Preprocessing

LISTS = ("objectInfo150.txt", "classes.txt")
SPLITS = {
    "train": ("training", "train"),
    "test": ("validation", "val", "test"),
}
UNLABELLED = (0, IGNORED)  # indices without a label where the class list has no class for them


class Classes(NamedTuple):
    """What the numbers of an annotation mean."""

    indices: tuple[int, ...]  # ascending; the place of one is its label
    names: tuple[str, ...]

    def labels(self, annotation: np.ndarray, name: str) -> np.ndarray:
        """uint8 indices (H, W) -> uint8 labels; DataError, with `name`, for an unknown index."""
        table = np.full(256, IGNORED)
        table[list(self.indices)] = np.arange(len(self.indices))
        # Pillow's tables and histograms take no memory beside the images
        image = Image.fromarray(annotation)
        unknown = {i for i, count in enumerate(image.histogram()) if count}
        unknown -= {*self.indices, *UNLABELLED}
        if unknown:
            raise DataError(
                f"{name}: index {min(unknown)} is in no line of the class list, expected one of "
                f"its {len(self.indices)} from {self.indices[0]} to {self.indices[-1]}"
            )
        return np.asarray(image.point(table.tolist()))


class Pair(NamedTuple):
    """An image and its annotation."""

    image: Path
    annotation: Path

    def picture(self) -> Image.Image:
        """Mode L or RGB."""
        return decode(read_file(self.image), str(self.image))

    def labels(self, classes: Classes) -> np.ndarray:
        """uint8 (H, W), of the size of the picture; DataError where it has another."""
        annotation = read_file(self.annotation), str(self.annotation)
        image = read_file(self.image), str(self.image)
        indices, size = decode_indices(*annotation), picture_size(*image)
        if indices.shape != size:
            raise DataError(
                f"{self.annotation}: {indices.shape[1]} x {indices.shape[0]} pixels, expected "
                f"{size[1]} x {size[0]}, the size of {self.image.name}"
            )
        turned, image_turned = orientation_of(*annotation), orientation_of(*image)
        if turned != image_turned and _stored(size, turned) == _stored(size, image_turned):
            raise DataError(
                f"{self.annotation}: its orientation is {turned}, that of {self.image.name} is "
                f"{image_turned}, and the sizes do not tell which pixels belong together; expected "
                "one orientation in both files"
            )
        return classes.labels(indices, str(self.annotation))

    def read(self, classes: Classes) -> tuple[Image.Image, np.ndarray]:
        """`picture` and `labels`."""
        return self.picture(), self.labels(classes)


class SegmentationFolder(NamedTuple):
    """A split of a data set on disk; nothing is decoded yet."""

    pairs: tuple[Pair, ...]  # ordered by name
    classes: Classes
    split: str | None  # name of its folder; None: the data set has no splits
    broken: tuple[str, ...] = ()  # of each pair that was left out: which it is, what is wrong
    notes: tuple[str, ...] = ()  # what else a user should know: a line each

    def spread(self, count: int) -> "SegmentationFolder":
        """`count` pairs evenly spread over the split, all where it has no more."""
        total = len(self.pairs)
        chosen = range(min(count, total))
        return self._replace(pairs=tuple(self.pairs[i * total // len(chosen)] for i in chosen))

    def without_broken(
        self, workers: Workers, progress: Progress = lambda count: None
    ) -> "SegmentationFolder":
        """The pairs of which both files can be read; all are read, by `workers`, to find out.

        DataError where there is none.
        """
        read = functools.partial(Pair.read, classes=self.classes)
        faults = workers.faults(read, self.pairs, progress)
        kept = left(self.pairs[0].image.parent, len(self.pairs), faults)
        return self._replace(
            pairs=tuple(self.pairs[i] for i in kept), broken=tuple(faults.values())
        )


class _Pictures(NamedTuple):
    """The Reader of images; items are pairs."""

    folder: Path
    preprocessing: Preprocessing

    @property
    def shape(self) -> tuple[int, ...]:
        return self.preprocessing.shape

    @property
    def settings(self) -> str:
        return str(self.preprocessing)

    def file(self, pair: Pair) -> str:
        return pair.image.name

    def read(self, pair: Pair) -> np.ndarray:
        return self.preprocessing.pixels(pair.picture())


class _Labels(NamedTuple):
    """The Reader of label maps; items are pairs."""

    folder: Path
    classes: Classes
    shape: tuple[int, int]

    @property
    def settings(self) -> str:
        return f"{self.classes} {self.shape}"

    def file(self, pair: Pair) -> str:
        return pair.annotation.name

    def read(self, pair: Pair) -> np.ndarray:
        return resize_labels(pair.labels(self.classes), self.shape)


def find(
    path: str | Path, split: str, class_list: Path | None = None, limit: int | None = None
) -> SegmentationFolder:
    """Split "train" or "test" of the data set at `path`, by its names alone.

    class_list: the file with the classes; without it the one in the folder. limit: so many pairs at
    most, evenly spread over the split. DataError names what is missing or not arranged as above,
    ConfigError is for a limit that is no number of images.
    """
    if split not in SPLITS:
        raise DataError(f"split is {split!r}, expected {' or '.join(SPLITS)}")
    require_counts(limit)
    path = Path(path)
    _require_maps(path)
    folder = _split_folder(path, split)
    places = [path / name / (folder or "") for name in MAPS]
    images, annotations = map(_by_stem, places)
    for name in images:
        if name not in annotations:
            raise DataError(f"{images[name]}: has no annotation, expected {name}.png")
    for name in annotations:
        if name not in images:
            raise DataError(f"{annotations[name]}: has no image of that name")
    pairs = tuple(Pair(images[name], annotations[name]) for name in sorted(images))
    notes = tuple(note for place in places for note in _left_out(place))
    if folder is None and split == "test":
        notes += (
            f"{path}: no folders for splits: all {len(pairs):,} images are evaluated, those of a "
            "training among them",
        )
    classes = read_classes(class_list or _class_list(path))
    found = SegmentationFolder(pairs, classes, folder, notes=notes)
    return found if limit is None else found.spread(limit)


def load(
    path: str | Path,
    split: str,
    preprocessing: Preprocessing,
    progress: Progress = lambda count: None,
    *,
    class_list: Path | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    limit: int | None = None,
) -> Dataset:
    """The pairs that `find` finds, resized: images by `preprocessing`, labels to the nearest.

    The labels of the Dataset are uint8 (n, H, W), IGNORED where a pixel has none. `progress`,
    `workers`, `skip_broken` and `limit` are those of `datasets.load`: images and labels are read
    on demand by the same processes, and a pair is left out where one of its files is broken.
    """
    require_counts(limit, workers)
    folder = find(path, split, class_list, limit)
    pixels = preprocessing.size[0] * preprocessing.size[1] * (preprocessing.channels + 1)
    count = processes(workers, len(folder.pairs) * pixels)
    pool = Workers(count or 0)
    if skip_broken:
        folder = folder.without_broken(pool, progress)
    first = folder.pairs[0]
    readers = (
        _Pictures(first.image.parent, preprocessing),
        _Labels(first.annotation.parent, folder.classes, preprocessing.size),
    )
    arrays = [FolderArray(reader, folder.pairs, pool) for reader in readers]
    images, labels = in_memory(arrays, progress) if count is None else arrays
    return Dataset(
        images,
        labels,
        folder.classes.names,
        folder.split,
        folder.broken,
        folder.notes,
        tuple(arrays),
    )


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W) -> (h, w): the label of the pixel that the middle of each new one lies in."""
    if labels.shape == size:
        return labels
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def read_classes(path: Path) -> Classes:
    """A class list as above; DataError says what is wrong with it."""
    named = _table(path) or names_file.read(path)
    indices: dict[int, str] = {}
    for text, name in named.items():
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= IGNORED):
            raise DataError(f"{path}: found the index {text!r}, expected a number from 0 to 255")
        indices[int(text)] = name
    if len(indices) > IGNORED:
        raise DataError(f"{path}: {len(indices)} classes, expected at most {IGNORED}")
    if len(indices) != len(named):
        raise DataError(f"{path}: found an index twice, expected one line a class")
    numbers = sorted(indices)
    names = [names_file.composed(indices[i]) for i in numbers]
    return Classes(tuple(numbers), names_file.distinct(names, numbers))


def _stored(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(H, W) in the file of a picture that is upright with this size; see metadata.py."""
    return size[::-1] if orientation >= 5 else size


def _table(path: Path) -> dict[str, str]:
    """Index -> name, of a table with a header; empty where the first line is none."""
    lines = [line for line in names_file.text(path).splitlines() if line.strip()]
    header = lines[0].split("\t") if lines else []
    if "Idx" not in header or "Name" not in header:
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        row = line.split("\t")
        if len(row) != len(header):
            raise DataError(
                f"{path}: row {number} has {len(row)} columns, expected {len(header)}, as the "
                "first has"
            )
        index = row[header.index("Idx")].strip()
        if index in found:
            raise DataError(f"{path}: row {number}: index {index} a second time")
        name = row[header.index("Name")].strip()
        if not name or shown(name) != name:
            raise DataError(
                f"{path}: row {number}: found the name {name!r}, expected printable text"
            )
        found[index] = name
    return found


def _class_list(path: Path) -> Path:
    for name in LISTS:
        if (path / name).is_file():
            return path / name
    raise DataError(f"{path}: no class list, expected a file {' or '.join(LISTS)} in it")


def _require_maps(path: Path) -> None:
    """DataError unless there are images and annotations in a folder."""
    if not path.exists():
        raise DataError(f"{path}: no such folder, expected images/ and annotations/ in it")
    missing = [f"no {name}/" for name in MAPS if not (path / name).is_dir()]
    if not missing:
        return
    found = " and ".join(missing) if path.is_dir() else "a file"
    if mnist.found_in(path):
        found = "idx files"
    raise DataError(
        f"{path}: found {found}, expected images/ and annotations/ in a folder, label maps for a "
        "segmenter; a classifier such as didb_micro takes idx files or class folders"
    )


def _split_folder(path: Path, split: str) -> str | None:
    """The name of the split's folder, the same below images and annotations."""
    every = [name for names in SPLITS.values() for name in names]
    there = [name for name in every if (path / "images" / name).is_dir()]
    if not there:
        return None
    found = [name for name in there if name in SPLITS[split]]
    if len(found) != 1:
        what = " and ".join(found or there)
        raise DataError(f"{path / 'images'}: found {what}, expected one of {SPLITS[split]}")
    if not (path / "annotations" / found[0]).is_dir():
        raise DataError(f"{path / 'annotations'}: no folder {found[0]}, expected one as in images")
    return found[0]


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in in_folder(folder):
        stem = names_file.composed(path.stem)
        if stem in found:
            raise DataError(f"{path}: {found[stem].name} has the same name without suffix")
        found[stem] = path
    return found


def _left_out(folder: Path) -> list[str]:
    others = left_out_of(folder)
    if not others:
        return []
    return [f"{folder}: files without the suffix of an image, not read: {suffixes_of(others)}"]
