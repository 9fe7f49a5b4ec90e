"""The training loop: stages of epochs of shuffled, augmented batches by the model's own backward.

The same recipe, data, backend and machine give the same bits, whatever the timing, and whether or
not the run was interrupted: every epoch draws its random numbers from a generator of its own, and a
checkpoint holds everything else.
"""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from refimpl import ops
from refimpl.conventions import NonFiniteError
from refimpl.data.image_folder import Array, in_batches, slices
from refimpl.data.preprocessing import Preprocessing
from refimpl.machine import cpus
from refimpl.models import VisionTransformer, cards, files
from refimpl.models.params import check, flatten, unflatten
from refimpl.training import optimizers, requirements, stages, teachers
from refimpl.training.augmentation import augment, augment_with_labels
from refimpl.training.batches import (
    BatchResult,
    Objective,
    Score,
    batch_gradients,
    parts,
    score,
)
from refimpl.training.history import EpochResult
from refimpl.training.journal import Journal, fingerprint, require_free
from refimpl.training.optimizers import Optimizer, clip_by_global_norm
from refimpl.training.recipes import Recipe, require_integer
from refimpl.training.schedules import warmup_cosine
from refimpl.training.stages import Stage
from refimpl.training.teachers import Teacher
from refimpl.training.watch import Watch


class Trained(NamedTuple):
    """Hold the end of a run, as `train` returns it.

    >>> Trained({"head": {"bias": np.zeros(10)}}, []).history
    []
    """

    params: dict[str, Any]  # nested
    history: list[EpochResult]


class Run(NamedTuple):
    """What stays as it is from the first epoch to the last."""

    recipe: Recipe
    images: Array
    labels: Array
    validation: tuple[Array, Array] | None
    objective: Objective
    pool: ThreadPoolExecutor
    progress: bool
    watch: Watch
    began: float  # time.perf_counter() at its start, interruptions left out


def train(
    model: VisionTransformer,
    recipe: Recipe,
    images: Array,
    labels: Array,
    *,
    preprocessing: Mapping[str, Any],
    class_names: Sequence[str],
    out: Path,
    middle: float = 1.0,
    validation: tuple[Array, Array] | None = None,
    progress: bool = False,
    params: Mapping[str, Any] | None = None,
    teacher: tuple[VisionTransformer, Mapping[str, Any]] | None = None,
    backend: Any = ops,
    threads: int | None = None,
    resume: bool = False,
    curves: bool = False,
    overwrite: bool = False,
    card: Mapping[str, Any] | None = None,
    source: str | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train `model` and write it, with its card, to `out` (a .safetensors file).

    images uint8 (n, H, W) or (n, H, W, 3) as loaded, labels (n,) integers, or for a segmenter
        uint8 (n, H, W), 255 where there is none: arrays, or a FolderArray each; `validation`
        likewise.
    preprocessing: the JSON of a `Preprocessing`; it is applied to every batch after augmentation.
    middle: the part of each side of the original images that `images` and `validation` are, where
        they were cut out about the centre already; the crops of `preprocessing` and of a teacher
        are parts of the originals.
    params: where to start, left untouched; without them `model.init` by the recipe's seed.
    teacher: (model, params) that sees what the student sees; without it, the one that the recipe
        names, with the preprocessing of its own file. It teaches in every stage.
    backend: what computes, `refimpl.ops` or the faster `refimpl.kernels.backend`, equal to
        rounding.
    threads: how many parts of a batch run side by side; without it, one a CPU. The result is the
        same with any number of at least 1.
    progress: one line an epoch on stderr, and a bar where stderr is a terminal.
    resume: go on from the checkpoint that an interrupted run of the same recipe, data and backend
        left.
    curves: write the history to `out` with the suffix .csv, anew after every epoch.
    overwrite: what exists under the names that the run writes may go, the checkpoint of another run
        too; else it is an error.
    card: entries to add to the card, JSON values, such as the name of the data.
    source: what tells the data, those held out too, from others when a run is resumed; without it
        their values, or of a FolderArray the names and sizes of its files.
    watch: who is called after batches and epochs, and may stop the run.

    While it runs, `out` with the suffix .checkpoint holds the state after the last epoch, so a run
    that is interrupted loses the epoch it was in. One that is killed while it writes leaves a file
    `.<name>.<16 hex digits>.part` beside it, which the next run with the same `out` removes.
    Raises ConfigError, DataError or ModelFileError before the first step where the arguments do
    not fit together, OutputError where `out`, its card or its curves exist; OSError where `out`
    cannot be written, NonFiniteError when training diverges.

    >>> import tempfile
    >>> from refimpl.models import create_model
    >>> model = create_model("didb_micro", dim=8, depth=1, image_size=8, num_classes=2)
    >>> labels = np.arange(20) % 2
    >>> images = np.full((20, 8, 8), 255, np.uint8) * labels[:, None, None].astype(np.uint8)
    >>> recipe = Recipe(epochs=2, batch_size=5, shift=0)
    >>> plain = Preprocessing.plain((8, 8), channels=1).to_json()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder) / "run.safetensors"
    ...     meaning = {"preprocessing": plain, "class_names": ["dark", "bright"]}
    ...     done = train(model, recipe, images, labels, **meaning, out=out)
    ...     first, second = done.history
    >>> second.loss < first.loss
    True
    """
    out = Path(out)
    require_free(out, curves, resume=resume, overwrite=overwrite)
    read = Preprocessing.from_json(preprocessing)
    prepare = read.of_middle(middle).apply_array
    plan = stages.plan(model, recipe, fresh=params is None)
    threads = cpus() if threads is None else threads
    require_integer("threads", threads, 1)
    requirements.check(model, recipe, images, labels, class_names, prepare, threads, validation)
    # what the last epoch will write must not fail then
    cards.to_bytes({**files.describe(model, list(class_names), preprocessing), **(card or {})})
    tutor = teachers.choose(teacher, recipe, class_names, prepare, images[:1], middle)
    flat = _start(model, recipe, params)
    identity = {
        "recipe": recipe.to_json(),
        "config": model.config.to_json(),
        "training data": source or fingerprint(images, labels),
        "validation data": None if source else validation and fingerprint(*validation),
        "preprocessing": read.to_json(),
        "classes": list(class_names),
        "teacher": tutor and tutor.to_json(),
        "start": None if params is None else fingerprint(*flat.values()),
        "middle": middle,
        "backend": getattr(backend, "__name__", type(backend).__name__),
    }
    teach = tutor and functools.partial(tutor.probabilities, backend=backend)
    objective = Objective(prepare, backend, recipe.smoothing, teach, recipe.distillation)
    journal = Journal(out, identity, curves)
    if resume:
        journal.resume(flat)
    _check_labels(model, recipe, labels, requirements.TRAINING, progress)
    if validation is not None:
        _check_labels(model, recipe, validation[1], requirements.VALIDATION, progress)
    watch = watch or Watch()
    _tell_of_another_cpu(journal, watch, progress)
    began = time.perf_counter() - (journal.history[-1].elapsed if journal.history else 0.0)
    # a thread a part: those of BLAS on top of them cost half the speed or more
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        run = Run(recipe, images, labels, validation, objective, pool, progress, watch, began)
        for stage in plan:
            _train_stage(run, stage, flat, journal)
    files.save(
        out,
        model,
        unflatten(flat),
        class_names=list(class_names),
        preprocessing=dict(preprocessing),
        card=_card(recipe, journal, len(images), tutor) | dict(card or {}),
    )
    journal.close()
    return Trained(unflatten(flat), journal.history)


def _start(
    model: VisionTransformer, recipe: Recipe, params: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """Parameters of our own, flat and in one order: the optimizer changes them in place."""
    declared = model.network.parameters
    if params is None:
        params = model.init(np.random.default_rng(recipe.seed))
    given = flatten(params)
    check(declared, given)
    return {name: np.array(given[name], order="C") for name in declared}


def _check_labels(
    model: VisionTransformer, recipe: Recipe, labels: Array, what: str, progress: bool
) -> None:
    with _bar("check labels", len(labels), progress) as bar:
        requirements.check_labels(model, recipe, labels, bar.update, what)


def _tell_of_another_cpu(journal: Journal, watch: Watch, progress: bool) -> None:
    """Say where a resumed run cannot promise the bits of an uninterrupted one."""
    if journal.moved_from is None:
        return
    change = f"from {journal.moved_from} to {journal.cpus[-1]}"
    text = f"goes on upon another kind of CPU, {change}: last bits may differ"
    if progress:
        print(text, file=sys.stderr, flush=True)
    watch.tell(text)


def _train_stage(run: Run, stage: Stage, params: dict[str, np.ndarray], journal: Journal) -> None:
    """The epochs of a stage that are not in the journal yet; changes `params` (flat) in place."""
    if len(journal.history) >= stage.last:
        return
    optimizer = optimizers.for_network(stage.model.network, params, run.recipe)
    if len(journal.history) > stage.first:
        journal.restore(optimizer)
    journal.save(params, optimizer)  # where it cannot be written, say so now and not in an hour
    while len(journal.history) < stage.last:
        result = _epoch(run, stage, params, optimizer, len(journal.history) + 1)
        journal.history.append(result)
        journal.save(params, optimizer)
        if run.progress:
            print(result, file=sys.stderr, flush=True)
        run.watch.epoch(result, run.recipe.steps(len(run.images), 1))


def _epoch(
    run: Run, stage: Stage, params: dict[str, np.ndarray], optimizer: Optimizer, number: int
) -> EpochResult:
    """One pass over all images; `number` counts the epochs of the run from 1."""
    start = time.perf_counter()
    nested = unflatten(params)
    # a generator of its own: an epoch draws the same numbers in a resumed run
    rng = np.random.default_rng([run.recipe.seed, number])
    order = rng.permutation(len(run.images))
    epoch = number - stage.first
    loss_sum, correct, answers, seen, rate = 0.0, 0, 0, 0, 0.0
    recipe = run.recipe
    with _bar(f"{stage.name} epoch {epoch}/{stage.epochs}", len(order), run.progress) as bar:
        batches = [order[some] for some in slices(len(order), recipe.batch_size)]
        together = (in_batches(array, batches) for array in (run.images, run.labels))
        for images, labels in zip(*together, strict=True):
            images, labels = _augmented(images, labels, rng, recipe)
            result = _gradients(run, stage, nested, images, labels, optimizer, epoch)
            rate = _rate(run, stage, optimizer.steps)
            optimizer.step(result.gradients, rate)
            loss_sum += result.loss * result.answers
            correct += result.correct
            answers += result.answers
            seen += len(images)
            bar.set_postfix(loss=f"{loss_sum / max(answers, 1):.4f}", refresh=False)
            bar.update(len(images))
            run.watch.batch()
    speed = seen / (time.perf_counter() - start)
    with _told(run, stage, optimizer.steps, epoch):
        for name, value in params.items():
            if not np.isfinite(value).all():
                raise NonFiniteError(f"{name} is not finite")
        reached = _score_held_out(run, stage, nested)
    return EpochResult(
        stage=stage.name,
        epoch=epoch,
        epochs=stage.epochs,
        loss=loss_sum / max(answers, 1),
        train_accuracy=correct / max(answers, 1),
        validation_accuracy=reached and reached.accuracy,
        learning_rate=rate,
        images_per_second=speed,
        elapsed=time.perf_counter() - run.began,
        validation_mean_iou=reached and reached.mean_iou,
    )


def _score_held_out(run: Run, stage: Stage, params: Mapping[str, Any]) -> Score | None:
    """The score on the images held out, as many at once as a part of a batch has."""
    if run.validation is None:
        return None
    batch = min(run.recipe.batch_size, len(run.images))
    at_once = math.ceil(batch / parts(stage.model.network, batch, run.recipe.shards))
    return score(stage.model, params, *run.validation, run.objective, at_once, run.pool)


def _augmented(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Images of a batch, and their labels: maps are moved with them."""
    options = {"shift": recipe.shift, "flip": recipe.flip, "crop": recipe.crop}
    if labels.ndim == 1:
        return augment(images, rng, **options), labels
    return augment_with_labels(images, labels, rng, **options)


def _gradients(
    run: Run,
    stage: Stage,
    params: Mapping[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    optimizer: Optimizer,
    epoch: int,
) -> BatchResult:
    """Gradients of a batch, clipped where the recipe says so."""
    recipe = run.recipe
    with _told(run, stage, optimizer.steps + 1, epoch):
        result = batch_gradients(
            stage.model,
            params,
            images,
            labels,
            objective=run.objective,
            shards=recipe.shards,
            pool=run.pool,
        )
        if not math.isfinite(result.loss):
            raise NonFiniteError(f"the loss is {result.loss}")
    if recipe.clip_norm is None:
        return result
    return result._replace(gradients=clip_by_global_norm(result.gradients, recipe.clip_norm)[0])


@contextlib.contextmanager
def _told(run: Run, stage: Stage, step: int, epoch: int) -> Iterator[None]:
    """Where numbers are not finite any more, the error says when and what to do."""
    try:
        yield
    except NonFiniteError as error:
        recipe = run.recipe
        raise NonFiniteError(
            f"training diverged at step {step} (epoch {epoch}) of stage "
            f"{stage.name}: {error}; lower learning_rate (now {recipe.learning_rate}) "
            f"or set clip_norm (now {recipe.clip_norm})"
        ) from error


def _rate(run: Run, stage: Stage, step: int) -> float:
    """Learning rate of a step of a stage, counted from 0."""
    steps = run.recipe.steps(len(run.images), stage.epochs)
    warmup = round(run.recipe.warmup_fraction * steps)
    return warmup_cosine(step, steps=steps, peak=run.recipe.learning_rate, warmup=warmup)


def _bar(title: str, images: int, progress: bool) -> tqdm:
    shown = progress and sys.stderr.isatty()
    return tqdm(total=images, desc=title, unit="img", leave=False, disable=not shown)


def _card(
    recipe: Recipe, journal: Journal, images: int, teacher: Teacher | None
) -> dict[str, Any]:
    last = journal.history[-1]
    return {
        "recipe": recipe.to_json(),
        "teacher": teacher and teacher.to_json(),
        "training_images": images,
        "figures": {
            "loss": last.loss,
            "train_accuracy": last.train_accuracy,
            "validation_accuracy": last.validation_accuracy,
            "validation_mean_iou": last.validation_mean_iou,
            "images_per_second": last.images_per_second,
        },
        "wall_time_seconds": last.elapsed,
        "cpus": journal.cpus,
        "history": [result._asdict() for result in journal.history],
    }
