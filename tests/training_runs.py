"""The run that the tests of training share: a tiny model that learns to see bars."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

import refimpl
from refimpl.data.preprocessing import Preprocessing
from refimpl.training import Recipe, loop

CLASSES = ("left", "right", "both")
PREPROCESSING = Preprocessing(size=(8, 12), mode="grey", mean=(0.4,), std=(0.3,))
RECIPE = Recipe(epochs=2, batch_size=8, learning_rate=3e-3, shift=1, seed=3, shards=2)


def model(name: str = "didb_micro", **fields):
    sizes = {"image_size": (8, 12), "dim": 16, "depth": 1, "mlp_ratio": 2, "num_classes": 3}
    return refimpl.create_model(name, **sizes | fields)


def bars(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright bars on a dark noisy ground, uint8 (count, 8, 12); which side is the label."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, size=count)
    images = rng.integers(0, 60, size=(count, 8, 12), dtype=np.uint8)
    images[labels != 1, 2:6, 1:3] = 230
    images[labels != 0, 2:6, 8:11] = 230
    return images, labels


def recipe(**fields) -> Recipe:
    return dataclasses.replace(RECIPE, **fields)


def train(folder: Path, recipe: Recipe = RECIPE, name: str = "run", count: int = 20, **options):
    """20 images are 3 steps an epoch, and 6 parts of batches."""
    images, labels = bars(count)
    network = options.pop("model", None) or model()
    return loop.train(
        network,
        recipe,
        images,
        labels,
        preprocessing=PREPROCESSING.to_json(),
        class_names=list(CLASSES),
        out=folder / f"{name}.safetensors",
        **options,
    )


def same_bits(first, second) -> bool:
    first, second = refimpl.flatten(first), refimpl.flatten(second)
    return first.keys() == second.keys() and all(
        first[name].tobytes() == second[name].tobytes() for name in first
    )


def timeless(history) -> list:
    """A history without its clock times: what two equal runs have in common."""
    return [result._replace(images_per_second=0.0, elapsed=0.0) for result in history]


def contents(path: Path) -> tuple[dict, bytes]:
    """A safetensors file's header, whose keys come in any order, and every byte behind it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]
