"""Images to a class for every pixel:

    refimpl.segmenter("segmenter.safetensors")("street.jpg").labels

Images have any size. Where they are larger than the model's, windows of its size slide over them
and their logits are averaged; smaller ones are enlarged first [SPEC 10].
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refimpl import metrics
from refimpl.classifier import Picture, compute, opened, read, ready
from refimpl.conventions import ModelFileError, cpus
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import VisionTransformer
from refimpl.ops import interpolate

if TYPE_CHECKING:  # it imports archives, which an answer for an image does not need
    from refimpl.data.segmentation import SegmentationFolder

WINDOWS = 8  # computed at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """The answer for one image."""

    labels: np.ndarray = dataclasses.field(repr=False)  # uint8 (H, W), index into class_names
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    warning: str | None = None  # in words, what sets the image apart from those of the training

    def shares(self) -> dict[int, float]:
        """Label -> part of the image, 0 to 1, of the labels that occur, the largest first."""
        labels, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {int(labels[i]): float(counts[i] / self.labels.size) for i in order}


@dataclasses.dataclass(frozen=True)
class SegmentationEvaluation:
    """How well the pixels of a data set are told apart; fractions from 0 to 1 [SPEC 10]."""

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
    """A trained segmenter: the stem of a shipped file, or a path. As `refimpl.classifier`.

    image_size: (H, W), or the side of a square, of a window instead of the model's own size.
    """
    file = read(name_or_path, backend)
    if file.model.config.task != "segmentation":
        raise ModelFileError(f"{file.path}: a classifier of whole images, expected a segmenter")
    model, params, preprocessing, class_names, engine = ready(file, backend, image_size)
    if preprocessing.crop != 1:
        raise ModelFileError(
            f"{file.path}: preprocessing: crop is {preprocessing.crop}, expected 1 in a segmenter"
        )
    return Segmenter(model, params, preprocessing, class_names, engine)


class Segmenter:
    """A model with its parameters, its preprocessing and the names of its classes."""

    def __init__(
        self,
        model: VisionTransformer,
        params: Mapping[str, Any] | None,  # None of a packed file
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        engine: Callable[[np.ndarray], np.ndarray] | None = None,  # None: the NumPy reference
    ):
        self.model = model
        self.params = params
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.engine = engine

    def __call__(self, image: Picture) -> Segmentation:
        """A path, PIL image or uint8 array (H, W), (H, W, 3) -> the class of each of its pixels.

        DataError names what is not an image.
        """
        picture = opened(image)
        warning = self.preprocessing.unlike(self.preprocessing.unsized(picture))
        return Segmentation(self._labels(picture), self.class_names, warning)

    def logits(self, image: Picture) -> np.ndarray:
        """Of every pixel, (classes, H, W), the image's own size: 4 bytes a class and pixel."""
        picture = opened(image)
        pixels = self.preprocessing.unsized(picture)  # (H, W) or (H, W, 3)
        size, window = pixels.shape[:2], self.model.config.image_size
        covering = covering_size(size, window)
        if covering != size:
            large = Image.fromarray(pixels).resize(covering[::-1], Image.Resampling.BILINEAR)
            pixels = np.asarray(large)
        return interpolate.forward(self._slide(pixels), size, "bilinear")[0]

    def evaluate(
        self,
        folder: SegmentationFolder,
        progress: Callable[[int], object] = lambda count: None,
        *,
        workers: int = 0,
    ) -> SegmentationEvaluation:
        """Metrics over all pairs, each at its own size; no more than a few are in memory.

        `progress` is called with the number of images that are done. workers: processes that
        decode; 0: this one does. DataError names what is broken, or that there is no label at all.
        """
        from concurrent.futures import ThreadPoolExecutor

        from threadpoolctl import threadpool_limits

        from refimpl.data.image_folder import Workers, map_ahead
        from refimpl.data.segmentation import Pair

        classes = len(self.class_names)

        confusion = np.zeros((classes, classes), np.int64)
        start = time.perf_counter()
        threads = cpus() if self.engine is None else 1  # the engine has threads of its own
        read = functools.partial(Pair.read, classes=folder.classes)
        pairs = Workers(workers).map(read, folder.pairs, ahead=0)
        with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
            for counts in map_ahead(pool, lambda pair: self.confusion(*pair), pairs, threads):
                confusion += counts
                progress(1)
        return self.evaluation(confusion, len(folder.pairs), time.perf_counter() - start)

    def confusion(self, image: Image.Image, labels: np.ndarray) -> np.ndarray:
        """Compare the answer for an image with its labels, uint8 (H, W): a confusion matrix."""
        return metrics.confusion_matrix(labels, self._labels(image), len(self.class_names))

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

    def _labels(self, picture: Image.Image) -> np.ndarray:
        return self.logits(picture).argmax(axis=0).astype(np.uint8)

    def _slide(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W[, 3]), no side shorter than the window -> logits (classes, H, W)."""
        window = self.model.config.image_size
        places = list(windows(pixels.shape[:2], window))
        total, covered = 0, np.zeros(pixels.shape[:2], np.int64)
        for first in range(0, len(places), WINDOWS):
            some = places[first : first + WINDOWS]
            cut = np.stack([pixels[place] for place in some])
            x = self.preprocessing.normalise(cut)
            logits = compute("segmenter", self.model, self.params, self.engine, x)
            if len(places) == 1:
                return logits[0]
            if first == 0:
                total = np.zeros((logits.shape[1], *pixels.shape[:2]), logits.dtype)
            for place, part in zip(some, logits, strict=True):
                total[:, place[0], place[1]] += part
                covered[place] += 1
        total /= covered.astype(total.dtype)
        return total


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
    """Places of the sliding window, row by row; each overlaps the next by a third at least."""
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
