"""Writes the MNIST samples of the package anew, from a folder with the four original files.

    python -m tests.make_samples DIR

The pick is fixed: DIGITS below, and the first images of each class in the order of the files.
"""

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from refimpl.data import bundled, mnist

DIGITS = (10, 5, 35, 30, 56, 23, 21, 0, 134, 12)  # plainly written 0, 1, ... 9 of the test set
SMALL = {"train": 200, "test": 50}  # images a class


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the MNIST samples of the package anew.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="with MNIST's four idx files")
    directory = parser.parse_args().directory
    out = bundled.mnist()
    (out / "small").mkdir(parents=True, exist_ok=True)

    images, labels = mnist.load(directory, "test")
    for index in DIGITS:
        Image.fromarray(images[index]).save(out / f"{labels[index]}_{index:04d}.png", optimize=True)

    for split, count in SMALL.items():
        images, labels = mnist.load(directory, split)
        picked = np.sort([np.flatnonzero(labels == c)[:count] for c in range(10)], axis=None)
        stem = out / "small" / mnist.SPLITS[split]
        write_idx(Path(f"{stem}-images-idx3-ubyte.gz"), images[picked])
        write_idx(Path(f"{stem}-labels-idx1-ubyte.gz"), labels[picked].astype(np.uint8))


def write_idx(path: Path, array: np.ndarray) -> None:
    """A uint8 array as a gzipped idx file, the same bytes each time (no time stamp)."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


if __name__ == "__main__":
    main()
