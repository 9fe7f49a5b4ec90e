"""The network that users call: a configuration and its pure functions of parameters.

What is computed, `binary.network` lists; how, `interpreter` says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from refimpl import ops
from refimpl.conventions import (
    ConfigError,
    DataError,
    DtypeError,
    ShapeError,
    float_dtype,
    require_shape,
)
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import binary, interpreter
from refimpl.models import params as parameters
from refimpl.models.architectures import named
from refimpl.models.config import Config
from refimpl.models.interpreter import Cache, Tap
from refimpl.models.nodes import Network
from refimpl.models.params import Params, flatten, unflatten


def create_model(name: str, /, **overrides: Any) -> VisionTransformer:
    """Make an untrained architecture of [SPEC 6.5, 10] ("didb_micro", "segmenter_react_tiny", …).

    Overrides are fields of Config. An unknown name or a bad field raises ConfigError.

    >>> model = create_model("didb_micro", depth=1, num_classes=3)
    >>> params = model.init(np.random.default_rng(0))
    >>> logits, cache = model.forward(params, np.zeros((2, 1, 28, 28), np.float32))
    >>> dimages, grads = model.backward(np.ones_like(logits), cache)
    >>> logits.shape, grads["head"]["bias"]
    ((2, 3), array([2., 2., 2.], dtype=float32))
    """
    return VisionTransformer(named(name, **overrides))


@dataclass(frozen=True)
class VisionTransformer:
    """Hold a configuration and its pure functions of parameters; it has no arrays.

    >>> VisionTransformer(named("didb_micro"))
    VisionTransformer(28 x 28 x 1 -> 10 classes, dim=64, depth=4, heads=2, block='binary', \
similarity='haar', attention='differential', rprelu='token')
    """

    config: Config
    # of a model that was loaded: how its images are made ready, and what its classes are called
    preprocessing: Preprocessing | None = field(default=None, compare=False)
    class_names: tuple[str, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.class_names is not None:
            object.__setattr__(self, "class_names", _names(self.class_names, self.config))
        if self.preprocessing is not None:
            found = (self.preprocessing.channels, *self.preprocessing.size)
            expected = (self.config.channels, *self.config.image_size)
            if found != expected:
                raise ConfigError(f"preprocessing makes {found}, the model reads {expected}")

    def __repr__(self) -> str:
        """What it reads and answers, its size, and the fields that are not the default."""
        c = self.config
        size = " x ".join(map(str, (*c.image_size, c.channels)))
        shown = {"dim": c.dim, "depth": c.depth, "heads": c.heads, "block": c.block}
        known = {f.name: f.default for f in dataclasses.fields(c)}
        shown |= {
            name: value
            for name, default in known.items()
            if default is not dataclasses.MISSING and (value := getattr(c, name)) != default
        }
        fields = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"VisionTransformer({size} -> {c.num_classes} classes, {fields})"

    @property
    def network(self) -> Network:
        """The list of its operations, for images of the configuration's size."""
        return binary.network(self.config)

    def replace(self, **fields: Any) -> VisionTransformer:
        """Give the same network with other fields: `replace(binarize="activations")` is stage 1.

        Its preprocessing makes images of the new size, and it has the same class names; either is
        None where the number of channels or of classes is another.
        """
        config, preprocessing, names = self.config.replace(**fields), None, None
        if self.preprocessing is not None and config.channels == self.config.channels:
            preprocessing = dataclasses.replace(self.preprocessing, size=config.image_size)
        if config.num_classes == self.config.num_classes:
            names = self.class_names
        return VisionTransformer(config, preprocessing, names)

    def prepare(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Turn images uint8 (n, H, W) or (n, H, W, 3), of any size, into what `predict` takes.

        A list of images (H, W) or (H, W, 3), arrays or PIL's, may have a size each. Returns float32
        (n, channels, H, W) of the model's size, by `preprocessing`: what the model was trained on;
        for parameters in float64 `.astype(np.float64)` it.
        ConfigError for a model that was not loaded and has none, DataError for what is no image,
        and for a PIL image that is in no list.
        """
        if self.preprocessing is None:
            raise ConfigError(
                "model: preprocessing is None; expected that of a trained model, from refimpl.load"
            )
        if isinstance(images, np.ndarray):
            return self.preprocessing.apply_array(images)
        if not isinstance(images, Iterable):
            found = type(images).__name__
            raise DataError(f"images: found {found}; expected an array or a list of images")
        none = self.preprocessing.apply_array(np.empty((0, *self.preprocessing.shape), np.uint8))
        return np.concatenate([none, *map(self._prepare, images)])

    def _prepare(self, image: Any) -> np.ndarray:
        if isinstance(image, Image.Image):  # its array may be indices, or another space of colours
            return self.preprocessing.apply(image)[None]
        return self.preprocessing.apply_array(np.asarray(image)[None])

    def init(self, rng: np.random.Generator, dtype: Any = np.float32) -> Params:
        """Draw fresh parameters [SPEC 6.6], a nested dict [SPEC 6.4]."""
        return parameters.initialise(self.network.parameters, rng, dtype)

    def forward(
        self, params: Params, images: np.ndarray, *, tap: Tap | None = None, backend: Any = ops
    ) -> tuple[np.ndarray, Cache]:
        """Run images (B, channels, H, W) -> (logits (B, classes), cache for backward).

        Parameters go by name; the order of their keys never matters. H and W are any multiples of
        the patch, with windows such that these divide every stage's grid [SPEC 6.7]: for another
        size than the configuration's the network of `resized` runs; a listener hears its values,
        and the gradients of the parameters as they were given. With a decoder every pixel has
        logits, (B, classes, H, W), here and below. Images and parameters share one dtype. Errors:
        ShapeError, DtypeError, ConfigError for a size that windows do not divide, and
        NonFiniteError with the dotted name of the layer.
        """
        return self._run(params, images, backend=backend, tap=tap)

    def predict(self, params: Params, images: np.ndarray, *, backend: Any = ops) -> np.ndarray:
        """Run images (B, channels, H, W) -> logits (B, classes), keeping no cache."""
        return self._run(params, images, backend=backend, keep=False)[0]

    def backward(
        self, dlogits: np.ndarray, cache: Cache, *, tap: Tap | None = None
    ) -> tuple[np.ndarray, Params]:
        """Send back dlogits (B, classes) -> (dimages (B, channels, H, W), gradients like params).

        The gradients are those of forward's params, also where these were interpolated. Reads the
        cache and leaves it as it was: any number of backwards, in any order.
        """
        shape = cache.network.shapes[cache.network.output][1:]
        require_shape("backward", "dlogits", dlogits, (cache.batch, *shape))
        first = next(iter(cache.params.values()))
        float_dtype("backward", dlogits=dlogits, parameters=first)
        dimages, grads = interpreter.backward(dlogits, cache, tap)
        return dimages, unflatten({path: grads[path] for path in cache.params})

    def resized(
        self, params: Params, image_size: int | tuple[int, int]
    ) -> tuple[VisionTransformer, Params]:
        """Give the network for images of another size, (H, W) or the side of a square [SPEC 6.3].

        Parameters with an entry a token are interpolated, the others are the same arrays.
        ConfigError where the patch does not divide the size; ShapeError, DtypeError as in forward.
        """
        flat = flatten(params)
        parameters.check(self.network.parameters, flat)
        model = self.replace(image_size=image_size)
        network = binary.network(self.config, model.config.image_size)
        return model, unflatten(interpreter.resized(network, flat, model.network))

    def _run(self, params: Params, images: np.ndarray, **options: Any) -> tuple[np.ndarray, Cache]:
        if not isinstance(params, Mapping):
            raise DtypeError(
                f"model: params is {type(params).__name__}; expected a dict: (params, images)"
            )
        flat = flatten(params)
        parameters.check(self.network.parameters, flat)
        self._check(images, flat)
        network = self.network
        if images.shape[2:] != self.config.image_size:
            network = binary.network(self.config, images.shape[2:])
        return interpreter.forward(network, flat, images, **options)

    def _check(self, images: np.ndarray, flat: dict[str, np.ndarray]) -> None:
        if np.asarray(images).dtype.kind in "biu":
            raise DtypeError(
                f"model: images is {np.asarray(images).dtype}; expected floats, such as "
                "model.prepare(images) makes of pixels"
            )
        patch = self.config.patch_size
        require_shape("model", "images", images, (None, self.config.channels, None, None))
        float_dtype("model", images=images, parameters=next(iter(flat.values())))
        if len(images) == 0:
            raise ShapeError(f"model: images has shape {images.shape}; expected at least one image")
        if any(side == 0 or side % patch for side in images.shape[2:]):
            raise ShapeError(
                f"model: images has shape {images.shape}; "
                f"expected rows and columns that are multiples of patch_size {patch}"
            )


def _names(names: Any, config: Config) -> tuple[str, ...]:
    if not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"class_names is {names!r:.80}; expected a list of strings")
    if len(names) != config.num_classes:
        raise ConfigError(f"{len(names)} class names; expected {config.num_classes}")
    return tuple(names)
