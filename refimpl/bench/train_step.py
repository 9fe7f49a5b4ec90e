"""A contender of `refimpl bench train` in a process of its own, which is this module's `main`.

Everybody starts from the same parameters and takes whole training steps on the same batch, with
the defaults of the recipe: forward, loss with label smoothing, backward, AdamW.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from refimpl.bench.measure import OURS, timed
from refimpl.bench.peers import torch_train
from refimpl.bench.work import Lesson, Network, lesson, network

WARM_UP = 2  # steps


class Task(NamedTuple):
    """What a process is asked to do."""

    who: str  # one of TRAINERS
    model: str
    batch: int
    threads: int
    steps: int


class Result(NamedTuple):
    """What it answers."""

    loss: float  # of the first step
    seconds: float  # of a step, the median
    imported: int  # bytes of memory at the most when all imports are done


class Trainer(NamedTuple):
    """Somebody who trains. `load` imports what `start` needs and gives it as the first argument."""

    name: str
    requires: tuple[str, ...]
    load: Callable[[], Any]
    start: Callable[..., contextlib.AbstractContextManager[Callable[[], float]]]


def run(task: Task) -> Result:
    """Take the steps; `imported` is right only in a process that has done nothing else."""
    trainer = TRAINERS[task.who]
    loaded = trainer.load()
    imported = _peak()
    work = network(task.model, task.batch)
    with trainer.start(loaded, work, lesson(work.config, task.batch), task.threads) as step:
        losses = [step() for _ in range(WARM_UP)]
        seconds = statistics.median(timed(step)(1) for _ in range(task.steps))
    return Result(losses[0], seconds, imported)


def main(text: str) -> None:
    """JSON of a Task -> JSON of its Result on stdout."""
    print(json.dumps(run(Task(**json.loads(text)))._asdict()))


def _peak() -> int:
    """Bytes of memory that this process has had at the most."""
    import resource  # not on every system; the launcher has said so by now

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextlib.contextmanager
def _ours(backend: Any, work: Network, batch: Lesson, threads: int) -> Iterator[Callable]:
    """A step as the training loop takes it, from pixels to the changed parameters."""
    from threadpoolctl import threadpool_limits

    from refimpl.models import unflatten
    from refimpl.models.binary import network
    from refimpl.training import batches, optimizers, recipes

    recipe = recipes.Recipe()
    objective = batches.Objective(batch.prepare, backend, recipe.smoothing)
    # arrays of our own: the optimizer changes them in place
    flat = {path: value.copy() for path, value in work.parameters.items()}
    params = unflatten(flat)
    optimizer = optimizers.for_network(network(work.config), flat, recipe)
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:

        def step() -> float:
            result = batches.batch_gradients(
                work.model,
                params,
                batch.images,
                batch.labels,
                objective=objective,
                shards=recipe.shards,
                pool=pool,
            )
            optimizer.step(result.gradients, recipe.learning_rate)
            return result.loss

        yield step


def _load_kernels() -> Any:
    from refimpl import training  # noqa: F401
    from refimpl.kernels import backend

    return backend


def _load_numpy() -> Any:
    from refimpl import ops, training  # noqa: F401

    return ops


TRAINERS = {
    trainer.name: trainer
    for trainer in (
        Trainer(OURS, (), _load_kernels, _ours),
        Trainer(f"{OURS} with NumPy", (), _load_numpy, _ours),
        Trainer("torch", torch_train.REQUIRES, torch_train.load, torch_train.start),
    )
}

if __name__ == "__main__":
    main(sys.argv[1])
