"""A labelled data set, whatever holds it:

    folder of MNIST's four idx files             see mnist.py
    folder of class folders                      [train/ | test/ | val/] CLASS / IMAGE
    .tar, .tar.gz, .tar.bz2, .tar.xz, .zip       of such a folder, read without unpacking to disk

The class folders may lie below a common folder, as in `cifar10/train/cat/0001.png`. Classes are
numbered in the order of their sorted names, over all splits. The images to evaluate on lie in
`test` or, as in ImageNet's layout, in `val`. A data set without such folders has no splits: it is
read as a whole, whichever is asked for. Of the files in it only images are read (by suffix), and
the notes of the data set say how many others lie among them; each image must be a good one, since
an accuracy over the rest of a split is not that of the split, unless the caller asks to leave out
what is broken.

A letter with an accent is one character or two, depending on the system that wrote the name: names
of classes are compared, sorted and kept in the composed form (NFC).

The images are an array in memory, or read from their folder on demand: see image_folder.py. A data
set with a label for every pixel is refused here, and read by segmentation.py.
"""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refimpl.conventions import ConfigError, DataError, shown
from refimpl.data import archives, mnist
from refimpl.data.archives import Member
from refimpl.data.class_names import composed, listing, same
from refimpl.data.image_folder import (
    Array,
    FolderArray,
    Pictures,
    Progress,
    Workers,
    in_memory,
    left,
    subset,
)
from refimpl.data.images import SUFFIXES, decode, odd_suffix, suffixes_of
from refimpl.data.preprocessing import Preprocessing
from refimpl.machine import cpus

SPLITS = ("train", "test")
MAPS = ("images", "annotations")  # folders of a data set of label maps: segmentation.py
FOLDERS = {"train": "train", "test": "test", "val": "test"}  # name -> the split that is in it
ARRAY_BYTES = 2**30  # of a folder's pixels; where there are more, images are read on demand
MAX_BYTES = 10**9  # of an archive's, read in its own order and then sorted, or of idx files'
MAX_WORKERS = 16  # where the caller names no number


class Dataset(NamedTuple):
    """Images as a model wants them before they are normalised, with their labels."""

    images: Array  # uint8 (n, H, W) or (n, H, W, 3), ordered by path; in memory or on demand
    labels: Array  # int64 (n,), index into class_names; or a map an image: segmentation.py
    class_names: tuple[str, ...]
    split: str | None  # name of its folder; None: the data set has no splits
    broken: tuple[str, ...] = ()  # of each image that was left out: which it is, what is wrong
    notes: tuple[str, ...] = ()  # what else a user should know: a line each
    files: tuple[FolderArray, ...] = ()  # of a folder: the images, and label maps, on demand

    def spread(self, count: int) -> "Dataset":
        """`count` images evenly spread over the data set, all where it has no more."""
        if count >= len(self.images):
            return self
        chosen = _spread(len(self.images), count)
        images, labels = (subset(array, chosen) for array in (self.images, self.labels))
        files = tuple(array.subset(chosen) for array in self.files)
        return self._replace(images=images, labels=labels, files=files)

    def source(self) -> str | None:
        """What tells a folder's images and labels from others, in memory and on demand alike.

        SHA-256 of the names and sizes of the files, of how they are read, and of the classes; None
        where there is no folder.
        """
        if not self.files:
            return None
        listings = [array.listing() for array in self.files]
        labels = [self.labels] if len(self.files) == 1 else []  # else they are files
        return hashlib.sha256(b"".join(map(bytes, [*listings, *labels]))).hexdigest()


class Listing(NamedTuple):
    """The images of a split, in the order of their names."""

    names: list[str]
    labels: np.ndarray  # int64 (n,)
    class_names: tuple[str, ...]
    split: str | None
    notes: tuple[str, ...] = ()
    files: int = 0  # of the whole data set, of any kind, where they were counted


def load(
    path: str | Path,
    split: str,
    preprocessing: Preprocessing,
    progress: Progress = lambda count: None,
    *,
    workers: int | None = None,
    skip_broken: bool = False,
    limit: int | None = None,
) -> Dataset:
    """Split "train" or "test" of the data set at `path`, cropped and resized by `preprocessing`.

    progress: called with the number of images that were just decoded.
    workers: read the images of a folder on demand, in so many processes; 0: in this one. Without
        it that is done where they would take more than ARRAY_BYTES, with a process a CPU.
    skip_broken: leave out images that cannot be decoded. To find them, all are decoded before any
        is used: which ones are left depends on the files and on nothing else.
    limit: so many images at most, evenly spread over the split, the broken ones among them.
    DataError names what is missing, broken or not arranged as above; ConfigError for a number of
    workers or images that is none.
    """
    if split not in SPLITS:
        raise DataError(f"split is {split!r}, expected {' or '.join(SPLITS)}")
    require_counts(limit, workers)
    path = Path(path)
    idx_files = mnist.found_in(path)
    if workers is not None and (idx_files or path.is_file()):
        found = "idx files" if idx_files else "an archive"
        raise DataError(f"{path}: found {found}, expected class folders for workers to read from")
    if idx_files:
        return _of_idx(path, split, preprocessing, limit)
    names = _Names(path, split)
    members = (member for member in archives.members(path) if names.add(member.name))
    if path.is_dir() or limit is not None:
        for _ in members:  # names only: which images are chosen is known after the last
            pass
        listing = names.listing(limit)
    if not path.is_dir():
        if limit is not None:
            chosen = set(listing.names)
            members = (member for member in archives.members(path) if member.name in chosen)
        found, broken = _read(path, members, preprocessing, progress, skip_broken)
        listing = names.listing(limit)
        faults = {i: broken[name] for i, name in enumerate(listing.names) if name in broken}
        return _dataset(
            path, listing, faults, lambda kept: np.stack([found[listing.names[i]] for i in kept])
        )
    reader = Pictures(path, preprocessing)
    count = processes(workers, len(listing.names) * math.prod(reader.shape))
    images = FolderArray(reader, listing.names, Workers(count or 0))
    faults = images.workers.faults(reader.read, listing.names, progress) if skip_broken else {}
    if count is None:
        data = _dataset(
            path, listing, faults, lambda kept: in_memory([images.subset(kept)], progress)[0]
        )
    else:
        data = _dataset(path, listing, faults, images.subset)
    kept = left(path, len(listing.names), faults)
    return data._replace(files=(images.subset(kept),))


def _of_idx(path: Path, split: str, preprocessing: Preprocessing, limit: int | None) -> Dataset:
    """MNIST's layout; images are chosen before they are resized."""
    images, labels = mnist.load(path, split)
    data = Dataset(images, labels, mnist.CLASS_NAMES, split).spread(limit or len(images))
    room = MAX_BYTES // math.prod(preprocessing.shape)
    if len(data.images) > room:
        raise _no_room(path, room, preprocessing)
    return data._replace(images=preprocessing.pixels_array(data.images))


def _no_room(path: Path, room: int, preprocessing: Preprocessing) -> DataError:
    height, width = preprocessing.size
    return DataError(
        f"{path}: more than {room} images, the most that {MAX_BYTES / 1e9:g} GB hold at "
        f"{height} x {width} pixels; a limit takes fewer, a folder is read on demand"
    )


def listed(path: str | Path, split: str, limit: int | None = None) -> Listing:
    """Find the images of a split of class folders, in a folder or an archive; none is decoded.

    Errors and `limit` as in `load`.
    """
    require_counts(limit)
    path = Path(path)
    names, files = _Names(path, split), 0
    for member in archives.members(path):
        names.add(member.name)
        files += 1
    return names.listing(limit)._replace(files=files)


def processes(workers: int | None, size: int) -> int | None:
    """How many read a folder on demand whose pixels take `size` bytes, see `load`; None: memory."""
    if workers is None and size > ARRAY_BYTES:
        return min(cpus(), MAX_WORKERS)
    return workers


def require_counts(
    limit: int | None = None, workers: int | None = None, batch_size: int | None = None
) -> None:
    """ConfigError unless limit and batch size are whole numbers from 1 on, workers from 0 on."""
    counts = (("limit", limit, 1), ("workers", workers, 0), ("batch_size", batch_size, 1))
    for name, value, least in counts:
        if value is None:
            continue
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ConfigError(f"{name} is {value!r}, expected a whole number of at least {least}")


def require_classes(path: str | Path, found: Sequence[str], expected: Sequence[str]) -> None:
    """DataError unless a data set's class names are those of the model, in the same order."""
    if not same(found, expected):
        raise DataError(
            f"{path}: found {listing(found)}, expected those of the model, {listing(expected)}"
        )


class _Place(NamedTuple):
    """Where a path stands: PREFIX / [SPLIT /] CLASS / IMAGE."""

    prefix: tuple[str, ...]
    split: str | None
    class_name: str


class _Names:
    """What the names of a data set's files tell, one file after the other."""

    def __init__(self, path: Path, split: str):
        self._path = path
        self._split = split
        self._first: tuple[str, _Place] | None = None  # all others must be arranged like it
        self._classes: dict[str, str] = {}  # each name once in memory, whatever the files
        self._class_of: dict[str, str] = {}  # of the images of the split
        self._folder: str | None = None  # of the split
        self._folders: set[str] = set()  # every name of one
        self._others: Counter[tuple[str, str]] = Counter()  # (folder, odd suffix) of files

    def add(self, name: str) -> bool:
        """Whether a file is an image of the split."""
        if os.path.splitext(name)[1].lower() not in SUFFIXES:
            folder, file = os.path.split(name)
            if (suffix := odd_suffix(file)) is not None:
                self._others[folder, suffix] += 1
            return False
        place = self._place(name)
        class_name = self._class(place.class_name)
        if place.split is not None and FOLDERS[place.split] != self._split:
            return False
        if self._class_of and place.split != self._folder:
            raise DataError(
                f"{self._path}: found both {place.split} and {self._folder}, expected one of them"
            )
        self._folder = place.split
        self._class_of[name] = class_name
        return True

    def listing(self, limit: int | None) -> Listing:
        """All images of the split, or `limit` of them; DataError where there is none."""
        if not self._class_of:
            found = f"a {self._first[1].split} split only" if self._first else "no image"
            if not self._first and self._others:
                found += f", only files of other suffixes: {suffixes_of(self._suffixes(None))}"
            wanted = f"[{self._split}/]CLASS/IMAGE, or MNIST's idx files"
            raise DataError(f"{self._path}: found {found}, expected {wanted}")
        if self._folder is None and FOLDERS.keys() >= set(self._classes.values()):
            raise DataError(
                f"{self._path}: {min(self._class_of)} lies in a split and in no class folder, "
                "expected [train/]CLASS/IMAGE"
            )
        names = sorted(self._class_of)
        notes = self._notes(len(names))
        if limit is not None:
            names = [names[i] for i in _spread(len(names), min(limit, len(names)))]
        class_names = tuple(sorted(set(self._classes.values())))
        number = {name: i for i, name in enumerate(class_names)}
        labels = np.array([number[self._class_of[name]] for name in names], np.int64)
        return Listing(names, labels, class_names, self._folder, notes)

    def _class(self, folder: str) -> str:
        if folder not in self._classes:
            name = composed(folder)
            if shown(name) != name:
                raise DataError(
                    f"{self._path}: the class folder {name} is no printable UTF-8 text, expected a "
                    "name that a model's file can hold"
                )
            self._classes[folder] = name
        return self._classes[folder]

    def _notes(self, count: int) -> tuple[str, ...]:
        notes = []
        if others := self._suffixes(self._first[1]):
            notes.append(
                f"{self._path}: files without the suffix of an image, not read: "
                f"{suffixes_of(others)}"
            )
        if self._folder is None and self._split == "test":
            notes.append(
                f"{self._path}: no folders train and test: all {count:,} images are evaluated, "
                "those of a training among them"
            )
        return tuple(notes)

    def _suffixes(self, image: _Place | None) -> Counter[str]:
        """How many other files lie where images of the split may, or anywhere, by suffix."""
        found: Counter[str] = Counter()
        for (folder, suffix), count in self._others.items():
            if image is None or _like(_placed(folder.split("/")), image, self._folder):
                found[suffix] += count
        return found

    def _place(self, name: str) -> _Place:
        *folders, _ = name.split("/")
        self._folders.update(folders)
        if self._folders.issuperset(MAPS):
            raise DataError(
                f"{self._path}: found images/ and annotations/, label maps for a segmenter such as "
                "segmenter_didb_micro; a classifier expects [train/]CLASS/IMAGE, or MNIST's idx "
                "files"
            )
        if not folders:
            expected = f"an image in no class folder, expected CLASS/{name}"
            raise DataError(f"{self._path}: {name}: {expected}")
        found = _placed(folders)
        if self._first is None:
            self._first = name, found
        first, expected = self._first
        if found.prefix != expected.prefix or (found.split is None) != (expected.split is None):
            raise DataError(
                f"{self._path}: {name} is not arranged as {first}, expected all images as "
                "CLASS/IMAGE or as train/CLASS/IMAGE and test/CLASS/IMAGE"
            )
        return found


def _placed(folders: Sequence[str]) -> _Place:
    *folders, class_name = folders
    split = folders.pop() if folders and folders[-1] in FOLDERS else None
    return _Place(tuple(folders), split, class_name)


def _like(found: _Place, image: _Place, split: str | None) -> bool:
    return found.prefix == image.prefix and found.split == split and found.class_name != ""


def _read(
    path: Path,
    members: Iterable[Member],
    preprocessing: Preprocessing,
    progress: Progress,
    skip_broken: bool,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Pixels by name, and what is wrong by name of the images that have none.

    Where a name comes several times, the last file of it counts.
    """
    images: dict[str, np.ndarray] = {}
    broken: dict[str, str] = {}
    copies: Counter[str] = Counter()
    room = MAX_BYTES // math.prod(preprocessing.shape)
    for member in members:
        copies[member.name] += 1
        images.pop(member.name, None)
        broken.pop(member.name, None)
        try:
            image = decode(member.read(), f"{path}: {member.name}")
            images[member.name] = preprocessing.pixels(image)
        except DataError as error:
            if not skip_broken and _is_last(path, member.name, copies[member.name]):
                raise
            broken[member.name] = str(error)
        progress(1)
        if len(images) > room:
            raise _no_room(path, room, preprocessing)
    return images, broken


def _is_last(path: Path, name: str, copy: int) -> bool:
    """Whether no other file of a name follows in an archive, or none that can be reached."""
    try:
        return sum(member.name == name for member in archives.members(path)) == copy
    except DataError:
        return True


def _dataset(
    path: Path,
    listing: Listing,
    faults: Mapping[int, str],
    images: Callable[[np.ndarray], Array],
) -> Dataset:
    """The images without faults; `images` makes them from their places in the listing."""
    kept = left(path, len(listing.names), faults)
    labels = listing.labels[kept]
    left_out = tuple(faults.values())
    return Dataset(
        images(kept), labels, listing.class_names, listing.split, left_out, listing.notes
    )


def _spread(count: int, chosen: int) -> np.ndarray:
    """`chosen` of `count` indices, evenly spread."""
    return np.arange(chosen) * count // chosen
