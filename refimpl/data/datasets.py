"""A labelled data set to arrays, whatever holds it:

    folder of MNIST's four idx files             see mnist.py
    folder of class folders                      [train/ | test/] CLASS / IMAGE
    .tar, .tar.gz, .tar.bz2, .tar.xz, .zip       of such a folder, read without unpacking to disk

The class folders may lie below a common folder, as in `cifar10/train/cat/0001.png`. Classes are
numbered in the order of their sorted names, over both splits. A data set without the folders
`train` and `test` has no splits: it is read as a whole, whichever is asked for. Of the files in it
only images are read (by suffix); each must be a good one, since an accuracy over the rest of a
split is not that of the split.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.conventions import DataError
from refimpl.data import archives, mnist
from refimpl.data.images import SUFFIXES, decode
from refimpl.data.preprocessing import Preprocessing

SPLITS = ("train", "test")
MAX_BYTES = 4 * 2**30  # of the pixels of a split, which are held in memory


class Dataset(NamedTuple):
    """Images as a model wants them before they are normalised, with their labels."""

    images: np.ndarray  # uint8 (n, H, W) or (n, H, W, 3), ordered by path
    labels: np.ndarray  # int64 (n,), index into class_names
    class_names: tuple[str, ...]
    split: str | None  # None: the data set has no splits

    def spread(self, count: int) -> "Dataset":
        """`count` images evenly spread over the data set, all where it has no more."""
        if count >= len(self.images):
            return self
        chosen = np.arange(count) * len(self.images) // count
        return self._replace(images=self.images[chosen], labels=self.labels[chosen])


class _Place(NamedTuple):
    """Where a path stands: PREFIX / [SPLIT /] CLASS / IMAGE."""

    prefix: tuple[str, ...]
    split: str | None
    class_name: str


def load(
    path: str | Path,
    split: str,
    preprocessing: Preprocessing,
    progress: Callable[[int], object] = lambda count: None,
) -> Dataset:
    """Split "train" or "test" of the data set at `path`, cropped and resized by `preprocessing`.

    `progress` is called with 1 for every image that is decoded. DataError names what is missing,
    broken or not arranged as above.
    """
    if split not in SPLITS:
        raise DataError(f"split is {split!r}, expected {' or '.join(SPLITS)}")
    path = Path(path)
    if mnist.found_in(path):
        images, labels = mnist.load(path, split)
        return Dataset(preprocessing.pixels_array(images), labels, mnist.CLASS_NAMES, split)
    return _class_folders(path, split, preprocessing, progress)


def require_classes(path: str | Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """DataError unless a data set's class names are those of the model, in the same order."""
    if tuple(found) != tuple(expected):
        raise DataError(
            f"{path}: found {_listing(found)}, expected those of the model, {_listing(expected)}"
        )


def _class_folders(
    path: Path, split: str, preprocessing: Preprocessing, progress: Callable[[int], object]
) -> Dataset:
    places: dict[str, _Place] = {}
    images: dict[str, np.ndarray] = {}
    room = MAX_BYTES // (preprocessing.channels * preprocessing.size[0] * preprocessing.size[1])
    for member in archives.members(path):
        if os.path.splitext(member.name)[1].lower() not in SUFFIXES:
            continue
        place = places[member.name] = _place(path, member.name)
        _require_same_arrangement(path, places, member.name)
        if place.split in (None, split):
            image = decode(member.read(), f"{path}: {member.name}")
            images[member.name] = preprocessing.pixels(image)
            progress(1)
        if len(images) > room:
            raise DataError(
                f"{path}: more than {room} images, the most that {MAX_BYTES >> 30} GB hold "
                f"at {preprocessing.size[0]} x {preprocessing.size[1]} pixels"
            )
    if not images:
        found = f"a {places.popitem()[1].split} split only" if places else "no image"
        wanted = f"[{split}/]CLASS/IMAGE, or MNIST's idx files"
        raise DataError(f"{path}: found {found}, expected {wanted}")
    names = sorted(images)
    class_names = tuple(sorted({place.class_name for place in places.values()}))
    labels = [class_names.index(places[name].class_name) for name in names]
    return Dataset(
        np.stack([images[name] for name in names]),
        np.array(labels, np.int64),
        class_names,
        places[names[0]].split,
    )


def _place(path: Path, name: str) -> _Place:
    *folders, _ = name.split("/")
    if not folders:
        raise DataError(f"{path}: {name}: an image in no class folder, expected CLASS/{name}")
    *folders, class_name = folders
    split = folders.pop() if folders and folders[-1] in SPLITS else None
    return _Place(tuple(folders), split, class_name)


def _require_same_arrangement(path: Path, places: dict[str, _Place], name: str) -> None:
    """All images lie in one folder of classes, or in its two splits."""
    first = next(iter(places))
    expected, found = places[first], places[name]
    if found.prefix != expected.prefix or (found.split is None) != (expected.split is None):
        raise DataError(
            f"{path}: {name} is not arranged as {first}, expected all images as "
            "CLASS/IMAGE or as train/CLASS/IMAGE and test/CLASS/IMAGE"
        )


def _listing(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{len(names)} classes ({shown})"
