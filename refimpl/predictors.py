"""What a classifier and a segmenter share: a file made ready, images opened, logits computed."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from PIL import Image

from refimpl.choice import BACKENDS, Backend, Work
from refimpl.conventions import (
    ConfigError,
    DataError,
    DtypeError,
    ModelFileError,
    require_finite,
    require_shape,
)
from refimpl.data.class_names import distinct
from refimpl.data.images import open_image, to_plain
from refimpl.data.preprocessing import Judged, Preprocessing
from refimpl.machine import cpus
from refimpl.models import (
    Config,
    VisionTransformer,
    binary,
    cards,
    files,
    flatten,
    interpreter,
    unflatten,
)
from refimpl.models.summary import working_bytes

ROOM = 2**30  # bytes that NumPy may take for the images of a call, or of several side by side

Picture = str | PathLike | Image.Image | np.ndarray


def read(name_or_path: str | PathLike, backend: str) -> files.ModelFile | files.PackedFile:
    """A model's file of any kind, once the name of the backend is known to be one."""
    if backend not in BACKENDS:
        raise ConfigError(f"backend is {backend!r}, expected {' or '.join(BACKENDS)}")
    return files.read_any(name_or_path)


def ready(
    file: files.ModelFile | files.PackedFile,
    backend: str,
    image_size: int | tuple[int, int] | None,
) -> tuple[VisionTransformer, Any, Preprocessing, tuple[str, ...], Backend]:
    """Model, parameters (None where packed), preprocessing, class names, backend.

    Errors as in `refimpl.classifier`.
    """
    if image_size is not None:
        file = _resized(file, image_size)
    preprocessing, class_names = described(file)
    params = None if isinstance(file, files.PackedFile) else file.params
    return file.model, params, preprocessing, class_names, Backend(file, backend)


def described(
    file: files.ModelFile | files.PackedFile,
) -> tuple[Preprocessing, tuple[str, ...]]:
    """How a file's model reads images and what its classes are called; without either the plainest.

    ModelFileError where nobody says how an image becomes its channels.
    """
    model, config = file.model, file.model.config
    preprocessing = model.preprocessing
    if preprocessing is None:  # nothing is known but the size: pixels from 0 to 1
        try:
            preprocessing = Preprocessing.plain(config.image_size, config.channels)
        except ConfigError as error:
            raise ModelFileError(f"{file.path}: {error}") from None
    class_names = model.class_names or tuple(map(str, range(config.num_classes)))
    return preprocessing, class_names


def _resized(
    file: files.ModelFile | files.PackedFile, image_size: int | tuple[int, int]
) -> files.ModelFile | files.PackedFile:
    """A model's file with its network for images of another size."""
    try:
        model = file.model.replace(image_size=image_size)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from None
    network = binary.network(file.model.config, model.config.image_size)
    if isinstance(file, files.ModelFile):
        params = interpreter.resized(network, flatten(file.params), model.network)
        return file._replace(model=model, params=unflatten(params))
    # interpolation is no operation of float16
    wide = {k: a.astype(np.float32) if a.dtype == np.float16 else a for k, a in file.arrays.items()}
    return file._replace(model=model, arrays=interpreter.resized(network, wide, model.network))


class Predictor:
    """A model with its parameters, its preprocessing and the names of its classes."""

    def __init__(
        self,
        model: VisionTransformer,
        params: Mapping[str, Any] | None,  # None of a packed file
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        backend: Backend | None = None,  # None: the NumPy reference
        caution: str | None = None,  # the warning of every answer that has none of its own
    ):
        self.model = model
        self.params = params
        self.preprocessing = preprocessing
        self.class_names = distinct(class_names, range(len(class_names)))
        self.backend = backend
        self.caution = caution

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model}, knows {some(self.class_names)})"

    @property
    def engine(self) -> Any:
        """The engine that computes; None while NumPy does."""
        return None if self.backend is None else self.backend.engine

    @property
    def dtype(self) -> np.dtype:
        """The float type in which the network is computed."""
        return np.dtype(np.float32) if self.engine is not None else dtype_of(self.params)

    @property
    def threads(self) -> int:
        """How many calls may run side by side; the engine has threads of its own."""
        if self.engine is not None:
            return 1
        needed = working_bytes(self.model.config, self.dtype.itemsize)
        return max(1, min(cpus(), 2 * ROOM // needed))

    def expect(self, work: Work) -> None:
        """Say what is going to be asked, of a segmenter in windows.

        So that backend="auto" chooses for all of it.
        """
        if self.backend is not None:
            self.backend.expect(work)

    def compute(self, x: np.ndarray) -> np.ndarray:
        """Logits of preprocessed images (B, channels, H, W), by what is quicker for the work.

        ShapeError where they are not of the size that the model reads, DtypeError where they are no
        array of floats, as pixels are none, NonFiniteError where weights of absurd size leave no
        finite number.
        """
        config = self.model.config
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
            found = getattr(x, "dtype", type(x).__name__)
            raise DtypeError(
                f"{type(self).__name__.lower()}: images is {found}; expected an array of floats, "
                "such as its preprocessing makes of pixels"
            )
        expected = (None, config.channels, *config.image_size)
        require_shape(type(self).__name__.lower(), "images", x, expected)
        if len(x) == 0:
            return np.empty((0, *config.logits_shape), self.dtype)
        engine = None if self.backend is None else self.backend.count(len(x))
        with np.errstate(all="ignore"):  # what comes of it is looked at below
            if engine is not None:
                logits = engine(x.astype(np.float32, copy=False))
            else:
                logits = self._by_numpy(x)
        require_finite(type(self).__name__.lower(), "logits", logits)
        return logits

    def _by_numpy(self, x: np.ndarray) -> np.ndarray:
        """Logits of as many images at a time as memory holds."""
        room, dtype = require_room(self.model.config, self.dtype), self.dtype
        parts = (x[i : i + room].astype(dtype, copy=False) for i in range(0, len(x), room))
        return np.concatenate([self.model.predict(self.params, part) for part in parts])


def require_room(config: Config, dtype: np.dtype) -> int:
    """How many images NumPy may compute at a time; ConfigError where one is too large for it."""
    needed = working_bytes(config, dtype.itemsize)
    if needed > 2 * ROOM:
        height, width = config.image_size
        raise ConfigError(
            f"images of {width} x {height} take {needed / 1e9:,.1f} GB in NumPy, expected at most "
            f"{2 * ROOM / 1e9:,.1f}; the engine takes less, where it runs the network"
        )
    return max(1, ROOM // cpus() // needed)


def dtype_of(params: Mapping[str, Any]) -> np.dtype:
    """The one float type of nested parameters."""
    return next(iter(flatten(params).values())).dtype


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
        return to_plain(picture, getattr(picture, "filename", "") or "image")
    raise DataError(f"image: found {type(picture).__name__}, expected a path, PIL image or array")


def told(judged: Judged, class_names: Sequence[str], config: Config) -> str | None:
    """The warning of an image, with what the model knows and which one may know more."""
    if judged.warning is None or (judged.exchanged and not judged.colours):
        return judged.warning
    text = f"{judged.warning}; the model knows {some(class_names)}"
    if judged.colours and (others := _reading_colours(config.task)):
        text += f"; try --model {' or '.join(others)}"
    return text


def some(class_names: Sequence[str]) -> str:
    """The first few names, in words."""
    return ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")


def _reading_colours(task: str) -> list[str]:
    """Shipped models for a task that read RGB, by their cards."""
    found = {name: cards.read(files.find(name))["config"] for name in files.shipped()}
    configs = {name: Config.from_json(fields) for name, fields in found.items()}
    return [name for name, c in configs.items() if c.task == task and c.channels == 3]
