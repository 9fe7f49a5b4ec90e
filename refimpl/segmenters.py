"""Images to a class for every pixel:

    refimpl.segmenter("segmenter.safetensors")("street.jpg").labels

Images have any size. Where they are larger than the model's, windows of its size slide over them
and their logits are averaged; smaller ones are enlarged first [SPEC 10]. Logits are made and used
band by band, from top to bottom: their memory is that of a row of windows, whatever the image.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from refimpl import metrics
from refimpl.choice import Work
from refimpl.conventions import DataError, ModelFileError
from refimpl.machine import cpus
from refimpl.ops import interpolate
from refimpl.predictors import Picture, Predictor, opened, read, ready, some, told

if TYPE_CHECKING:  # it imports archives, which an answer for an image does not need
    from refimpl.data.segmentation import SegmentationFolder

WINDOWS = 8  # computed at a time, at most
WINDOW_BYTES = 2**29  # of the logits of those
BAND_BYTES = 2**30  # of the logits of a band; where it has more, it is divided into strips
IMAGES_BYTES = 2**32  # of the bands of images that are computed side by side
ENLARGED = 64  # windows: an enlarged image has no more pixels than that many have

Part = tuple[slice, slice, np.ndarray]  # rows and columns of an image, their logits


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer for one image.

    >>> Segmentation(np.array([[0, 1], [1, 1]], np.uint8), ("sky", "road")).shares()
    {1: 0.75, 0: 0.25}
    """

    labels: np.ndarray  # uint8 (H, W), index into class_names
    class_names: tuple[str, ...]
    warning: str | None = None  # in words, what sets the image apart from those of the training

    def __repr__(self) -> str:
        names, (height, width) = self.class_names, self.labels.shape
        shares = some([f"{names[label]} {share:.0%}" for label, share in self.shares().items()])
        return f"Segmentation({height} x {width}: {shares}, warning={self.warning!r})"

    def shares(self) -> dict[int, float]:
        """Label -> part of the image, 0 to 1, of the labels that occur, the largest first."""
        labels, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {int(labels[i]): float(counts[i] / self.labels.size) for i in order}


@dataclasses.dataclass(frozen=True)
class SegmentationEvaluation:
    """How well the pixels of a data set are told apart; fractions from 0 to 1 [SPEC 10].

    >>> counts = np.zeros((11, 11), np.int64)
    >>> counts[0, :2] = 3, 1  # of the 4 pixels of class 0 one was taken for class 1
    >>> found = segmenter("segmenter_didb_scenes").evaluation(counts, count=1, seconds=0.5)
    >>> found.mean_iou, found.per_class_iou["1"]
    (0.75, None)
    """

    count: int  # images
    labelled_pixels: int
    mean_iou: float  # over the classes that the labels have
    pixel_accuracy: float
    per_class_iou: dict[str, float | None]  # None: the labels have no such class
    per_class_pixels: dict[str, int]  # of the labels
    images_per_second: float
    confusion: list[list[int]]  # rows: labels, columns: predictions


def segmenter(
    name_or_path: str | PathLike,
    backend: str = "auto",
    image_size: int | tuple[int, int] | None = None,
) -> Segmenter:
    """Make a trained segmenter ready: the stem of a shipped file, or a path to a file.

    backend: as of `refimpl.classifier`, and errors. image_size: (H, W), or the side of a square, of
    a window instead of the model's own size.

    >>> found = segmenter("segmenter_didb_scenes")(np.zeros((56, 80), np.uint8))
    >>> found.labels.shape, found.class_names[found.labels[0, 0]]
    ((56, 80), 'background')
    """
    file = read(name_or_path, backend)
    if file.model.config.task != "segmentation":
        raise ModelFileError(f"{file.path}: a classifier of whole images, expected a segmenter")
    model, params, preprocessing, class_names, chosen = ready(file, backend, image_size)
    if preprocessing.crop != 1:
        raise ModelFileError(
            f"{file.path}: preprocessing: crop is {preprocessing.crop}, expected 1 in a segmenter"
        )
    return Segmenter(model, params, preprocessing, class_names, chosen)


class Segmenter(Predictor):
    """A model with its parameters, its preprocessing and the names of its classes.

    >>> segmenter("segmenter_didb_scenes").logits(np.zeros((56, 80), np.uint8)).shape
    (11, 56, 80)
    """

    def __call__(self, image: Picture, name: str | None = None) -> Segmentation:
        """A path, PIL image or uint8 array (H, W), (H, W, 3) -> the class of each of its pixels.

        name: what an error calls the image; without it its path, or "image". DataError names what
        is not an image, or so narrow that it would be enlarged beyond ENLARGED windows.
        """
        picture = opened(image)
        pixels = self.preprocessing.unsized(picture)
        labels = np.empty(pixels.shape[:2], np.uint8)
        for rows, columns, logits in self._parts(pixels, name or _name(image)):
            labels[rows, columns] = logits.argmax(axis=0)
        warning = told(self.preprocessing.judged(picture), self.class_names, self.model.config)
        return Segmentation(labels, self.class_names, warning or self.caution)

    def logits(self, image: Picture) -> np.ndarray:
        """Of every pixel, (classes, H, W), the image's own size: 4 bytes a class and pixel."""
        pixels = self.preprocessing.unsized(opened(image))  # (H, W) or (H, W, 3)
        parts = self._parts(pixels, _name(image))
        whole: np.ndarray | None = None
        for rows, columns, logits in parts:
            if whole is None:
                whole = np.empty((len(logits), *pixels.shape[:2]), logits.dtype)
            whole[:, rows, columns] = logits
        return whole

    def evaluate(
        self,
        folder: SegmentationFolder,
        progress: Callable[[int], object] = lambda count: None,
        *,
        workers: int = 0,
    ) -> SegmentationEvaluation:
        """Metrics over all pairs, each at its own size; no more than a few are in memory.

        `progress` is called with the number of images that are done. workers: processes that
        decode; 0: this one does. DataError names what is broken, or that there is no label at all,
        or that the data have other classes than the model.
        """
        from concurrent.futures import ThreadPoolExecutor

        from threadpoolctl import threadpool_limits

        from refimpl.data.datasets import require_classes
        from refimpl.data.image_folder import Workers, map_ahead
        from refimpl.data.segmentation import Pair

        classes = len(self.class_names)
        require_classes("the data", folder.classes.names, self.class_names)

        def count(given: tuple[Pair, tuple[Image.Image, np.ndarray]]) -> np.ndarray:
            pair, (image, labels) = given
            return self.confusion(image, labels, str(pair.image))

        confusion = np.zeros((classes, classes), np.int64)
        self.expect(Work(len(folder.pairs), len(folder.pairs), cpus()))  # a window each, at least
        start = time.perf_counter()
        threads = self._side_by_side()
        read = functools.partial(Pair.read, classes=folder.classes)
        pairs = zip(folder.pairs, Workers(workers).map(read, folder.pairs, ahead=0), strict=True)
        with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
            for counts in map_ahead(pool, count, pairs, ahead=threads):
                confusion += counts
                progress(1)
        return self.evaluation(confusion, len(folder.pairs), time.perf_counter() - start)

    def confusion(self, image: Image.Image, labels: np.ndarray, name: str) -> np.ndarray:
        """Compare the answer for an image with its labels, uint8 (H, W): a confusion matrix.

        name: what an error calls the image. DataError for labels of another size.
        """
        classes = len(self.class_names)
        found = np.zeros((classes, classes), np.int64)
        pixels = self.preprocessing.unsized(image)
        if labels.shape != pixels.shape[:2]:
            raise DataError(f"{name}: labels are {labels.shape}, expected {pixels.shape[:2]}")
        for rows, columns, logits in self._parts(pixels, name):
            found += metrics.confusion_matrix(labels[rows, columns], logits.argmax(axis=0), classes)
        return found

    def evaluation(
        self, confusion: np.ndarray, count: int, seconds: float
    ) -> SegmentationEvaluation:
        """Make metrics of the confusion matrix of `count` images, which took so many seconds.

        DataError where no pixel is labelled.
        """
        iou = metrics.iou(confusion).tolist()
        return SegmentationEvaluation(
            count=count,
            labelled_pixels=int(confusion.sum()),
            mean_iou=metrics.mean_iou(confusion),
            pixel_accuracy=metrics.pixel_accuracy(confusion),
            per_class_iou={
                name: None if np.isnan(value) else value
                for name, value in zip(self.class_names, iou, strict=True)
            },
            per_class_pixels=dict(
                zip(self.class_names, confusion.sum(axis=1).tolist(), strict=True)
            ),
            images_per_second=count / seconds,
            confusion=confusion.tolist(),
        )

    def _side_by_side(self) -> int:
        """How many images are computed at the same time."""
        height, width = self.model.config.image_size
        band = min(BAND_BYTES, self._bytes((height, WINDOWS * width)))
        return max(1, min(self.threads, IMAGES_BYTES // band))

    def _bytes(self, size: tuple[int, int]) -> int:
        """Of the logits of so many rows and columns."""
        return self.dtype.itemsize * self.model.config.num_classes * size[0] * size[1]

    def _parts(self, pixels: np.ndarray, name: str) -> Iterator[Part]:
        """uint8 (H, W[, 3]) -> the logits of all its pixels, a part at a time.

        The parts are bands from top to bottom, of one strip of columns after the other.
        """
        size, window = pixels.shape[:2], self.model.config.image_size
        covering = covering_size(size, window)
        if covering == size:
            for columns in _strips(size[1], self._bytes((window[0], size[1])), BAND_BYTES):
                for rows, logits in self._bands(pixels, columns):
                    yield rows, columns, logits
            return
        if covering[0] * covering[1] > ENLARGED * window[0] * window[1]:
            raise DataError(
                f"{name}: {size[1]} x {size[0]} pixels would be enlarged to {covering[1]} x "
                f"{covering[0]}; expected no more than {ENLARGED} windows of {window[1]} x "
                f"{window[0]}"
            )
        large = Image.fromarray(pixels).resize(covering[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(large)
        first, second, share = interpolate.between(covering[1], size[1])
        # a quarter, since what becomes smaller is there several times
        for columns in _strips(size[1], self._bytes((window[0], covering[1])), BAND_BYTES // 4):
            source = slice(int(first[columns][0]), int(second[columns][-1]) + 1)
            places = (first[columns] - source.start, second[columns] - source.start, share[columns])
            bands = (
                (rows, _mixed(logits, *places, axis=2))
                for rows, logits in self._bands(pixels, source)
            )
            for rows, logits in _rows_of(bands, covering[0], size[0]):
                yield rows, columns, logits

    def _bands(self, pixels: np.ndarray, columns: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """Mean logits of some columns, (classes, rows, columns): band by band, no row twice.

        pixels: uint8 (H, W[, 3]), no side shorter than the window. A band is all that the next row
        of windows does not touch; it is good until the next one is asked for.
        """
        window, size = self.model.config.image_size, pixels.shape[:2]
        touching = [
            place
            for place in windows(size, window)
            if place[1].start < columns.stop and place[1].stop > columns.start
        ]
        found = self._windows(pixels, touching)
        side_by_side = [list(row) for _, row in itertools.groupby(touching, lambda place: place[0])]
        ends = [*(row[0][0].start for row in side_by_side[1:]), size[0]]
        total, covered = None, np.zeros((window[0], columns.stop - columns.start), np.int64)
        for row, end in zip(side_by_side, ends, strict=True):
            for _, across in row:
                part = next(found)  # (classes, h, w)
                if total is None:
                    total = np.zeros((len(part), *covered.shape), part.dtype)
                start, stop = max(across.start, columns.start), min(across.stop, columns.stop)
                place = slice(start - columns.start, stop - columns.start)
                total[:, :, place] += part[:, :, start - across.start : stop - across.start]
                covered[:, place] += 1
            top = row[0][0].start
            done = end - top
            total[:, :done] /= covered[:done].astype(total.dtype)
            yield slice(top, end), total[:, :done]
            for array in (total, covered[None]):
                array[:, : window[0] - done] = array[:, done:]
                array[:, window[0] - done :] = 0

    def _windows(
        self, pixels: np.ndarray, places: Sequence[tuple[slice, slice]]
    ) -> Iterator[np.ndarray]:
        """Logits (classes, h, w) of the window at each place, some computed at a time."""
        size = self._bytes(self.model.config.image_size)
        count = max(1, min(WINDOWS, WINDOW_BYTES // size))
        self.expect(Work(len(places), -(-len(places) // count)))
        for first in range(0, len(places), count):
            cut = np.stack([pixels[place] for place in places[first : first + count]])
            x = self.preprocessing.normalise(cut)
            yield from self.compute(x)


def _name(image: Picture) -> str:
    return str(image) if isinstance(image, (str, PathLike)) else "image"


def _strips(width: int, size: int, room: int) -> list[slice]:
    """`width` columns, of which `size` bytes are to be held, in strips of at most `room` bytes.

    >>> _strips(10, 100, 100), _strips(10, 250, 100)
    ([slice(0, 10, None)], [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)])
    """
    count = min(width, -(-size // room))
    edges = [i * width // count for i in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _mixed(
    x: np.ndarray, first: np.ndarray, second: np.ndarray, share: np.ndarray, axis: int
) -> np.ndarray:
    """x (classes, H, W) with the entries along an axis mixed, as `interpolate.between` says."""
    share = share.reshape(-1, *[1] * (2 - axis))
    y = x.take(first, axis) * (1 - share).astype(x.dtype)
    y += x.take(second, axis) * share.astype(x.dtype)
    return y


def _rows_of(
    bands: Iterator[tuple[slice, np.ndarray]], inputs: int, outputs: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Bands of `inputs` rows (classes, some, W), from the top -> bands of `outputs` rows."""
    first, second, share = interpolate.between(inputs, outputs)
    done, start, held = 0, 0, None  # outputs that are made; the first input that is held
    for rows, band in bands:
        held = band if held is None else np.concatenate([held, band], axis=1)
        ready = int(np.searchsorted(second, rows.stop))
        if ready > done:
            some = slice(done, ready)
            yield some, _mixed(held, first[some] - start, second[some] - start, share[some], axis=1)
            done = ready
        kept = min(int(first[min(done, outputs - 1)]), rows.stop)
        start, held = kept, held[:, kept - start :].copy()


def covering_size(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """(H, W) -> the smallest size of the same aspect ratio, sides rounded up, in which it fits.

    >>> covering_size((100, 50), (40, 80)), covering_size((100, 90), (40, 80))
    ((160, 80), (100, 90))
    """
    (H, W), (h, w) = size, window
    if h <= H and w <= W:
        return size
    if h * W >= w * H:  # the height needs more
        return h, -(-W * h // H)
    return -(-H * w // W), w


def windows(size: tuple[int, int], window: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Places of the sliding window, row by row; each overlaps the next by a third at least.

    >>> [(rows.start, columns.start) for rows, columns in windows((6, 12), (6, 6))]
    [(0, 0), (0, 3), (0, 6)]
    """
    rows, columns = (_starts(*sides) for sides in zip(size, window, strict=True))
    for top in rows:
        for left in columns:
            yield slice(top, top + window[0]), slice(left, left + window[1])


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin along one side.

    >>> _starts(12, 6), _starts(6, 6)
    ([0, 3, 6], [0])
    """
    stride = -(-2 * window // 3)
    steps = -(-(length - window) // stride)
    return [round(i * (length - window) / max(steps, 1)) for i in range(steps + 1)]
