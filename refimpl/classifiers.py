"""Images to (label, probability), with one line:

    refimpl.classifier("didb_micro_mnist")("seven.png")[0].label

The file of a model says how an image becomes its input and what its classes are called, so no
setting has to be known by whoever asks. To look inside the network take `refimpl.load` instead.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refimpl import metrics
from refimpl.choice import Work
from refimpl.conventions import DataError, ModelFileError
from refimpl.data.preprocessing import Judged
from refimpl.machine import cpus
from refimpl.models import flatten, unflatten
from refimpl.models.params import require_float
from refimpl.ops import softmax
from refimpl.predictors import Picture, Predictor, opened, read, ready, told

if TYPE_CHECKING:  # an answer does not wait for what data sets need
    from refimpl.data.image_folder import Array

BATCH_SIZE = 100
BATCH_BYTES = 2**27  # of a batch as float32, whatever its size
FLOAT = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one image.

    >>> Prediction("b", 0.75, ("a", "b"), np.array([0.25, 0.75])).top(1)
    [('b', 0.75)]
    """

    label: str  # name of the most probable class
    probability: float  # of that class, 0 to 1
    class_names: tuple[str, ...] = dataclasses.field(repr=False)
    probabilities: np.ndarray = dataclasses.field(repr=False)  # (classes,), they sum to 1
    warning: str | None = None  # in words, what sets the image apart from those of the training

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most probable classes, the most probable first: (name, probability)."""
        best = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.class_names[i], float(self.probabilities[i])) for i in best]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How often a classifier is right, as fractions from 0 to 1.

    >>> hits = np.array([[2, 1, 2]] + 9 * [[0, 0, 0]])  # of class 0: images, top-1, top-5
    >>> found = classifier("didb_micro_mnist").evaluation(hits, seconds=0.5)
    >>> found.top1, found.top5, found.images_per_second
    (0.5, 1.0, 4.0)
    """

    count: int  # images
    top1: float
    top5: float
    per_class: dict[str, float]  # top-1 by name of the class, for classes that occur
    per_class_count: dict[str, int]
    images_per_second: float  # preprocessing and network


def classifier(
    name_or_path: str | PathLike,
    backend: str = "auto",
    image_size: int | tuple[int, int] | None = None,
) -> "Classifier":
    """Make a trained model ready to be asked: the stem of a shipped file, or a path to a file.

    backend: "numpy" is the reference, "engine" the packed network in compiled kernels, the only one
    for a packed file; "auto" takes the quicker one for the work there is (see `refimpl.choice`).
    image_size: (H, W), or the side of a square, in pixels to which images are resized instead of
    the model's own size; its parameters are interpolated to match [SPEC 6.3].
    ModelFileError for an unknown, broken or untrained model, ConfigError for an unknown backend,
    one that cannot run the model, or a size that the model's patch does not divide.

    >>> from refimpl.data import bundled
    >>> answers = classifier("didb_micro_mnist")(bundled.digits())
    >>> "".join(answer.label for answer in answers)
    '0123456789'
    """
    file = read(name_or_path, backend)
    if file.model.config.task != "classification":
        raise ModelFileError(f"{file.path}: a segmenter, expected a classifier of whole images")
    caution = None
    if file.model.preprocessing is None:
        caution = "the model's file does not say how images are prepared; took pixels from 0 to 1"
    return Classifier(*ready(file, backend, image_size), caution)


class Classifier(Predictor):
    """A model with its parameters, its preprocessing and the names of its classes.

    >>> from refimpl.data import bundled
    >>> ask = classifier("didb_micro_mnist")
    >>> [answer.label for answer in ask(bundled.digits()[3:5])]
    ['3', '4']
    >>> ask.probabilities(ask.preprocessing.apply_array(np.zeros((2, 30, 40), np.uint8))).shape
    (2, 10)
    """

    def __call__(self, images: Picture | Sequence[Picture]) -> list[Prediction]:
        """Classify an image or several: one Prediction each, in order.

        An image is a path, a PIL image, or a uint8 array (H, W), (H, W, 3); an array (n, H, W) or
        (n, H, W, 3) is n images. Any size: the preprocessing resizes. DataError names what is not
        an image.
        """
        pictures = _listed(images)
        predictions, size = [], min(BATCH_SIZE, self._most)
        for first in range(0, len(pictures), size):
            some = pictures[first : first + size]
            judged = [self.preprocessing.judged(opened(picture)) for picture in some]
            pixels = np.stack([each.pixels for each in judged])
            probabilities = self.probabilities(self.preprocessing.normalise(pixels))
            predictions += map(self._prediction, probabilities, judged)
        return predictions

    def astype(self, dtype: np.dtype | type) -> "Classifier":
        """The same classifier on the NumPy reference, computing in float32 or float64.

        DtypeError for another type, ModelFileError for a packed one, which only the engine can run.
        """
        if self.params is None:
            raise ModelFileError("found a packed model; expected one that NumPy can run")
        dtype = require_float("classifier", dtype)
        flat = {name: value.astype(dtype) for name, value in flatten(self.params).items()}
        return self._with(params=unflatten(flat), backend=None)

    def inverted(self) -> "Classifier":
        """The same classifier for images in which dark and light have changed places."""
        return self._with(preprocessing=self.preprocessing.inverted())

    def _with(self, **changes: Any) -> "Classifier":
        fields = ("model", "params", "preprocessing", "class_names", "backend", "caution")
        return Classifier(**{name: getattr(self, name) for name in fields} | changes)

    @property
    def _most(self) -> int:
        """Images of a batch, which as floats stay below BATCH_BYTES."""
        return max(BATCH_BYTES // (FLOAT * math.prod(self.preprocessing.shape)), 1)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Preprocessed images, float (B, channels, H, W) -> (B, classes).

        NonFiniteError where weights of absurd size leave no finite number.
        """
        return self.compute(x)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Preprocessed images, float (B, channels, H, W) -> (B, classes), each row sums to 1."""
        return softmax.forward(self.logits(x))[0]

    def evaluate(
        self,
        images: "Array",
        labels: np.ndarray,
        batch_size: int = BATCH_SIZE,
        progress: Callable[[int], object] = lambda count: None,
        *,
        ready: bool = False,
    ) -> Evaluation:
        """Accuracy on images uint8 (n, H, W) or (n, H, W, 3) with labels (n,), n >= 1.

        They are an array, or a FolderArray: then no more of them are in memory than a few batches.
        `progress` is called with the number of images of each batch that is done. `ready` says
        that they are cropped and resized already, as `data.datasets.load` gives them. DataError
        where images or labels are others, ConfigError for a batch_size below 1.
        """
        from concurrent.futures import ThreadPoolExecutor

        from threadpoolctl import threadpool_limits

        from refimpl.data.datasets import require_counts
        from refimpl.data.image_folder import in_batches, map_ahead, slices

        require_counts(batch_size=batch_size)
        prepare = self.preprocessing.normalise if ready else self.preprocessing.apply_array
        _require_labelled(images, labels, len(self.class_names))

        def hits_of(batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            return self.hits(prepare(batch[0]), batch[1])

        parts = slices(len(images), min(batch_size, self._most))
        self.expect(Work(len(images), len(parts), cpus()))
        if self.backend is not None:
            self.backend.warm()
        batches = zip(in_batches(images, parts), (labels[part] for part in parts), strict=True)
        hits = np.zeros((len(self.class_names), 3), np.int64)
        start = time.perf_counter()
        # batches side by side: BLAS's own threads gain nothing on matrices as small as these
        with threadpool_limits(1), ThreadPoolExecutor(self.threads) as pool:
            for of_batch in map_ahead(pool, hits_of, batches, ahead=self.threads):
                hits += of_batch
                progress(int(of_batch[:, 0].sum()))
        return self.evaluation(hits, time.perf_counter() - start)

    def hits(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Count right answers: preprocessed images (B, channels, H, W), labels (B,) -> int64
        (classes, 3), as `metrics.hits`; those of several batches may be added.
        """
        return metrics.hits(metrics.ranks(self.logits(x), labels), labels, len(self.class_names))

    def evaluation(self, hits: np.ndarray, seconds: float) -> Evaluation:
        """Make fractions of the `hits` (classes, 3) of all batches, which took so many seconds."""
        count, top1, top5 = hits.sum(axis=0).tolist()
        of_class = zip(self.class_names, hits.tolist(), strict=True)
        occurring = {name: found for name, found in of_class if found[0]}
        return Evaluation(
            count=count,
            top1=top1 / count,
            top5=top5 / count,
            per_class={name: found[1] / found[0] for name, found in occurring.items()},
            per_class_count={name: found[0] for name, found in occurring.items()},
            images_per_second=count / seconds,
        )

    def _prediction(self, probabilities: np.ndarray, judged: Judged) -> Prediction:
        best = int(np.argmax(probabilities))
        label, probability = self.class_names[best], float(probabilities[best])
        warning = told(judged, self.class_names, self.model.config) or self.caution
        return Prediction(label, probability, self.class_names, probabilities, warning)


def _require_labelled(images: "Array", labels: np.ndarray, classes: int) -> None:
    from refimpl.data.image_folder import require_array

    require_array("images", images)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        found = getattr(labels, "dtype", type(labels).__name__)
        raise DataError(f"labels are {found}, expected integers in an array")
    if labels.ndim != 1:
        raise DataError(f"labels have shape {labels.shape}, expected (n,)")
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(f"{len(images)} images, {len(labels)} labels; expected one each")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels {labels.min()} to {labels.max()}, but the model has {classes} classes"
        )


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    """Whatever __call__ takes, as a list with one entry an image."""
    if isinstance(images, (str, bytes, PathLike, Image.Image)) or not isinstance(images, Iterable):
        return [images]  # of what is no picture `opened` says so
    if isinstance(images, np.ndarray):
        # channels come last: (H, W, 4) is one image with transparency, which `opened` refuses
        channels = images.ndim > 2 and images.shape[-1] in (1, 3, 4)
        return list(images) if images.ndim == 3 + channels else [images]
    return list(images)
