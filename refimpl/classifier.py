"""Images to (label, probability), with one line:

    refimpl.classifier("didb_micro_mnist")("seven.png")[0].label

The file of a model says how an image becomes its input and what its classes are called, so no
setting has to be known by whoever asks. To look inside the network take `refimpl.load` instead.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refimpl import metrics
from refimpl.conventions import (
    ConfigError,
    DataError,
    ModelFileError,
    cpus,
    require_finite,
    write_atomically,
)
from refimpl.data.images import open_image
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import Config, VisionTransformer, files, flatten, packing, resize, unflatten
from refimpl.ops import softmax

if TYPE_CHECKING:  # an answer does not wait for what data sets need
    from refimpl.data.image_folder import Array

BACKENDS = ("auto", "numpy", "engine")
BATCH_SIZE = 100

Picture = str | PathLike | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one image."""

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
    """How often a classifier is right, as fractions from 0 to 1."""

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
    """A trained model, ready to be asked: the stem of a shipped file, or a path to a file.

    backend: "numpy" is the reference, "engine" the packed network in compiled kernels; "auto" takes
    the engine for every network that it can run, and for a packed file it is the only one.
    image_size: (H, W), or the side of a square, in pixels to which images are resized instead of
    the model's own size; its parameters are interpolated to match [SPEC 6.3].
    ModelFileError for an unknown, broken or untrained model, ConfigError for an unknown backend,
    one that cannot run the model, or a size that the model's patch does not divide.
    """
    file = read(name_or_path, backend)
    if file.model.config.task != "classification":
        raise ModelFileError(f"{file.path}: a segmenter, expected a classifier of whole images")
    caution = None
    if file.preprocessing is None:
        caution = "the model's file does not say how images are prepared; took pixels from 0 to 1"
    return Classifier(*ready(file, backend, image_size), caution)


def read(name_or_path: str | PathLike, backend: str) -> files.ModelFile | files.PackedFile:
    """A model's file of any kind, once the name of the backend is known to be one."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}, expected {' or '.join(BACKENDS)}")
    return files.read_any(name_or_path)


def ready(
    file: files.ModelFile | files.PackedFile,
    backend: str,
    image_size: int | tuple[int, int] | None,
) -> tuple[VisionTransformer, Any, Preprocessing, list[str], Any]:
    """Model, parameters (None where packed), preprocessing, class names, engine (None: NumPy).

    Errors as in `classifier`.
    """
    try:
        preprocessing = _preprocessing(file.preprocessing, file.model.config)
    except ConfigError as error:
        raise ModelFileError(f"{file.path}: {error}") from None
    if image_size is not None:
        file = _resized(file, image_size)
        preprocessing = dataclasses.replace(preprocessing, size=file.model.config.image_size)
    params = None if isinstance(file, files.PackedFile) else file.params
    if backend == "numpy" and params is None:
        raise ModelFileError(f"{file.path}: packed; backend 'numpy' expects a latent file")
    class_names = file.class_names or [str(i) for i in range(file.model.config.num_classes)]
    return file.model, params, preprocessing, class_names, _engine(file, backend)


def _resized(
    file: files.ModelFile | files.PackedFile, image_size: int | tuple[int, int]
) -> files.ModelFile | files.PackedFile:
    """A model's file with its network for images of another size."""
    try:
        model = file.model.replace(image_size=image_size)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from None
    size = model.config.image_size
    if isinstance(file, files.ModelFile):
        params, _ = resize.forward(file.params, file.model.config, size)
        return file._replace(model=model, params=params)
    # interpolation is no operation of float16
    wide = {k: a.astype(np.float32) if a.dtype == np.float16 else a for k, a in file.arrays.items()}
    arrays, _ = resize.forward(unflatten(wide), file.model.config, size)
    return file._replace(model=model, arrays=flatten(arrays))


def _engine(file: files.ModelFile | files.PackedFile, backend: str) -> Any:
    """The engine for a file's network; None where NumPy runs it."""
    latent = isinstance(file, files.ModelFile)
    able = packing.for_engine(file.model.config)
    if backend == "numpy" or (backend == "auto" and latent and not able):
        return None
    from refimpl import engine  # imports Numba, which takes longer than a small network

    try:
        return engine.of_file(file)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from None


def read_card(name_or_path: str | PathLike) -> dict[str, Any]:
    """The card beside a model's file; ModelFileError if there is none."""
    path = files.find(name_or_path).with_suffix(".json")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        what = getattr(error, "strerror", None) or error  # that of an OSError names the file again
        raise ModelFileError(f"{path}: cannot read the card of the model: {what}") from None
    if not isinstance(card, dict):
        raise ModelFileError(f"{path}: found {type(card).__name__}, expected an object")
    return card


def record(name_or_path: str | PathLike, evaluation: Any, data: str) -> Path:
    """Write an evaluation into the card beside a model's file; `data` says on what it was made.

    evaluation: an Evaluation, or another dataclass of JSON values. Returns the card's path.
    ModelFileError where the card has figures of more images: they are worth more.
    """
    card, path = read_card(name_or_path), files.find(name_or_path).with_suffix(".json")
    before = card.get("evaluation", {}).get("count", 0)
    if evaluation.count < before:
        raise ModelFileError(
            f"{path}: has figures of {before:,} images, found {evaluation.count:,}; "
            "expected as many, or a card without its evaluation"
        )
    card["evaluation"] = {"data": data, **dataclasses.asdict(evaluation)}
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())
    return path


class Classifier:
    """A model with its parameters, its preprocessing and the names of its classes."""

    def __init__(
        self,
        model: VisionTransformer,
        params: Mapping[str, Any] | None,  # None of a packed file
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        engine: Callable[[np.ndarray], np.ndarray] | None = None,  # None: the NumPy reference
        caution: str | None = None,  # the warning of every answer that has none of its own
    ):
        self.model = model
        self.params = params
        self.preprocessing = preprocessing
        self.class_names = tuple(class_names)
        self.engine = engine
        self.caution = caution
        computed = np.float32 if engine is not None else params["head"]["weight"].dtype
        self.dtype = np.dtype(computed)

    def __call__(self, images: Picture | Sequence[Picture]) -> list[Prediction]:
        """Classify an image or several: one Prediction each, in order.

        An image is a path, a PIL image, or a uint8 array (H, W), (H, W, 3); an array (n, H, W) or
        (n, H, W, 3) is n images. Any size: the preprocessing resizes. DataError names what is not
        an image.
        """
        pictures = _listed(images)
        predictions = []
        for first in range(0, len(pictures), BATCH_SIZE):
            some = pictures[first : first + BATCH_SIZE]
            pixels = np.stack([self.preprocessing.pixels(opened(picture)) for picture in some])
            probabilities = self.probabilities(self.preprocessing.normalise(pixels))
            predictions += map(self._prediction, probabilities, pixels)
        return predictions

    def astype(self, dtype: np.dtype | type) -> "Classifier":
        """The same classifier on the NumPy reference, computing in float32 or float64."""
        flat = {name: value.astype(dtype) for name, value in flatten(self.params).items()}
        return self._with(params=unflatten(flat), engine=None)

    def inverted(self) -> "Classifier":
        """The same classifier for images in which dark and light have changed places."""
        return self._with(preprocessing=self.preprocessing.inverted())

    def _with(self, **changes: Any) -> "Classifier":
        fields = ("model", "params", "preprocessing", "class_names", "engine", "caution")
        return Classifier(**{name: getattr(self, name) for name in fields} | changes)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Preprocessed images, float (B, channels, H, W) -> (B, classes).

        NonFiniteError where weights of absurd size leave no finite number.
        """
        return compute("classifier", self.model, self.params, self.engine, x)

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
        that they are cropped and resized already, as `data.datasets.load` gives them.
        """
        from concurrent.futures import ThreadPoolExecutor

        from threadpoolctl import threadpool_limits

        from refimpl.data.image_folder import in_batches, map_ahead, slices

        prepare = self.preprocessing.normalise if ready else self.preprocessing.apply_array
        if len(images) != len(labels) or len(images) == 0:
            raise DataError(f"{len(images)} images, {len(labels)} labels; expected one each")
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            found = f"labels {labels.min()} to {labels.max()}"
            raise DataError(f"{found}, but the model has {len(self.class_names)} classes")

        def hits_of(batch: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            return self.hits(prepare(batch[0]), batch[1])

        parts = slices(len(images), batch_size)
        batches = zip(in_batches(images, parts), (labels[part] for part in parts), strict=True)
        hits = np.zeros((len(self.class_names), 3), np.int64)
        start = time.perf_counter()
        # batches side by side: BLAS's own threads gain nothing on matrices as small as these
        threads = cpus() if self.engine is None else 1  # the engine has threads of its own
        with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
            for of_batch in map_ahead(pool, hits_of, batches, ahead=threads):
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

    def _prediction(self, probabilities: np.ndarray, pixels: np.ndarray) -> Prediction:
        best = int(np.argmax(probabilities))
        label, probability = self.class_names[best], float(probabilities[best])
        warning = self.preprocessing.unlike(pixels) or self.caution
        return Prediction(label, probability, self.class_names, probabilities, warning)


def compute(
    name: str,
    model: VisionTransformer,
    params: Mapping[str, Any] | None,
    engine: Callable[[np.ndarray], np.ndarray] | None,
    x: np.ndarray,
) -> np.ndarray:
    """Logits of preprocessed images (B, channels, H, W) by the engine, or else by NumPy.

    NonFiniteError, with `name`, where weights of absurd size leave no finite number.
    """
    with np.errstate(all="ignore"):  # what comes of it is looked at below
        if engine is not None:
            logits = engine(x.astype(np.float32, copy=False))
        else:
            logits = model.predict(params, x.astype(params["head"]["weight"].dtype, copy=False))
    require_finite(name, "logits", logits)
    return logits


def _preprocessing(stored: Mapping[str, Any] | None, config: Config) -> Preprocessing:
    """The model's own, which must fit it; else its size and channels, and pixels from 0 to 1."""
    if stored is not None:
        preprocessing = Preprocessing.from_json(stored)
        found = (preprocessing.channels, *preprocessing.size)
        expected = (config.channels, *config.image_size)
        if found != expected:
            raise ConfigError(f"preprocessing makes {found}, the model reads {expected}")
        return preprocessing
    return Preprocessing.plain(config.image_size, config.channels)


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    """Whatever __call__ takes, as a list with one entry an image."""
    if isinstance(images, (str, PathLike, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):
        # channels come last: (H, W, 4) is one image with transparency, which `opened` refuses
        channels = images.ndim > 2 and images.shape[-1] in (1, 3, 4)
        return list(images) if images.ndim == 3 + channels else [images]
    return list(images)


def opened(picture: Picture) -> Image.Image:
    """A PIL image of whatever stands for one; DataError where nothing does."""
    if isinstance(picture, (str, PathLike)):
        return open_image(picture)
    if isinstance(picture, np.ndarray):
        colour = picture.ndim == 3 and picture.shape[-1] == 3
        if picture.dtype != np.uint8 or not (colour or picture.ndim == 2) or 0 in picture.shape:
            found = f"an array {picture.dtype} {picture.shape}"
            raise DataError(f"image: found {found}, expected uint8 (H, W) or (H, W, 3)")
        return Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        return picture
    raise DataError(f"image: found {type(picture).__name__}, expected a path, PIL image or array")
