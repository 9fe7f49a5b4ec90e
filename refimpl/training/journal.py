"""What a run leaves on disk while it goes on: a checkpoint, and learning curves where asked for.

They are written at the ends of epochs and nowhere else: a killed run loses the epoch it was in.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import disk
from refimpl.conventions import ConfigError, ModelFileError
from refimpl.data.image_folder import Array, FolderArray
from refimpl.models.files import SUFFIX
from refimpl.training import checkpoints, processor, recipes
from refimpl.training.history import EpochResult, from_json, is_csv, write_csv
from refimpl.training.optimizers import Optimizer


class Journal:
    """The checkpoint and the curves of a run, beside the file `out` that the run will write.

    identity: JSON values that tell this run from others; it is resumed with the same only.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], curves: bool):
        self.out = out
        self.checkpoint = out.with_suffix(".checkpoint")
        self.curves = out.with_suffix(".csv") if curves else None
        self.identity = json.loads(json.dumps(identity))  # a tuple comes back as a list
        self.history: list[EpochResult] = []
        self.cpus = [processor.name()]  # the kinds that computed, in turn; the last one is ours
        self.moved_from: str | None = None  # the kind before, where a resumed run has changed it
        self._optimizer: dict[str, np.ndarray] = {}
        for suffix in (out.suffix, ".json", ".checkpoint", ".csv"):
            disk.remove_leftovers(out.with_suffix(suffix))

    def resume(self, params: dict[str, np.ndarray]) -> None:
        """Set `params` (flat) and the history to those of the checkpoint."""
        saved = checkpoints.load(self.checkpoint)
        # an older checkpoint says less of its run
        found = dict(saved.progress)
        if isinstance(found.get("recipe"), dict):
            found["recipe"] = recipes.complete(found["recipe"])
        known = {what: value for what, value in self.identity.items() if what in found}
        require_same(self.checkpoint, found, known)
        checkpoints.require_like(self.checkpoint, "parameter", saved.params, params)
        for name, value in params.items():
            value[...] = saved.params[name]
        self.history = from_json(self.checkpoint, saved.progress["history"])
        self._optimizer = saved.optimizer
        before = saved.progress.get("cpus", [])  # older checkpoints do not say
        if before and before[-1:] != self.cpus:
            self.moved_from = before[-1]
        self.cpus = before if before[-1:] == self.cpus else before + self.cpus
        self._write_curves()  # it may have been killed between the checkpoint and them

    def restore(self, optimizer: Optimizer) -> None:
        """Set the optimizer to its state at the end of the last epoch before the interruption."""
        checkpoints.require_like(
            self.checkpoint, "optimizer state", self._optimizer, optimizer.state()
        )
        optimizer.restore(self._optimizer)

    def save(self, params: dict[str, np.ndarray], optimizer: Optimizer) -> None:
        """Write the state of the run after the epochs in `history`."""
        history = [result._asdict() for result in self.history]
        progress = self.identity | {"history": history, "cpus": self.cpus}
        state = checkpoints.Checkpoint(params, optimizer.state(), progress)
        checkpoints.save(self.checkpoint, state)
        self._write_curves()

    def close(self) -> None:
        """The run is over: its checkpoint is not needed any more."""
        self.checkpoint.unlink()

    def _write_curves(self) -> None:
        if self.curves is not None:
            write_csv(self.curves, self.history)


def require_free(out: Path, curves: bool, *, resume: bool, overwrite: bool) -> None:
    """Refuse a run that would destroy what lies where it writes: another run, or another's file.

    OutputError where the model, its card or its curves exist, ModelFileError where the checkpoint
    holds epochs of an interrupted run or is none, or with `resume`, when these are the run's own,
    is missing.
    `overwrite`: what exists may go. ModelFileError, too, for another suffix than a model has.
    """
    if out.suffix != SUFFIX:
        raise ModelFileError(f"{out}: suffix {out.suffix!r}; expected {SUFFIX!r}")
    for suffix in (out.suffix, ".json"):  # a run may be killed after it wrote them
        disk.require_free(out.with_suffix(suffix), overwrite=overwrite or resume)
    checkpoint = out.with_suffix(".checkpoint")
    disk.require_free(checkpoint, overwrite=True)
    if resume:
        checkpoints.load(checkpoint)
    if checkpoint.exists() and not (resume or overwrite):
        epochs = len(checkpoints.load(checkpoint).progress["history"])
        if epochs > 0:
            raise ModelFileError(
                f"{checkpoint}: holds {epochs} epochs of an interrupted run; resume it (--resume), "
                "or overwrite it to start afresh (--force)"
            )
    if curves:
        path = out.with_suffix(".csv")
        disk.require_free(path, overwrite=overwrite or (resume and is_csv(path)))


def fingerprint(*arrays: Array) -> str:
    """SHA-256 of arrays: types, shapes and values; of files in a folder, their names and sizes."""
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, FolderArray):
            array = array.listing()
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def require_same(
    path: str | os.PathLike, saved: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """ConfigError with the first entry of `given` that is another in `saved`, dicts by a field.

    A field that is null is as one that is not there: another version may not have had it.
    """
    for what, value in given.items():
        before = saved.get(what)
        if isinstance(before, dict) and isinstance(value, dict):
            other = [n for n in before | value if before.get(n) != value.get(n)]
            if not other:
                continue
            name = other[0]
            what, before, value = f"{what}: {name}", before.get(name), value.get(name)
        elif before == value:
            continue
        raise ConfigError(
            f"{path}: is of a run with another {_MEANT.get(what, what)} "
            f"({_short(before)}, now {_short(value)}); resume with the same or start afresh"
        )


# What a user gave for an entry of which a checkpoint holds a digest, or none.
_MEANT = {
    "start": "start (the parameters of --init)",
    "training data": "training data (--data)",
    "middle": "part of the originals that the images are",
    "backend": "backend (--backend), whose last bits differ",
}


def _short(value: Any) -> Any:
    """The beginning of a digest, which nobody compares by eye; any other value as it is."""
    if value is None:
        return "none"
    found = re.match("[0-9a-f]{12}(?=[0-9a-f]{52})", value) if isinstance(value, str) else None
    return f"sha256 {found[0]}..." if found else value
