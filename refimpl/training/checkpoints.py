"""Checkpoints: all that a run needs to go on to the same bits, in one safetensors file.

    params.<name>      parameters by dotted name
    optimizer.<name>   what the optimizer's `state()` returned
    __metadata__       progress, as JSON: epochs done, recipe, config, history

There is no state of a random generator to store: every epoch makes its own from the recipe's
seed and its number. A file is replaced as a whole: whoever is interrupted while writing leaves
the one before.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from refimpl.conventions import ModelFileError, write_atomically

VERSION = "1"


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
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelFileError(f"{path}: not a readable checkpoint ({error})") from error
    if metadata.get("checkpoint") != VERSION:
        found = metadata.get("checkpoint")
        raise ModelFileError(f"{path}: checkpoint version is {found}, expected {VERSION}")
    params = _strip("params.", tensors)
    return Checkpoint(params, _strip("optimizer.", tensors), json.loads(metadata["progress"]))


def _strip(prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
