"""What an epoch brought: a line of a log, a row of the learning curves."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refimpl.conventions import ModelFileError
from refimpl.disk import write_atomically


class EpochResult(NamedTuple):
    """Say what one epoch brought; `str()` of it is its line in a log.

    >>> print(EpochResult("full", 1, 5, 1.25, 0.5, None, 2e-3, 400.0, 150.0))
    full epoch 1/5  loss 1.2500  train 50.00%  400 images/s  150 s
    """

    stage: str  # "activations", "full", ...
    epoch: int  # of its stage, from 1
    epochs: int  # of its stage
    loss: float  # mean over the epoch, with smoothing, teacher and augmentation
    train_accuracy: float  # 0 to 1, on the augmented images, or their pixels, as they came
    validation_accuracy: float | None  # 0 to 1, after the epoch, with the model of its stage
    learning_rate: float  # of its last step
    images_per_second: float  # training only
    elapsed: float  # seconds of the run, validation included, interruptions left out
    validation_mean_iou: float | None = None  # 0 to 1, of a segmenter

    @property
    def score(self) -> float | None:
        """What curves show: the mean IoU of a segmenter, else the accuracy, after the epoch."""
        mean_iou = self.validation_mean_iou
        return self.validation_accuracy if mean_iou is None else mean_iou

    def __str__(self) -> str:
        validation = ""
        if self.validation_accuracy is not None:
            validation = f"  validation {self.validation_accuracy:.2%}"
        if self.validation_mean_iou is not None:
            validation += f", mIoU {self.validation_mean_iou:.2%}"
        return (
            f"{self.stage} epoch {self.epoch}/{self.epochs}  loss {self.loss:.4f}"
            f"  train {self.train_accuracy:.2%}{validation}"
            f"  {self.images_per_second:.0f} images/s  {self.elapsed:.0f} s"
        )


def from_json(path: Path, entries: Any) -> list[EpochResult]:
    """Epochs as the file at `path` has them: a list of objects with the fields of an EpochResult.

    ModelFileError where they are something else.
    """
    try:
        history = [EpochResult(**entry) for entry in entries]
    except TypeError as error:
        raise ModelFileError(f"{path}: history: {error}") from None
    for result in history:
        for name, value in result._asdict().items():
            kinds, expected = _KINDS[EpochResult.__annotations__[name]]
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ModelFileError(
                    f"{path}: history: {name} is {value!r:.40}, expected {expected}"
                )
    return history


_KINDS: dict[Any, tuple[Any, str]] = {  # of a field, and what its values are
    str: (str, "text"),
    int: (int, "an integer"),
    float: ((int, float), "a number"),
    float | None: ((int, float, type(None)), "a number or null"),
}


def is_csv(path: Path) -> bool:
    """Tell whether a file is such as `write_csv` writes, from its header."""
    try:
        with path.open("rb") as file:
            return file.readline() == _header().encode()
    except OSError:
        return False


def write_csv(path: Path, history: Sequence[EpochResult]) -> None:
    """Learning curves, a row an epoch and a column a field, whole or not at all.

    Accuracies and the mean IoU are 0 to 1; a missing one is an empty cell. OSError from the disk.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(history)
    write_atomically(path, (_header() + text.getvalue()).encode())


def _header() -> str:
    return ",".join(EpochResult._fields) + "\n"
