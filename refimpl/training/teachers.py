"""Distillation [SPEC 7]: a trained model that tells the student how sure one may be of an image.

The teacher sees the student's images, augmented as they are, and prepared as the teacher's own
file says. It only predicts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl import ops
from refimpl.conventions import ConfigError
from refimpl.data.class_names import listing, same
from refimpl.models import VisionTransformer, files
from refimpl.models.params import check, flatten
from refimpl.training.batches import Prepare
from refimpl.training.journal import fingerprint
from refimpl.training.recipes import Recipe


class Teacher(NamedTuple):
    """A model that answers with probabilities."""

    model: VisionTransformer
    params: Mapping[str, Any]
    prepare: Prepare

    def probabilities(self, images: np.ndarray, backend: Any = ops) -> np.ndarray:
        """images uint8 (B, H, W[, 3]) -> (B, classes), rows sum to 1."""
        dtype = next(iter(flatten(self.params).values())).dtype
        prepared = self.prepare(images).astype(dtype, copy=False)
        logits = self.model.predict(self.params, prepared, backend=backend)
        return backend.softmax.forward(logits)[0]

    def to_json(self) -> dict[str, Any]:
        """What tells it from other teachers, as JSON values."""
        digest = fingerprint(*flatten(self.params).values())
        return {"config": self.model.config.to_json(), "parameters_sha256": digest}


def choose(
    given: tuple[VisionTransformer, Mapping[str, Any]] | None,
    recipe: Recipe,
    class_names: Sequence[str],
    prepare: Prepare,
    image: np.ndarray,
    middle: float = 1.0,
) -> Teacher | None:
    """The teacher of a run: the one that was given, else the one that the recipe names.

    It reads images as its own preprocessing makes them, and where it has none as `prepare` does,
    the student's way. image: uint8 (1, H, W[, 3]), one of those it will see; middle: the part of
    the originals that such images are, see `loop.train`. ConfigError where the teacher cannot teach
    this student; ModelFileError where the named file cannot be read.
    """
    if recipe.distillation == 0:
        if given is not None:
            raise ConfigError(
                "recipe: distillation is 0.0, expected a number above 0: a teacher was given"
            )
        return None
    name = "the teacher" if given is not None else recipe.teacher
    if given is not None:
        model, params = given
    elif name is not None:
        model, params = files.load(name)
    else:
        raise ConfigError(
            f"recipe: distillation is {recipe.distillation}, expected 0.0: there is no teacher"
        )
    own = model.preprocessing
    if model.class_names is not None and not same(model.class_names, class_names):
        raise ConfigError(
            f"{name}: the teacher has {listing(model.class_names)}, "
            f"expected those of the data, {listing(class_names)}"
        )
    teacher = Teacher(model, params, own.of_middle(middle).apply_array if own else prepare)
    _require_fit(teacher, name, len(class_names), image)
    return teacher


def _require_fit(teacher: Teacher, name: str, classes: int, image: np.ndarray) -> None:
    config = teacher.model.config
    if config.task != "classification":
        raise ConfigError(f"{name}: is made for {config.task}, expected a classifier")
    check(teacher.model.network.parameters, flatten(teacher.params))
    if config.num_classes != classes:
        raise ConfigError(f"{name}: has {config.num_classes} classes, expected {classes}")
    found, expected = teacher.prepare(image).shape[1:], (config.channels, *config.image_size)
    if found != expected:
        raise ConfigError(
            f"{name}: reads images {expected} (channels, H, W), the student's are {found}"
        )
