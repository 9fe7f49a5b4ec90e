"""Checkpoints: all that a run needs to go on to the same bits, in one safetensors file.

    params.<name>      parameters by dotted name
    optimizer.<name>   what the optimizer's `state()` returned
    __metadata__       progress, as JSON: what identifies the run, and its history

There is no state of a random generator to store: every epoch makes its own from the recipe's
seed and its number. A file is replaced as a whole: whoever is interrupted while writing leaves
the one before.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from refimpl.conventions import ModelFileError
from refimpl.disk import write_atomically
from refimpl.models import arrays

VERSION = "2"


class Checkpoint(NamedTuple):
    """A run at the end of an epoch."""

    params: dict[str, np.ndarray]  # flat
    optimizer: dict[str, np.ndarray]  # flat
    progress: dict[str, Any]  # JSON values


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to `path`, whole or not at all."""
    tensors = {f"params.{name}": value for name, value in checkpoint.params.items()}
    tensors |= {f"optimizer.{name}": value for name, value in checkpoint.optimizer.items()}
    # safetensors stores the memory as it lies, whatever the strides say
    tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    metadata = {"checkpoint": VERSION, "progress": json.dumps(checkpoint.progress)}
    write_atomically(path, safetensors.numpy.save(tensors, metadata))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; ModelFileError where there is none or it is not one."""
    if not path.exists():
        raise ModelFileError(f"{path}: no such checkpoint; there is nothing to resume")
    try:
        metadata, stored = arrays.header(path)
        if (found := metadata.get("checkpoint")) != VERSION:
            raise ModelFileError(f"{path}: checkpoint version is {found}, expected {VERSION}")
        progress = json.loads(metadata["progress"])
        if not isinstance(progress["history"], list):
            raise ValueError("its history is no list")
        tensors = {name: array.array() for name, array in stored.items()}
    except ModelFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{path}: not a readable checkpoint ({error})") from error
    return Checkpoint(_strip("params.", tensors), _strip("optimizer.", tensors), progress)


def require_like(
    path: Path, what: str, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    """ModelFileError unless `found` has the names, shapes and types of `expected`."""
    for name in sorted(found.keys() ^ expected.keys()):
        raise ModelFileError(
            f"{path}: {what} {name} is {'unknown' if name in found else 'missing'}"
        )
    for name, value in expected.items():
        if (found[name].shape, found[name].dtype) != (value.shape, value.dtype):
            raise ModelFileError(
                f"{path}: {what} {name} is {found[name].dtype} {found[name].shape}, "
                f"expected {value.dtype} {value.shape}"
            )


def _strip(prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
