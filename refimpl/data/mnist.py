"""MNIST (LeCun, Cortes, Burges) from a folder with its four idx files, gzipped or not.

    train-images-idx3-ubyte   train-labels-idx1-ubyte      split "train"
    t10k-images-idx3-ubyte    t10k-labels-idx1-ubyte       split "test"

`.gz` may follow, and a dot may stand before `idx`. Any data in this layout is read: 28 x 28
grey images of ten classes.
"""

from pathlib import Path

import numpy as np

from refimpl.conventions import DataError
from refimpl.data import idx
from refimpl.data.preprocessing import Preprocessing

SPLITS = {"train": "train", "test": "t10k"}
CLASS_NAMES = tuple("0123456789")

# Preprocessing.measured on the 60,000 training images.
PREPROCESSING = Preprocessing(
    size=(28, 28),
    mode="grey",
    mean=(0.1307,),
    std=(0.3081,),
    brightness=(0.0254, 0.3976),
    contrast=0.7776,
)


def found_in(directory: str | Path) -> bool:
    """Whether a folder holds idx files under names like MNIST's; they may be broken."""
    directory = Path(directory)
    # not ._train-images-idx3-ubyte.gz, which macOS leaves beside a file that it copies
    return directory.is_dir() and any(directory.glob("[!.]*idx[13]-ubyte*"))


def load(directory: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 (n, 28, 28), labels int64 (n,)) of split "train" or "test".

    DataError when a file is missing or broken, or the two files do not fit each other.
    """
    if split not in SPLITS:
        raise DataError(f"split is {split!r}, expected {' or '.join(SPLITS)}")
    image_path = _find(Path(directory), f"{SPLITS[split]}-images", "idx3-ubyte")
    label_path = _find(Path(directory), f"{SPLITS[split]}-labels", "idx1-ubyte")
    images, labels = idx.read(image_path), idx.read(label_path)
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        found = f"{images.dtype} {images.shape}"
        raise DataError(f"{image_path}: found {found}, expected uint8 (n, 28, 28)")
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise DataError(f"{label_path}: found {labels.dtype} {labels.shape}, expected uint8 (n,)")
    if len(images) != len(labels) or len(images) == 0:
        found = f"{len(labels)} labels for the {len(images)} images of {image_path.name}"
        raise DataError(f"{label_path}: found {found}, expected one each and at least one")
    if labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{label_path}: found label {labels.max()}, expected 0 to 9")
    return images, labels.astype(np.int64)


def _find(directory: Path, stem: str, suffix: str) -> Path:
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder, expected one with MNIST's idx files")
    names = [f"{stem}{dot}{suffix}{zipped}" for dot in "-." for zipped in ("", ".gz")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise DataError(f"{directory}: found none of {', '.join(names)}")
