"""A run in a process of its own, that stops at a chosen moment to be killed there.

    python -m tests.training_child FOLDER MOMENT [resume]

At its moment it prints "here" and waits. Moments: "step", some parameters have been changed by an
optimizer step and some have not; "write", half of a checkpoint is in its temporary file;
"replace", all of it, and the file is not renamed yet; "limit", files may not grow any more, as on
a full disk: nothing waits, the write fails; "never".
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from refimpl import disk
from refimpl.conventions import RefimplError
from refimpl.training import checkpoints
from refimpl.training.optimizers import AdamW
from tests.training_runs import recipe, train

RECIPE = recipe(activation_epochs=2, epochs=2)
STEP = 8  # of the run, from 1: in the middle of the third epoch, the first of the second stage
WRITE = 4  # the checkpoint at the end of that epoch; one is written at the start of each stage


def wait_here(*arguments: object) -> None:
    print("here", flush=True)
    time.sleep(600)


class HalfRead(dict):
    """Gradients that nobody reads to the end."""

    def __getitem__(self, name: str):
        if name == "norm.weight":
            wait_here()
        return super().__getitem__(name)


class HalfWritten:
    """A file that takes the first half of what is written, and no more."""

    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self) -> HalfWritten:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        wait_here()


def stop_in_step() -> None:
    step, calls = AdamW.step, []

    def patched(self, gradients, rate):
        calls.append(None)
        step(self, HalfRead(gradients) if len(calls) == STEP else gradients, rate)

    AdamW.step = patched


def stop_in_write(moment: str) -> None:
    save, calls = checkpoints.save, []
    fdopen = os.fdopen

    def patched(*arguments) -> None:
        calls.append(None)
        if len(calls) == WRITE + 1:
            if moment == "write":
                disk.os.fdopen = lambda *given: HalfWritten(fdopen(*given))
            elif moment == "replace":
                disk.os.replace = wait_here
            else:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        save(*arguments)

    checkpoints.save = patched


def main(folder: str, moment: str, resume: str = "") -> int:
    if moment == "step":
        stop_in_step()
    elif moment != "never":
        stop_in_write(moment)
    try:
        train(Path(folder), RECIPE, resume=bool(resume), curves=True)
    except (RefimplError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
