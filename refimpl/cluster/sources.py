"""Where the labelled images of a split lie, and how a worker reads some of them.

    Folder     class folders, each file read when it is asked for
    Archive    a tar or zip of such folders; a compressed tar is unpacked to one temporary file
    Idx        MNIST's idx files, read as a whole
    Maps       images and annotations, for a segmenter

`find` lists the items on the client, by names alone; a worker reads some of them. Where workers do
not see the files, the client reads their content and a worker decodes it.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import itertools
import lzma
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from refimpl.cluster import workers
from refimpl.conventions import ClusterError, DataError
from refimpl.data import archives, class_names, datasets, mnist, segmentation
from refimpl.data.images import decode
from refimpl.data.preprocessing import Preprocessing

# First bytes of what can be read forwards only.
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


class Source(Protocol):
    """Reads items of a data set, in any process and in several threads."""

    path: Path  # absolute

    def read(self, item: Any) -> Any:
        """Read what the model is asked: pixels uint8 of `Preprocessing.pixels`, or the image and
        the labels of `Pair.read`. DataError names the file where it is broken, ClusterError where
        it is not there at all.
        """

    def content(self, item: Any) -> Any:
        """Read an item where its file is, to be decoded elsewhere; errors as in `read`."""

    def decode(self, item: Any, content: Any) -> Any:
        """Do what `read` does with what `content` gave; errors as in `read`."""


class Listed(NamedTuple):
    """A split: its source and its items, in the order of one machine."""

    source: Source
    items: list[Any]
    labels: np.ndarray | None  # int64 (n,); None: an item has labels of its own
    class_names: tuple[str, ...]
    split: str | None  # name of its folder; None: the data set has no splits


class Folder:
    """Class folders; items are names of files relative to it."""

    def __init__(self, path: Path, preprocessing: Preprocessing):
        self.path, self.preprocessing = path, preprocessing

    def content(self, name: str) -> bytes:
        require_seen(self.path / name)
        return archives.read_file(self.path / name)

    def decode(self, name: str, content: bytes) -> np.ndarray:
        return self.preprocessing.pixels(decode(content, f"{self.path}: {name}"))

    def read(self, name: str) -> np.ndarray:
        return self.decode(name, self.content(name))


class Archive(Folder):
    """A tar or zip; items are the names of its members."""

    def __init__(self, path: Path, preprocessing: Preprocessing, files: int):
        super().__init__(path, preprocessing)
        self.files = files  # that it holds
        self._lock = threading.Lock()
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        names = ("path", "preprocessing", "files")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def content(self, name: str) -> bytes:
        with self._lock:  # the members of an archive share one file and its position
            if self._opened is None:
                self._opened = _Opened(self.path, self.files)
            return self._opened.read(name)


class _Opened:
    """The members of an archive that stays open, to be read in any order."""

    def __init__(self, path: Path, files: int):
        self.path, self.plain = path, path
        if unpack := _unpacker(path):
            self._file = tempfile.NamedTemporaryFile(suffix=".tar", dir=workers.scratch())  # noqa: SIM115
            self.plain = Path(self._file.name)
            self._unpack(unpack)
        # a generator that stops at its last member has not closed the archive yet
        self._open = archives.members(self.plain)
        try:
            self._found = {m.name: m for m in itertools.islice(self._open, files)}
        except DataError as error:
            raise self._named(error) from None

    def read(self, name: str) -> bytes:
        if name not in self._found:
            raise ClusterError(f"{self.path}: has no {name}, expected the archive of the client")
        try:
            return self._found[name].read()
        except DataError as error:
            raise self._named(error) from None

    def _named(self, error: DataError) -> DataError:
        return DataError(str(error).replace(str(self.plain), str(self.path)))

    def _unpack(self, unpack: Any) -> None:
        try:
            with unpack(self.path) as packed:
                shutil.copyfileobj(packed, self._file, 2**20)
            self._file.flush()
        except (OSError, EOFError, lzma.LZMAError) as error:
            what = getattr(error, "strerror", None) or error
            where = f"cannot be unpacked to {self.plain.parent}"
            raise DataError(f"{self.path}: {where}: {what}") from None


class Idx:
    """MNIST's idx files; items are places among the images that are asked for."""

    def __init__(self, path: Path, preprocessing: Preprocessing, split: str, limit: int | None):
        self.path, self.preprocessing, self.split, self.limit = path, preprocessing, split, limit

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_images"}

    @functools.cached_property
    def _images(self) -> np.ndarray:
        require_seen(self.path)
        return datasets.load(self.path, self.split, self.preprocessing, limit=self.limit).images

    def content(self, place: int) -> np.ndarray:
        return self._images[place]

    def decode(self, place: int, content: np.ndarray) -> np.ndarray:
        return content

    def read(self, place: int) -> np.ndarray:
        return self._images[place]


class Maps:
    """Images with annotations; items are pairs."""

    def __init__(self, path: Path, classes: segmentation.Classes):
        self.path, self.classes = path, classes

    def content(self, pair: segmentation.Pair) -> tuple[bytes, bytes]:
        for path in pair:
            require_seen(path)
        return archives.read_file(pair.image), archives.read_file(pair.annotation)

    def decode(
        self, pair: segmentation.Pair, content: tuple[bytes, bytes]
    ) -> tuple[Image.Image, np.ndarray]:
        # through files of the same names, since a pair is read from its files
        with tempfile.TemporaryDirectory(dir=workers.scratch()) as folder:
            paths = [Path(folder, *path.parts[1:]) for path in pair]
            for path, data in zip(paths, content, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            try:
                return segmentation.Pair(*paths).read(self.classes)
            except DataError as error:
                raise DataError(str(error).replace(folder, "")) from None

    def read(self, pair: segmentation.Pair) -> tuple[Image.Image, np.ndarray]:
        for path in pair:
            require_seen(path)
        return pair.read(self.classes)


def find(
    data: Path,
    split: str,
    preprocessing: Preprocessing,
    *,
    maps: bool,
    limit: int | None = None,
    names: Path | None = None,
) -> Listed:
    """List a split by names alone; errors as in `datasets.load` and `segmentation.find`.

    maps: for a segmenter. names: the file of class names, or of the list of classes.
    """
    if maps:
        found = segmentation.find(data.absolute(), split, names, limit)
        source = Maps(data.absolute(), found.classes)
        return Listed(source, list(found.pairs), None, found.classes.names, found.split)
    if mnist.found_in(data):
        dataset = datasets.load(data, split, preprocessing, limit=limit)
        source = Idx(data.absolute(), preprocessing, split, limit)
        items = list(range(len(dataset.images)))
        return Listed(source, items, dataset.labels, dataset.class_names, dataset.split)
    listing = datasets.listed(data, split, limit)
    called = listing.class_names if names is None else class_names.apply(names, listing.class_names)
    if data.is_dir():
        source = Folder(data.absolute(), preprocessing)
    else:
        source = Archive(data.absolute(), preprocessing, listing.files)
    return Listed(source, listing.names, listing.labels, called, listing.split)


def require_seen(path: Path) -> None:
    """ClusterError where there is nothing at a path at which the client found something."""
    if not os.path.lexists(path):
        raise ClusterError(f"{path}: no such file, expected those that the client sees")


def _unpacker(path: Path) -> Any:
    """What opens a compressed file for reading; None of one that is not."""
    with open(path, "rb") as file:
        first = file.read(max(map(len, _COMPRESSED)))
    return next((u for magic, u in _COMPRESSED.items() if first.startswith(magic)), None)
