"""The training loop: epochs of shuffled, shifted batches by the model's own backward pass.

A batch is cut into `recipe.shards` parts that run side by side (NumPy lets go of the interpreter
lock); their gradients are added in the order of the parts, never in the order they finish. So the
same recipe, data and machine give the same bits, whatever the timing.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from refimpl.conventions import ConfigError, DataError, ModelFileError, NonFiniteError
from refimpl.data.preprocessing import Preprocessing
from refimpl.models import VisionTransformer, files
from refimpl.models.params import flatten, real_matrices, unflatten
from refimpl.ops import cross_entropy
from refimpl.training import checkpoints
from refimpl.training.augmentation import random_shift
from refimpl.training.optimizers import AdamW, clip_by_global_norm
from refimpl.training.recipes import Recipe
from refimpl.training.schedules import warmup_cosine

Prepare = Callable[[np.ndarray], np.ndarray]  # uint8 images -> float (n, channels, H, W)


class EpochResult(NamedTuple):
    """What one epoch brought; `str()` of it is its line in a log."""

    epoch: int  # from 1
    epochs: int
    loss: float  # mean over the epoch, with smoothing and augmentation
    train_accuracy: float  # 0 to 1, on the augmented images as they came
    validation_accuracy: float | None  # 0 to 1, after the epoch
    images_per_second: float  # training only
    elapsed: float  # seconds since the run began, validation and interruptions' part included

    def __str__(self) -> str:
        validation = ""
        if self.validation_accuracy is not None:
            validation = f"  validation {self.validation_accuracy:.2%}"
        return (
            f"epoch {self.epoch}/{self.epochs}  loss {self.loss:.4f}"
            f"  train {self.train_accuracy:.2%}{validation}"
            f"  {self.images_per_second:.0f} images/s  {self.elapsed:.0f} s"
        )


class Trained(NamedTuple):
    """The end of a run."""

    params: dict[str, Any]  # nested
    history: list[EpochResult]


class BatchResult(NamedTuple):
    """Loss and gradients of one batch or shard."""

    loss: float  # its share of the batch's mean loss
    correct: int  # right answers
    gradients: dict[str, np.ndarray]  # flat


def train(
    model: VisionTransformer,
    recipe: Recipe,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    preprocessing: Mapping[str, Any],
    class_names: Sequence[str],
    out: Path,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    progress: bool = False,
    params: Mapping[str, Any] | None = None,
    resume: bool = False,
    card: Mapping[str, Any] | None = None,
) -> Trained:
    """Train `model` and write it, with its card, to `out` (a .safetensors file).

    images uint8 (n, H, W) or (n, H, W, 3) as loaded, labels (n,) integers; `validation` likewise.
    preprocessing: the JSON of a `Preprocessing`; it is applied to every batch after the shifts.
    params: where to start, left untouched; without them `model.init` by the recipe's seed.
    progress: one line an epoch on stderr, and a bar where stderr is a terminal.
    resume: go on from the checkpoint that an interrupted run of the same recipe left.
    card: entries to add to the card, such as the name of the data.

    While it runs, `out` with the suffix .checkpoint holds the state after the last epoch.
    Raises ConfigError, DataError or ModelFileError before the first step where the arguments do
    not fit together, OSError where `out` cannot be written, NonFiniteError when training diverges.
    """
    out = Path(out)
    prepare = Preprocessing.from_json(preprocessing).apply_array
    _check(model, images, labels, class_names, prepare, out)
    checkpoint = out.with_suffix(".checkpoint")
    identity = {
        "recipe": recipe.to_json(),
        "config": model.config.to_json(),
        "images": len(images),
    }
    if params is None:
        params = model.init(np.random.default_rng(recipe.seed))
    flat = {name: np.array(value, order="C") for name, value in flatten(params).items()}
    optimizer = AdamW(flat, recipe.weight_decay, real_matrices(model.config))
    history = _resume(checkpoint, identity, flat, optimizer) if resume else []
    params = unflatten(flat)  # the same arrays: the optimizer changes them in place
    began = time.perf_counter() - (history[-1].elapsed if history else 0.0)

    def save_checkpoint() -> None:
        state = identity | {"history": [result._asdict() for result in history]}
        checkpoints.save(checkpoint, checkpoints.Checkpoint(flat, optimizer.state(), state))

    save_checkpoint()  # where `out` cannot be written, say so now and not in an hour
    # the shards are the threads: those of BLAS on top of them cost half the speed or more
    with threadpool_limits(1), ThreadPoolExecutor(recipe.shards) as pool:
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            start = time.perf_counter()
            loss, correct = _epoch(
                model, recipe, params, optimizer, images, labels, epoch, prepare, pool, progress
            )
            speed = len(images) / (time.perf_counter() - start)
            score = None
            if validation is not None:
                score = accuracy(model, params, *validation, prepare, recipe.batch_size, pool)
            elapsed = time.perf_counter() - began
            history.append(
                EpochResult(
                    epoch, recipe.epochs, loss, correct / len(images), score, speed, elapsed
                )
            )
            save_checkpoint()
            if progress:
                print(history[-1], file=sys.stderr, flush=True)
    files.save(
        out,
        model,
        params,
        class_names=list(class_names),
        preprocessing=dict(preprocessing),
        card=_card(recipe, history, len(images)) | dict(card or {}),
    )
    checkpoint.unlink()
    return Trained(params, history)


def batch_gradients(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    *,
    prepare: Prepare,
    smoothing: float,
    shards: int,
    pool: ThreadPoolExecutor,
) -> BatchResult:
    """Mean loss of a batch and its gradients, computed in `shards` parts side by side.

    images uint8 (B, H, W[, 3]), labels (B,). Each part's loss is weighted by its size, so the sum
    is the batch's; the parts are added in order, in the dtype of the parameters.
    """
    parts = [
        pool.submit(_shard, model, params, images[i], labels[i], prepare, smoothing, len(images))
        for i in np.array_split(np.arange(len(images)), min(shards, len(images)))
    ]
    loss, correct, total = parts[0].result()
    for part in parts[1:]:
        more_loss, more_correct, more = part.result()
        loss += more_loss
        correct += more_correct
        # new arrays: an op may return one array as the gradient of two parameters
        total = {name: value + more[name] for name, value in total.items()}
    return BatchResult(loss, correct, total)


def accuracy(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    prepare: Prepare,
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> float:
    """Share of right answers, 0 to 1, over images uint8 (n, H, W[, 3]), batches side by side."""

    def correct(first: int) -> int:
        some = slice(first, first + batch_size)
        logits = model.predict(params, prepare(images[some]))
        return int(np.count_nonzero(logits.argmax(axis=-1) == labels[some]))

    return sum(pool.map(correct, range(0, len(images), batch_size))) / len(images)


def _epoch(
    model: VisionTransformer,
    recipe: Recipe,
    params: Mapping[str, Any],
    optimizer: AdamW,
    images: np.ndarray,
    labels: np.ndarray,
    epoch: int,
    prepare: Prepare,
    pool: ThreadPoolExecutor,
    progress: bool,
) -> tuple[float, int]:
    """One pass over all images -> (mean loss, right answers)."""
    steps = recipe.steps(len(images))[1]
    warmup = round(recipe.warmup_fraction * steps)
    # a generator of its own: an epoch draws the same numbers in a resumed run
    rng = np.random.default_rng([recipe.seed, epoch])
    order = rng.permutation(len(images))
    loss_sum, correct, seen = 0.0, 0, 0
    shown = progress and sys.stderr.isatty()
    title = f"epoch {epoch}/{recipe.epochs}"
    with tqdm(total=len(images), desc=title, unit="img", leave=False, disable=not shown) as bar:
        for first in range(0, len(images), recipe.batch_size):
            chosen = order[first : first + recipe.batch_size]
            batch = random_shift(images[chosen], recipe.shift, rng)
            try:
                result = batch_gradients(
                    model,
                    params,
                    batch,
                    labels[chosen],
                    prepare=prepare,
                    smoothing=recipe.smoothing,
                    shards=recipe.shards,
                    pool=pool,
                )
                if not math.isfinite(result.loss):
                    raise NonFiniteError(f"the loss is {result.loss}")
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"training diverged at step {optimizer.steps + 1} (epoch {epoch}): {error}; "
                    f"lower learning_rate (now {recipe.learning_rate}) or set clip_norm"
                ) from error
            gradients = result.gradients
            if recipe.clip_norm is not None:
                gradients, _ = clip_by_global_norm(gradients, recipe.clip_norm)
            rate = warmup_cosine(
                optimizer.steps, steps=steps, peak=recipe.learning_rate, warmup=warmup
            )
            optimizer.step(gradients, rate)
            loss_sum += result.loss * len(chosen)
            correct += result.correct
            seen += len(chosen)
            bar.set_postfix(loss=f"{loss_sum / seen:.4f}", refresh=False)
            bar.update(len(chosen))
    return loss_sum / seen, correct


def _shard(
    model: VisionTransformer,
    params: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    prepare: Prepare,
    smoothing: float,
    batch_size: int,
) -> BatchResult:
    """Forward and backward of one part of a batch of `batch_size`."""
    logits, cache = model.forward(params, prepare(images))  # (part, classes)
    loss, loss_cache = cross_entropy.forward(logits, labels, smoothing)
    share = len(labels) / batch_size  # of the batch's mean
    (dlogits,) = cross_entropy.backward(np.asarray(share, dtype=logits.dtype), loss_cache)
    _, gradients = model.backward(dlogits, cache)
    correct = int(np.count_nonzero(logits.argmax(axis=-1) == labels))
    return BatchResult(float(loss) * share, correct, flatten(gradients))


def _check(
    model: VisionTransformer,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    prepare: Prepare,
    out: Path,
) -> None:
    """All that can be known before the first step, so that nothing fails after the last one."""
    if out.suffix != files.SUFFIX:
        raise ModelFileError(f"{out}: suffix {out.suffix!r}; expected {files.SUFFIX!r}")
    classes = model.config.num_classes
    if len(class_names) != classes:
        raise ConfigError(
            f"the model has {classes} classes, the data has {len(class_names)}: "
            f"create the model with num_classes={len(class_names)}"
        )
    if len(images) == 0 or len(images) != len(labels):
        raise DataError(
            f"training data: {len(images)} images and {len(labels)} labels, "
            "expected as many labels as images and at least one"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"training data: labels run from {labels.min()} to {labels.max()}, "
            f"expected 0 to {classes - 1}"
        )
    found = prepare(images[:1]).shape[1:]
    expected = (model.config.channels, *model.config.image_size)
    if found != expected:
        raise DataError(
            f"training data: images are {found} (channels, H, W) after preprocessing, "
            f"the model reads {expected}"
        )


def _resume(
    path: Path, identity: dict[str, Any], flat: dict[str, np.ndarray], optimizer: AdamW
) -> list[EpochResult]:
    """Set parameters and optimizer to the checkpoint's state; returns its history."""
    checkpoint = checkpoints.load(path)
    for what, value in identity.items():
        if checkpoint.progress[what] != value:
            raise ConfigError(
                f"{path}: is of a run with {what} {checkpoint.progress[what]}, "
                f"this one has {value}; resume with the same or start afresh"
            )
    for name, value in flat.items():
        value[...] = checkpoint.params[name]
    optimizer.restore(checkpoint.optimizer)
    return [EpochResult(**result) for result in checkpoint.progress["history"]]


def _card(recipe: Recipe, history: list[EpochResult], images: int) -> dict[str, Any]:
    last = history[-1]
    return {
        "recipe": recipe.to_json(),
        "training_images": images,
        "figures": {
            "loss": last.loss,
            "train_accuracy": last.train_accuracy,
            "validation_accuracy": last.validation_accuracy,
            "images_per_second": last.images_per_second,
        },
        "wall_time_seconds": last.elapsed,
        "history": [result._asdict() for result in history],
    }
